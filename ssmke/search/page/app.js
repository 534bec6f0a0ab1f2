// Everything that comes from the server is put into the page as text, never as HTML.
"use strict";

const $ = (id) => document.getElementById(id);
const WAIT = 180; // ms between the last key and the search
let asked = null; // AbortController of the search in work
let picture = null; // {blob, name}, when a picture is looked for
let address = null; // its object URL
let timer = 0;
let limits = { most_characters: 1000, most_upload: 20000000, top: 12 };

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function fail(sentence) {
  $("error").textContent = sentence;
  $("status").textContent = "";
  $("list").replaceChildren();
  $("list").classList.remove("stale");
}

function target() {
  return document.querySelector("input[name=to]:checked").value;
}

async function ask(path, options) {
  const answer = await fetch(path, options);
  let body;
  try {
    body = await answer.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    body = { error: answer.status === 503 ? "The server is busy: try again in a moment." : "The server gave no answer." };
  }
  if (!answer.ok) throw new Error(body.error || "The server could not answer.");
  return body;
}

async function search() {
  clearTimeout(timer);
  if (asked) asked.abort();
  asked = null;
  const text = $("text").value.trim();
  if (!picture && !text) {
    clear();
    return;
  }
  if (!picture && [...text].length > limits.most_characters) {
    fail(`This text is too long: ${limits.most_characters.toLocaleString("en")} characters at most.`);
    return;
  }
  const mine = (asked = new AbortController());
  const to = target();
  const parameters = new URLSearchParams({ to, top: String(limits.top) });
  $("list").classList.add("stale");
  $("results").setAttribute("aria-busy", "true");
  const begin = performance.now();
  try {
    let found;
    if (picture) {
      found = await ask(`/api/search?${parameters}`, { method: "POST", body: picture.blob, signal: mine.signal });
    } else {
      parameters.set("q", text);
      found = await ask(`/api/search?${parameters}`, { signal: mine.signal });
    }
    if (asked === mine) show(found, performance.now() - begin);
  } catch (error) {
    if (error.name === "AbortError" || asked !== mine) return;
    fail(error instanceof TypeError ? "The server does not answer: is it still running?" : error.message);
  } finally {
    if (asked === mine) $("results").removeAttribute("aria-busy");
  }
}

function show(found, milliseconds) {
  $("error").textContent = "";
  const captions = found.to === "captions";
  const list = $("list");
  list.classList.remove("stale");
  list.classList.toggle("captions", captions);
  list.replaceChildren(...found.hits.map((hit, place) => card(hit, place + 1, captions)));
  const one = captions ? "caption" : "picture";
  const number = `${found.hits.length} ${one}${found.hits.length === 1 ? "" : "s"}`;
  $("status").textContent =
    `${number} in ${Math.round(milliseconds)} ms (model ${Math.round(found.encode_ms)}, search ${found.search_ms})`;
}

function card(hit, place, captions) {
  const item = make("li");
  const image = make("img");
  const first = hit.captions[0] || "";
  image.src = `/thumbs/${hit.row}`;
  image.alt = captions ? "" : first || hit.id;
  image.width = hit.width;
  image.height = hit.height;
  const foot = make("div", "foot");
  const facts = make("p", "", `${place} · ${hit.score.toFixed(3)}`);
  facts.append(make("span", "id", hit.id));
  foot.append(facts);
  const similar = make("button", "", "More like this");
  similar.type = "button";
  similar.setAttribute("aria-label", `More like picture ${place}: ${first || hit.id}`);
  similar.addEventListener("click", () => likeThis(hit));
  foot.append(similar);
  item.append(image);
  if (first) item.append(make("p", "words", first));
  item.append(foot);
  return item;
}

async function likeThis(hit) {
  try {
    const answer = await fetch(`/thumbs/${hit.row}`);
    if (!answer.ok) throw new Error("This picture cannot be shown any more.");
    document.querySelector("input[name=to][value=images]").checked = true;
    take(await answer.blob(), hit.id);
    $("text").focus({ preventScroll: true });
    window.scrollTo({ top: 0 });
  } catch (error) {
    fail(error instanceof TypeError ? "The server does not answer: is it still running?" : error.message);
  }
}

function take(blob, name) {
  if (blob.size > limits.most_upload) {
    fail(`This file is too large: ${Math.floor(limits.most_upload / 1e6)} MB at most.`);
    return;
  }
  picture = { blob, name };
  if (address) URL.revokeObjectURL(address);
  address = URL.createObjectURL(blob);
  $("preview").hidden = false;
  $("preview").src = address;
  $("named").textContent = name;
  $("query").hidden = false;
  $("text").value = "";
  search();
}

function forget() {
  picture = null;
  if (address) URL.revokeObjectURL(address);
  address = null;
  $("preview").removeAttribute("src");
  $("file").value = "";
  $("query").hidden = true;
}

function clear() {
  clearTimeout(timer);
  if (asked) asked.abort();
  asked = null;
  forget();
  $("text").value = "";
  $("error").textContent = "";
  $("status").textContent = "";
  $("list").classList.remove("stale");
  $("list").replaceChildren();
  $("results").removeAttribute("aria-busy");
}

$("text").addEventListener("input", () => {
  if ($("text").value) forget();
  clearTimeout(timer);
  timer = setTimeout(search, WAIT);
});
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
$("file").addEventListener("change", () => {
  const file = $("file").files[0];
  if (file) take(file, file.name);
});
$("preview").addEventListener("error", () => {
  $("preview").hidden = true; // what is no picture cannot be shown as one
});
$("clear").addEventListener("click", () => {
  clear();
  $("text").focus();
});
for (const choice of document.querySelectorAll("input[name=to]")) choice.addEventListener("change", search);

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("#text, textarea");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    $("text").focus();
    $("text").select();
  } else if (event.key === "Escape") {
    clear();
    $("text").focus();
  }
});

const holdsFiles = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
document.addEventListener("dragover", (event) => {
  if (!holdsFiles(event)) return;
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
document.addEventListener("drop", (event) => {
  document.body.classList.remove("dragging");
  if (!holdsFiles(event)) return;
  event.preventDefault();
  const file = event.dataTransfer.files[0];
  if (file) take(file, file.name);
});
document.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData ? event.clipboardData.files : [])][0];
  if (!file) return;
  event.preventDefault();
  take(file, file.name || "pasted picture");
});

ask("/api/about", {})
  .then((about) => {
    limits = about;
    const count = (number, one) => `${number.toLocaleString("en")} ${one}${number === 1 ? "" : "s"}`;
    const captions = about.captions ? `, ${count(about.captions, "caption")}` : "";
    $("about").textContent = `${count(about.pictures, "picture")}${captions} · ${about.model}`;
    $("targets").hidden = !about.captions;
  })
  .catch((error) => fail(error instanceof TypeError ? "The server does not answer." : error.message));
