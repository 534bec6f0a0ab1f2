"""The web server: what it answers, and what hostile pages, files and contents get from it."""

from __future__ import annotations

import io
import json
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from PIL import Image
from starlette.testclient import TestClient

from ssmke.data.dataset import ImageTextShards
from ssmke.data.manifest import Manifest, Split
from ssmke.data.shards import Sample, write_shard
from ssmke.errors import ConfigError
from ssmke.models.dual_encoder import DualEncoder
from ssmke.search import server
from ssmke.search.build import build_index
from ssmke.search.find import Finder, Query
from ssmke.search.index import SearchIndex
from ssmke.search.server import allowed_hosts, application, bind, is_loopback
from ssmke.search.sources import open_sources

EVIL = "<img src=x onerror=alert(1)></script>\u202e\"'"


@pytest.fixture(scope="module")
def finder(index_dir: Path, encoder: DualEncoder) -> Finder:
    return Finder(SearchIndex(index_dir), encoder)


@pytest.fixture(scope="module")
def client(finder: Finder) -> Iterator[TestClient]:
    app = application(finder, allowed_hosts("127.0.0.1"))
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        yield client


def jpeg_of(shards: ImageTextShards, number: int) -> bytes:
    return shards.read(number).image


def test_a_text_finds_what_the_index_finds(client: TestClient, finder: Finder) -> None:
    found = client.get("/api/search", params={"q": "a red dog", "top": "4"}).json()
    answer, _ = finder.find(Query("a red dog"), 4, "images")
    assert [hit["row"] for hit in found["hits"]] == [hit.row for hit in answer.hits]
    assert [hit["score"] for hit in found["hits"]] == [round(hit.score, 4) for hit in answer.hits]
    assert found["hits"][0]["captions"] == answer.hits[0].item.captions[:5]


def test_a_picture_finds_itself_and_captions(client: TestClient, shards: ImageTextShards) -> None:
    same = client.post("/api/search", content=jpeg_of(shards, 7)).json()["hits"][0]
    assert same["id"] == shards.key(7)
    assert same["score"] == pytest.approx(1, abs=1e-4)
    captions = client.post("/api/search?to=captions&top=3", content=jpeg_of(shards, 7)).json()
    assert captions["to"] == "captions"
    assert len({hit["captions"][0] for hit in captions["hits"]}) == 3


def test_the_page_and_its_files_are_its_own(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "<script src" in page.text
    for text in (page.text, client.get("/app.js").text, client.get("/app.css").text):
        assert "http://" not in text
        assert "https://" not in text
        assert "innerHTML" not in text
    assert "style=" not in page.text
    for path in ("/", "/app.js", "/api/about", "/thumbs/0", "/nowhere"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers


def test_about_tells_no_paths(client: TestClient, model_dir: Path) -> None:
    about = client.get("/api/about").json()
    assert about["pictures"] == 26
    assert about["captions"] > 26
    assert str(model_dir) not in json.dumps(about)


def test_thumbnails_are_jpegs_by_number_alone(client: TestClient) -> None:
    with Image.open(io.BytesIO(client.get("/thumbs/3").content)) as image:
        assert image.format == "JPEG"
    for path in (
        "/thumbs/26",
        "/thumbs/99999999999999999999999",
        "/thumbs/-1",
        "/thumbs/..%2f..%2findex.json",
        "/thumbs/%2e%2e/index.json",
        "/thumbs/../index.json",
        "/parts/00000.thumbs",
        "/index.json",
        "//etc/passwd",
        "/app.js/../../index.py",
    ):
        answer = client.get(path)
        assert answer.status_code == 404, path
        assert set(answer.json()) == {"error"}


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", "", "127.0.0.2"]
)
def test_a_name_that_was_rebound_is_refused(client: TestClient, host: str) -> None:
    answer = client.get("/api/search?q=a", headers={"host": host})
    assert answer.status_code == 400
    assert "hits" not in answer.text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8000", "LOCALHOST", "[::1]:8000"])
def test_our_own_names_are_taken(client: TestClient, host: str) -> None:
    assert client.get("/api/about", headers={"host": host}).status_code == 200


def test_other_sites_get_nothing(client: TestClient, shards: ImageTextShards) -> None:
    headers = {"sec-fetch-site": "cross-site", "origin": "http://evil.example"}
    assert client.get("/thumbs/0", headers=headers).status_code == 403
    answer = client.post("/api/search", content=jpeg_of(shards, 7), headers=headers)
    assert (answer.status_code, answer.json()) == (403, {"error": "This request comes from another site."})
    assert client.get("/", headers=headers).status_code == 200, "a link to the page does no harm"


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("q=", "Type what you look for."),
        ("q=%20%00%09", "Type what you look for."),
        ("q=" + "a" * 1001, "This text is too long: 1,000 characters at most, it has 1,001."),
        ("q=a&top=0", "1 to 60 results can be shown."),
        ("q=a&top=1e9", "1 to 60 results can be shown."),
        ("q=a&top=%C2%B2", "1 to 60 results can be shown."),
        ("q=a&to=files", "Pictures or captions can be found, nothing else."),
    ],
)
def test_bad_questions_get_one_sentence(client: TestClient, query: str, sentence: str) -> None:
    answer = client.get(f"/api/search?{query}")
    assert (answer.status_code, answer.json()) == (400, {"error": sentence})


