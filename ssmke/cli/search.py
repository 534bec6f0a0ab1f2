"""`ssmke search`: index pictures, find them by text or picture, and serve a page to do so.

Modules that cost time to import are imported when a command runs; what can be wrong with the flags is said before a
model is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.markup import escape
from tyro.conf import Positional
from tyro.extras import SubcommandApp

from ssmke.console import CleanConsole
from ssmke.errors import ConfigError
from ssmke.words import counted, duration

if TYPE_CHECKING:
    from ssmke.models.dual_encoder import DualEncoder
    from ssmke.search.find import Query, Target
    from ssmke.search.index import SearchIndex
    from ssmke.search.nearest import Nearest

app = SubcommandApp()

MOST_TOP = 1000


def main(argv: Sequence[str]) -> int:
    """Run ``ssmke search ARGV``; gives the exit code.

    Raises:
        SSMKEError: what the user has to change; the caller prints it.
    """
    code: int = app.cli(
        args=list(argv), prog="ssmke search", description="Find pictures by text or picture, and captions."
    )
    return code


@app.command(name="index")
def index(
    model: str,
    images: tuple[str, ...],
    out: Path,
    split: tuple[str, ...] = (),
    batch_size: int = 64,
    threads: int = 0,
    kind: Literal["auto", "flat", "hnsw", "ivf"] = "auto",
    captions: bool = True,
    thumbnail: int = 320,
    device: str = "auto",
) -> int:
    """Embed pictures (and their captions) and make an index of them; interrupted, the same command goes on.

    Args:
        model: folder or hub name of a trained model, or a peer's (open_clip:ViT-B-32/openai, transformers:NAME).
        images: folders of pictures (with all folders in them), or folders or addresses of shards.
        out: folder of the index.
        split: splits of the shards; by default all.
        batch_size: pictures at a time; captions, being shorter, four times as many.
        threads: threads that decode, and of FAISS; 0: the cores of this process.
        kind: FAISS index: flat (exact), hnsw (graph in memory), ivf (lists on the disk), or auto: by count and memory.
        captions: embed captions too, so that texts are found for a picture.
        thumbnail: longest side of the thumbnails that are kept, in pixels.
        device: auto, cpu, cuda, cuda:1, ...
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ssmke.search.build import IndexConfig, build_index
    from ssmke.search.nearest import library
    from ssmke.search.sources import open_sources

    config = IndexConfig(batch_size, threads, kind, captions, thumbnail)
    library()
    sources = open_sources(images, split, without=out)
    encoder = _encoder(model, device)
    console = CleanConsole(highlight=False)
    columns = (TextColumn("pictures"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("pictures", total=len(sources))
        report = build_index(encoder, sources, out, config, lambda pictures: bar.advance(task, pictures))
    held = counted(report.items, "picture") + (
        f", {counted(report.captions, 'caption')}" if report.captions else ""
    )
    console.print(f"{held}: {escape(str(out))}", soft_wrap=True)
    for reason, number in sorted(report.skipped.items()):
        console.print(f"[yellow]skipped {number:,}: {escape(reason)}[/]")
    if report.reused:
        console.print(f"{counted(report.reused, 'picture')} were done before")
    if report.pictures:
        speed = report.pictures / max(report.embed_seconds, 1e-9)
        console.print(
            f"embedded {report.pictures:,} in {duration(report.embed_seconds)}: {speed:,.1f} a second"
        )
    for what, facts in (("pictures", report.images), ("captions", report.texts)):
        if facts is not None:
            console.print(f"{what}: {_told(facts)}", soft_wrap=True)
    return 0


@app.command(name="find")
def find(
    text: Positional[str] = "",
    *,
    index: Path,
    image: Path | None = None,
    queries: Path | None = None,
    split_demo: int = 0,
    to: Literal["auto", "images", "captions"] = "auto",
    top: int = 5,
    html: Path | None = None,
    sheet: Path | None = None,
    json: Path | None = None,
    model: str = "",
    device: str = "auto",
) -> int:
    """Find pictures for a text, captions or pictures for a picture, or the table of a talk for many texts.

    Args:
        text: what to look for.
        index: folder of the index.
        image: picture to look for instead of a text.
        queries: JSON lines {"query": TEXT, "right": KEY or [KEYS]}; the right pictures are marked.
        split_demo: look for so many captions of the index itself; their own pictures are the right ones.
        to: what to find: by default pictures for a text, for a picture captions where the index has any.
        top: how many.
        html: page to write, thumbnails included.
        sheet: contact sheet to draw; .png, .jpg or .webp.
        json: file to write the answers to.
        model: where the model of the index is now, if it was moved.
        device: auto, cpu, cuda, cuda:1, ...
    """
    given = [bool(text.strip()), image is not None, queries is not None, split_demo != 0]
    if sum(given) != 1:
        raise ConfigError("give one of: a text, --image PICTURE, --queries FILE, --split-demo N")
    if split_demo < 0:
        raise ConfigError(f"--split-demo {split_demo}: must be at least 1")
    if not 1 <= top <= MOST_TOP:
        raise ConfigError(f"--top {top}: must be from 1 to {MOST_TOP}")

    from ssmke.data.atomic import atomic_writer, make_folder, write_json
    from ssmke.data.contact_sheet import check_sheet_name, save_sheet
    from ssmke.search import results
    from ssmke.search.find import Finder, answers
    from ssmke.search.index import SearchIndex

    if sheet is not None:
        check_sheet_name(sheet, "--sheet")
    opened = SearchIndex(index)
    asked = _queries(opened, text, image, queries, split_demo)
    target: Target
    if to == "auto":
        target = "captions" if image is not None and opened.has_captions else "images"
    else:
        target = to
    finder = Finder(opened, _encoder_of(opened, model, device))
    found = answers(finder, asked, top, target)

    console = CleanConsole(highlight=False)
    what = "captions" if target == "captions" else "pictures"
    title = asked[0].text if len(asked) == 1 else f"{what} for {counted(len(asked), 'query', 'queries')}"
    console.print(results.table(found, title))
    if told := results.summary(found):
        console.print(told)
    for path in filter(None, (html, sheet, json)):
        make_folder(path.parent)
    if html is not None:
        with atomic_writer(html) as file:
            file.write(results.page(found, opened, title).encode("utf-8", "replace"))
        console.print(f"page: {escape(str(html))}", soft_wrap=True)
    if sheet is not None:
        save_sheet(results.sheet(found, opened, title), sheet, "--sheet")
        console.print(f"sheet: {escape(str(sheet))}", soft_wrap=True)
    if json is not None:
        write_json(json, results.as_json(found, opened))
        console.print(f"answers: {escape(str(json))}", soft_wrap=True)
    return 0


@app.command(name="serve")
def serve(
    index: Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    allow_host: tuple[str, ...] = (),
    model: str = "",
    device: str = "auto",
) -> int:
    """Serve a page on which one types or drops a picture and sees what is found; Ctrl-C ends it.

    Args:
        index: folder of the index.
        host: address to listen on. Any but 127.0.0.1 lets everybody who reaches it see all thumbnails and captions.
        port: port to listen on; 0: any that is free.
        allow_host: further names that browsers may reach it by, such as that of a proxy before it.
        model: where the model of the index is now, if it was moved.
        device: auto, cpu, cuda, cuda:1, ...
    """
    from ssmke.search.index import SearchIndex

    opened = SearchIndex(index)
    try:
        from ssmke.search.server import allowed_hosts, application, bind, is_loopback
        from ssmke.search.server import serve as run
    except ImportError as error:
        raise ConfigError(
            f"serving needs Starlette and uvicorn ({error}): pip install starlette uvicorn"
        ) from None
    from ssmke.search.find import Finder, Query

    with bind(host, port) as listening:
        finder = Finder(opened, _encoder_of(opened, model, device))
        finder.find(Query("a picture"), 1, "images")  # the first pass takes longest
        console = CleanConsole(highlight=False)
        if not is_loopback(host):
            console.print(
                f"[yellow]--host {escape(host)}: everybody who reaches this machine can search, and see all thumbnails "
                "and captions; nothing is encrypted and nobody is asked for a password.[/]"
            )
        address = f"[{host}]" if ":" in host else host
        url = f"http://{escape(address)}:{listening.getsockname()[1]}"
        console.print(f"{counted(len(opened), 'picture')} at {url}  (Ctrl-C ends it)", soft_wrap=True)
        sys.stdout.flush()
        run(application(finder, allowed_hosts(host, allow_host)), listening)
    console.print("stopped")
    return 0


def _queries(
    opened: SearchIndex, text: str, image: Path | None, queries: Path | None, split_demo: int
) -> list[Query]:
    from ssmke.search.find import Query, demo_queries, read_picture, read_queries

    if image is not None:
        return [Query(image.name, image=read_picture(image, "--image"))]
    if queries is not None:
        return read_queries(queries, opened)
    return demo_queries(opened, split_demo) if split_demo else [Query(text)]


def _encoder_of(opened: SearchIndex, model: str, device: str) -> DualEncoder:
    """The model that made the index, from where it was or from where the user says that it is."""
    name = model or opened.manifest.model
    if not model and name.startswith("/") and not Path(name).is_dir():
        raise ConfigError(
            f"the model of {opened.folder} was {name}, which is not there any more: give --model, where it is now."
        )
    return _encoder(name, device)


def _encoder(name: str, device: str) -> DualEncoder:
    from ssmke.cli.evaluate.common import find_device
    from ssmke.models.dual_encoder import load_dual_encoder

    return load_dual_encoder(name, find_device(device))


def _told(facts: Nearest) -> str:
    if facts.kind == "flat":
        return f"FAISS flat, exact ({facts.why})"
    width = f"efSearch {facts.width}" if facts.kind == "hnsw" else f"nprobe {facts.width}"
    return f"FAISS {facts.kind}, {width}: {facts.recall:.1%} of the exact ten nearest ({facts.why})"
