"""What the data commands print: progress bars, the table of a dataset, the next command."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import progress as bars
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from ssmke.console import CleanConsole

if TYPE_CHECKING:
    from ssmke.data.manifest import Manifest

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def console() -> CleanConsole:
    # Made when used: it looks at the terminal that is there then.
    return CleanConsole(highlight=False)


@contextmanager
def progress(verb: str) -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """A bar over images: ``(set the total, advance)``."""
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("images"),
        bars.TextColumn("{task.fields[speed]}"),
        bars.TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    with bars.Progress(*columns, console=console()) as progress:
        task = progress.add_task(verb, total=None, speed="", visible=False)

        def on_total(images: int) -> None:
            progress.update(task, total=images, visible=True)

        def on_items(images: int) -> None:
            progress.advance(task, images)
            speed = progress.tasks[0].speed
            progress.update(task, speed="" if speed is None else f"{speed:,.0f}/s")

        yield on_total, on_items


@contextmanager
def bytes_bar(verb: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar over bytes; gives what advances it."""
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.DownloadColumn(),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(compact=True),
    )
    with bars.Progress(*columns, console=console()) as progress:
        task = progress.add_task(verb, total=total or None, visible=total > 0)
        yield lambda count: progress.update(task, advance=count)


def print_dataset(directory: str | Path, manifest: Manifest) -> None:
    from ssmke.data.remote.sources import shown

    table = Table(title=f"{escape(manifest.name)}: {escape(shown(str(directory)))}", title_justify="left")
    table.add_column("split")
    for name in ("images", "captions", "captions/image", "shards", "size"):
        table.add_column(name, justify="right")
    parts: list[tuple[str, int, int, int, int]] = [
        (name, split.images, split.captions, len(split.shards), sum(shard.bytes for shard in split.shards))
        for name, split in sorted(manifest.splits.items(), key=lambda item: split_order(item[0]))
    ]
    if len(parts) > 1:
        sums: Any = (sum(part[column] for part in parts) for column in range(1, 5))
        parts.append(("all", *sums))
    for name, images, captions, shards, size in parts:
        ratio = f"{captions / images:.2f}" if images else "-"
        table.add_row(name, f"{images:,}", f"{captions:,}", ratio, f"{shards:,}", decimal(size))
    console().print(table)
    for reason, number in sorted(manifest.skipped.items()):
        console().print(f"[yellow]skipped {number:,}: {escape(reason)}[/]")


def split_order(name: str) -> tuple[int, str]:
    usual = ("train", "val", "test")
    return (usual.index(name) if name in usual else len(usual), name)


def print_next(*command: str | Path) -> None:
    text = " ".join(shlex.quote(str(part)) for part in command)
    console().print(f"Next: [bold]{escape(text)}[/]", soft_wrap=True)