@pytest.mark.parametrize("text", ["\ud83d\ude00 😀", "a\x00b", "你好", "%ff", "'; --", "a" * 1000])
def test_odd_texts_are_only_texts(client: TestClient, text: str) -> None:
    answer = client.get("/api/search", params={"q": text.encode("utf-8", "replace").decode(), "top": "2"})
    assert len(answer.json()["hits"]) == 2


def png_bomb() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100_000))) + chunk(b"IEND", b"")


def test_bad_pictures_get_one_sentence(client: TestClient, shards: ImageTextShards) -> None:
    small = io.BytesIO()
    Image.new("RGB", (2, 2)).save(small, "PNG")
    for content, words in (
        (b"", "is empty"),
        (b"<svg onload=alert(1)>", "is not a picture"),
        (b"GIF89a....", "kind of picture is not read"),
        (png_bomb(), "too many pixels"),
        (small.getvalue(), "too small"),
        (jpeg_of(shards, 7)[:200], "is damaged"),
    ):
        answer = client.post("/api/search", content=content)
        assert answer.status_code == 400, words
        assert words in answer.json()["error"]


def test_an_upload_ends_at_its_bound(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_UPLOAD", 1_000_000)
    answer = client.post("/api/search", content=bytes(1_000_001))
    assert (answer.status_code, answer.json()) == (413, {"error": "This file is too large: 1 MB at most."})


def test_an_upload_that_states_no_length_is_given_up_on_the_way(
    finder: Finder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MOST_UPLOAD", 1_000_000)
    taken, sent = 0, []

    async def endless() -> dict[str, object]:
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": bytes(100_000), "more_body": True}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/search",
        "raw_path": b"/api/search",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"transfer-encoding", b"chunked")],
    }
    anyio.run(application(finder, ["localhost"]), scope, endless, send)
    assert sent[0]["status"] == 413
    assert taken == 11


def test_other_methods_are_refused(client: TestClient) -> None:
    for method in ("PUT", "DELETE", "OPTIONS"):
        answer = client.request(method, "/api/search")
        assert (answer.status_code, answer.json()) == (
            405,
            {"error": "This address does not take such requests."},
        )


def test_hostile_captions_stay_text(encoder: DualEncoder, shards: ImageTextShards, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    made = [Sample("one", jpeg_of(shards, 7), (EVIL,)), Sample("two", jpeg_of(shards, 8), ("a dog",))]
    Manifest("t", {"fingerprint": "t"}, {"test": Split((write_shard(folder / "a.tar", made, "test"),))}).save(
        folder
    )
    build_index(encoder, open_sources([str(folder)]), tmp_path / "i")
    app = application(Finder(SearchIndex(tmp_path / "i"), encoder), ["testserver"])
    answer = TestClient(app).post("/api/search", content=jpeg_of(shards, 7))
    assert answer.headers["content-type"] == "application/json"
    (caption,) = answer.json()["hits"][0]["captions"]
    assert "onerror" in caption, "as text"
    assert "\u202e" not in caption, "nothing turns the direction of the page"


def test_an_index_without_captions_says_so(
    encoder: DualEncoder, shards: ImageTextShards, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "<b>.jpg").write_bytes(jpeg_of(shards, 7))
    build_index(encoder, open_sources([str(tmp_path / "photos")]), tmp_path / "i")
    client = TestClient(application(Finder(SearchIndex(tmp_path / "i"), encoder), ["testserver"]))
    assert client.get("/api/about").json()["captions"] == 0
    answer = client.get("/api/search?q=a&to=captions")
    assert (answer.status_code, answer.json()["error"]) == (
        400,
        "This index has no captions: only pictures can be found.",
    )


def test_an_index_damaged_meanwhile_is_one_sentence(
    encoder: DualEncoder, index_dir: Path, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(index_dir, tmp_path / "i")
    finder = Finder(SearchIndex(tmp_path / "i"), encoder)
    (tmp_path / "i" / "parts" / "00000.items.jsonl").unlink()
    client = TestClient(application(finder, ["testserver"]), raise_server_exceptions=False)
    answer = client.get("/api/search?q=a")
    assert answer.status_code == 500
    assert "cannot be read" in answer.json()["error"]


def test_the_server_answers_while_the_model_works(client: TestClient, finder: Finder) -> None:
    found: list[int] = []
    with finder._lock:  # a query is being embedded
        waiting = threading.Thread(
            target=lambda: found.append(client.get("/api/search?q=a").status_code), daemon=True
        )
        waiting.start()
        assert client.get("/api/about").status_code == 200
        assert client.get("/thumbs/1").status_code == 200
        assert not found
    waiting.join(timeout=30)
    assert found == [200]


def test_a_port_in_use_is_one_error() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port}: .*in use.* Give another --port"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 99_999), ("127.0.0.1", -1), ("no such.host", 80)])
def test_an_address_that_is_none_is_one_error(host: str, port: int) -> None:
    with pytest.raises(ConfigError, match=r"--(port|host) "):
        bind(host, port)


def test_wider_bindings_take_the_names_of_this_machine_and_no_wildcards() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    wide = allowed_hosts("0.0.0.0", ("photos.example", "*"))
    assert {"127.0.0.1", "photos.example", socket.gethostname().lower()} <= set(wide)
    assert not {"*", "0.0.0.0", ""} & set(wide)
