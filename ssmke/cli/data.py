"""`ssmke data`: make, import, verify and look at datasets.

Each command ends with one table of what is there now, and the command for the next step. What costs time to
import is imported by the command that needs it.
"""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich import progress as bars
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table
from tyro.conf import OmitArgPrefixes, Positional
from tyro.extras import SubcommandApp

from ssmke.data.importing import StorageConfig
from ssmke.data.sources.scenes import ScenesConfig
from ssmke.errors import BadSample, ConfigError

if TYPE_CHECKING:
    from PIL import Image

    from ssmke.data.dataset import ImageTextShards
    from ssmke.data.manifest import Manifest
    from ssmke.data.verify import VerifyReport

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
STOPPED = 130  # as shells report a command that Ctrl-C ended

app = SubcommandApp()
_make = SubcommandApp()
_import = SubcommandApp()
app.command(_make, name="make", help="Make a dataset.")
app.command(_import, name="import", help="Turn files on disk into a dataset; never needs the network.")


def main(argv: Sequence[str]) -> int:
    """Run ``ssmke data ARGV``; gives the exit code (1: `verify` found problems, 130: stopped).

    Raises:
        SSMKEError: what the user has to change; the caller prints it.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        # A job scheduler's SIGTERM then ends workers and removes half-written files as Ctrl-C does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        code: int = app.cli(args=list(argv), prog="ssmke data", description="Datasets of image-text shards.")
        return code
    except KeyboardInterrupt:
        _console().print("stopped; what is finished is kept, and the same command goes on from there.")
        return STOPPED
    finally:
        signal.signal(signal.SIGTERM, before)


@_make.command(name="scenes")
def make_scenes(
    out: Path,
    config: OmitArgPrefixes[ScenesConfig] = ScenesConfig(),  # noqa: B008 - it is frozen
    workers: int = CORES,
) -> int:
    """Render captioned scenes of shapes: the dataset that the demo trains on.

    Args:
        out: folder to write the dataset to.
        config: size and seed.
        workers: processes.
    """
    from ssmke.data.sources.scenes import write_scenes

    manifest = write_scenes(out, config, workers)
    _print_dataset(out, manifest)
    _print_next("ssmke", "data", "show", out, "--out", "scenes.png")
    return 0


@_import.command(name="karpathy")
def import_karpathy(
    images: Path,
    captions: Path,
    out: Path,
    restval: Literal["train", "keep", "skip"] = "train",
    storage: OmitArgPrefixes[StorageConfig] = StorageConfig(),  # noqa: B008 - it is frozen
    workers: int = CORES,
) -> int:
    """Import Flickr8k, Flickr30K or COCO from Karpathy's JSON; stopped, the same command goes on.

    Args:
        images: folder of the image files.
        captions: the JSON file with captions and splits.
        out: folder to write the dataset to.
        restval: what COCO's split "restval" becomes: part of train, a split of its own, or nothing.
        storage: how images are stored.
        workers: processes.
    """
    from ssmke.data.importing import SKIPPED_NAME
    from ssmke.data.sources import karpathy

    config = karpathy.KarpathyConfig(images, captions, out, restval, storage)
    with _progress("importing") as (on_total, on_items):
        report = karpathy.import_karpathy(config, workers, on_total, on_items)
    _print_dataset(out, report.manifest)
    kept = f", {report.reused} kept from before" if report.reused else ""
    shards = "shard" if report.written == 1 else "shards"
    _console().print(f"{report.written} {shards} written{kept}; {report.seconds:.1f} s.")
    if report.manifest.skipped:
        _console().print(f"What was skipped, line by line: {escape(str(out / SKIPPED_NAME))}", soft_wrap=True)
    _print_next("ssmke", "data", "show", out, "--out", "sheet.png")
    return 0


@app.command(name="verify")
def verify(directory: Positional[Path], workers: int = CORES, limit: int = 50) -> int:
    """Read a whole dataset again and list all that is wrong with it; exit code 1 if anything is.

    Args:
        directory: of the dataset.
        workers: processes.
        limit: problems to print; 0 prints all.
    """
    from ssmke.data.verify import verify as check

    if limit < 0:
        raise ConfigError(f"--limit {limit}: must be 0 (all) or more")
    with _progress("verifying") as (on_total, on_items):
        report = check(directory, workers, on_total, on_items)
    _print_dataset(directory, report.manifest)
    _print_problems(report, limit)
    return 0 if report.ok else 1


@app.command(name="show")
def show(
    directory: Positional[Path],
    out: Path = Path("sheet.png"),
    split: str = "",
    count: int = 12,
    columns: int = 4,
    seed: int = 0,
) -> int:
    """Draw a contact sheet of random samples with their captions.

    Args:
        directory: of the dataset.
        out: picture to write; .png, .jpg or .webp.
        split: to draw from; by default the first of train, val, test that is there.
        count: samples.
        columns: samples beside each other.
        seed: another seed shows other samples.
    """
    from ssmke.data.contact_sheet import contact_sheet
    from ssmke.data.dataset import ImageTextShards
    from ssmke.data.manifest import Manifest

    for flag, value in (("--count", count), ("--columns", columns)):
        if value < 1:
            raise ConfigError(f"{flag} {value}: must be at least 1")
    if count > 1000:
        raise ConfigError(f"--count {count}: must be at most 1000")
    manifest = Manifest.load(directory)
    split = split or min(manifest.splits, key=_split_order, default="train")
    shards = ImageTextShards.open([directory], split)
    cells = _sample_cells(shards, count, seed)
    facts = f"{len(cells)} of {shards.images:,} images with {shards.pairs:,} captions, drawn with seed {seed}"
    sheet = contact_sheet(cells, columns, f"{manifest.name}, {split}", subtitle=facts)
    _save(sheet, out)
    text = f"{len(cells)} samples of {split}: {escape(str(out))} ({sheet.width} x {sheet.height})"
    _console().print(text, soft_wrap=True)
    return 0


def _sample_cells(shards: ImageTextShards, count: int, seed: int) -> list[tuple[Image.Image, list[str]]]:
    import numpy as np

    from ssmke.data.contact_sheet import placeholder
    from ssmke.data.decode import decode_image

    rng = np.random.default_rng(seed)
    cells: list[tuple[Image.Image, list[str]]] = []
    for image in rng.choice(shards.images, min(count, shards.images), replace=False).tolist():
        try:
            sample = shards.read(image)
        except BadSample as error:
            cells.append((placeholder(error.reason), [shards.key(image)]))
            continue
        try:
            picture = decode_image(sample.image)
        except BadSample as error:
            picture = placeholder(error.reason)
        # Not cleaned: what is stored is what is to be looked at; what cannot be drawn shows as a box.
        captions = [caption.encode("utf-8", "replace").decode() for caption in sample.captions]
        cells.append((picture, captions))
    return cells


def _save(sheet: Image.Image, path: Path) -> None:
    import io

    from ssmke.data.atomic import atomic_writer, make_folder

    kinds = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
    if path.suffix.lower() not in kinds:
        raise ConfigError(f"--out {path}: the name must end in one of {', '.join(kinds)}")
    buffer = io.BytesIO()
    sheet.save(buffer, kinds[path.suffix.lower()])
    make_folder(path.parent)
    with atomic_writer(path) as file:
        file.write(buffer.getvalue())


def _console() -> Console:
    # Made when used: it looks at the terminal that is there then.
    return Console(highlight=False)


@contextmanager
def _progress(verb: str) -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """A bar over images: ``(set the total, advance)``."""
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("images"),
        bars.TextColumn("{task.fields[speed]}"),
        bars.TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    with bars.Progress(*columns, console=_console()) as progress:
        task = progress.add_task(verb, total=None, speed="", visible=False)

        def on_total(images: int) -> None:
            progress.update(task, total=images, visible=True)

        def on_items(images: int) -> None:
            progress.advance(task, images)
            speed = progress.tasks[0].speed
            progress.update(task, speed="" if speed is None else f"{speed:,.0f}/s")

        yield on_total, on_items


def _print_dataset(directory: Path, manifest: Manifest) -> None:
    table = Table(title=f"{escape(manifest.name)}: {escape(str(directory))}", title_justify="left")
    table.add_column("split")
    for name in ("images", "captions", "captions/image", "shards", "size"):
        table.add_column(name, justify="right")
    parts: list[tuple[str, int, int, int, int]] = [
        (name, split.images, split.captions, len(split.shards), sum(shard.bytes for shard in split.shards))
        for name, split in sorted(manifest.splits.items(), key=lambda item: _split_order(item[0]))
    ]
    if len(parts) > 1:
        sums: Any = (sum(part[column] for part in parts) for column in range(1, 5))
        parts.append(("all", *sums))
    for name, images, captions, shards, size in parts:
        ratio = f"{captions / images:.2f}" if images else "-"
        table.add_row(name, f"{images:,}", f"{captions:,}", ratio, f"{shards:,}", decimal(size))
    _console().print(table)
    for reason, number in sorted(manifest.skipped.items()):
        _console().print(f"[yellow]skipped {number:,}: {escape(reason)}[/]")


def _split_order(name: str) -> tuple[int, str]:
    usual = ("train", "val", "test")
    return (usual.index(name) if name in usual else len(usual), name)


def _print_problems(report: VerifyReport, limit: int) -> None:
    console = _console()
    if report.ok:
        console.print(f"[green]all is well[/]: everything was read again in {report.seconds:.1f} s.")
        return
    shown = report.problems[: limit or None]
    table = Table(title=f"{len(report.problems):,} problems", title_justify="left", title_style="bold red")
    for name in ("file", "sample", "what is wrong"):
        table.add_column(name, overflow="fold")
    for problem in shown:
        table.add_row(escape(problem.file), escape(problem.sample), escape(problem.what))
    console.print(table)
    if len(shown) < len(report.problems):
        console.print(f"... and {len(report.problems) - len(shown):,} more: --limit 0 prints all.")


def _print_next(*command: str | Path) -> None:
    text = " ".join(shlex.quote(str(part)) for part in command)
    _console().print(f"Next: [bold]{escape(text)}[/]", soft_wrap=True)
