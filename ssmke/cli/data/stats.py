"""`ssmke data stats`: what datasets hold, as a table, as plots and as JSON."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table
from tyro.conf import Positional

from ssmke.cli.data.outputs import check_outputs
from ssmke.cli.data.terminal import CORES, console, print_next, progress, split_order
from ssmke.errors import ConfigError

if TYPE_CHECKING:
    from ssmke.data.statistics import Report
    from ssmke.data.tally import Histogram, Tally

_COLUMNS = 5  # of splits and their sum: more do not fit 80 characters


def stats(
    directories: Positional[tuple[str, ...]],
    split: str = "",
    sample: int = 0,
    tokenizer: str = "",
    out: Path | None = None,
    json: Path | None = None,
    workers: int = CORES,
) -> int:
    """Count what datasets hold: images, pairs, lengths, sizes, formats, repeats, losses.

    Args:
        directories: folders or addresses of the datasets; several are counted as one.
        split: only this one; all by default.
        sample: read only so many images, evenly spaced, for a quick look; 0 reads all.
        tokenizer: folder or hub name of a tokenizer, to count tokens as well as words.
        out: picture of plots to write; .png.
        json: file to write all numbers to.
        workers: processes.
    """
    from ssmke.data.remote.sources import shown
    from ssmke.data.statistics import collect

    if not directories:
        raise ConfigError("PATH is missing: give the folders or addresses of the datasets")
    if out is not None:
        from ssmke.data.statistics_plots import check_name

        check_name(out)
    check_outputs({"--out": out, "--json": json}, directories)
    with progress("counting") as (on_total, on_items):
        report = collect(directories, split, sample, tokenizer, workers, on_total, on_items)
    _print(directories, report)
    if json is not None:
        from ssmke.data.atomic import make_folder, write_json

        make_folder(json.parent)
        write_json(json, report.to_dict())
        console().print(f"numbers: {escape(str(json))}", soft_wrap=True)
    if out is not None:
        from ssmke.data.statistics_plots import draw

        draw(report, out)
        console().print(f"plots: {escape(str(out))}", soft_wrap=True)
    else:
        print_next("ssmke", "data", "stats", *map(shown, directories), "--out", "stats.png")
    return 0


def _print(directories: tuple[str, ...], report: Report) -> None:
    from ssmke.data.remote.sources import shown

    out = console()
    names = sorted(report.splits, key=split_order)
    columns = names if len(names) < _COLUMNS else names[: _COLUMNS - 1]
    parts = [report.splits[name] for name in columns]
    stated = [report.stated[name] for name in columns]
    if len(names) > 1:
        columns, parts = [*columns, "all"], [*parts, report.together]
        stated.append(_sums(report))
    table = Table(title=escape(", ".join(map(shown, directories))), title_justify="left")
    table.add_column("")
    for name in columns:
        table.add_column(escape(name), justify="right", no_wrap=True)
    table.add_row("images", *(f"{images:,}" for images, _ in stated))
    table.add_row("pairs", *(f"{pairs:,}" for _, pairs in stated), end_section=not report.sampled)
    if report.sampled:
        table.add_row("images read", *(f"{part.images:,}" for part in parts), end_section=True)
    for label, cell, last in _rows(report):
        table.add_row(label, *map(cell, parts), end_section=last)
    out.print(table)
    out.print("[dim]Per image and caption: means; sizes in pixels, width/height and kB: medians.[/]")
    if report.sampled:
        out.print(
            f"[yellow]A sample: {report.together.images:,} images, evenly spaced, were read.[/] All but the "
            "first two rows are of those; there are more repeats than it shows."
        )
    if len(names) >= _COLUMNS:
        out.print(f"In the sum, too: {escape(', '.join(names[_COLUMNS - 1 :]))}; --json has each.")
    if len(report.together.sources) > 1:
        _print_counter("images by source", report.together.sources)
    _print_counter("[yellow]links that gave no image[/]", report.links)
    _print_losses(report)
    _print_counter("[yellow]stored, but training skips it[/]", report.together.unusable)


def _sums(report: Report) -> tuple[int, int]:
    stated = report.stated.values()
    return sum(images for images, _ in stated), sum(pairs for _, pairs in stated)


Cell = Callable[["Tally"], str]


def _rows(report: Report) -> Iterator[tuple[str, Cell, bool]]:
    """Label, what it shows of a split, and whether a line is drawn below it."""
    found = report.together
    yield from _pair("captions/image", lambda part: part.captions_per_image, mean=True)
    yield from _pair("words", lambda part: part.words, mean=True)
    if found.tokens.counts:
        yield from _pair("tokens", lambda part: part.tokens, mean=True)
    yield "repeated", lambda part: _share(part.repeated, part.words.total), False
    yield "empty", lambda part: _share(part.unusable["empty caption"], part.pairs), True
    yield from _pair("width", lambda part: part.width)
    yield from _pair("height", lambda part: part.height)
    yield from _pair("width/height", lambda part: part.aspect, scale=100)
    yield from _pair("kB/image", lambda part: part.bytes, scale=1000)
    yield f"image files{' read' if report.sampled else ''}", lambda part: decimal(part.image_bytes), False
    for name, _ in found.formats.most_common():
        yield name, functools.partial(_format_share, name), False


def _pair(
    label: str, of: Callable[[Tally], Histogram], *, mean: bool = False, scale: int = 1
) -> Iterator[tuple[str, Cell, bool]]:
    """A row with the mean or median, and one with what nine tenths lie between."""

    def middle(part: Tally) -> str:
        counts = of(part)
        if not counts.counts:
            return "-"
        return f"{counts.mean:.1f}" if mean else _number(counts.quantiles(0.5)[0], scale)

    def span(part: Tally) -> str:
        counts = of(part)
        return (
            "-".join(_number(value, scale) for value in counts.quantiles(0.05, 0.95))
            if counts.counts
            else "-"
        )

    yield label, middle, False
    yield "  5 to 95 %", span, False


def _number(value: int, scale: int) -> str:
    if scale == 1:
        return f"{value:,}"
    return f"{value / scale:.2f}" if value < 10 * scale else f"{value / scale:,.0f}"


def _share(part: int, whole: int) -> str:
    if not part or not whole:
        return "0" if whole else "-"
    share = 100 * part / whole
    return (
        "< 0.01 %"
        if share < 0.01
        else f"{share:.2f} %"
        if share < 10
        else f"{share:.1f} %"
        if part < whole
        else "100 %"
    )


def _format_share(name: str, part: Tally) -> str:
    return _share(part.formats[name], part.formats.total())


def _print_losses(report: Report) -> None:
    if not report.all_losses:
        return
    console().print("[yellow]left out[/]:")
    for reason, number in sorted(report.all_losses.items(), key=lambda item: (-item[1], item[0])):
        parts = [
            f"{name or 'unknown split'} {report.losses[name][reason]:,}"
            for name in sorted(report.losses, key=split_order)
            if report.losses[name][reason]
        ]
        where = f"  ({', '.join(parts)})" if len(parts) > 1 or parts[0].split()[0] != "unknown" else ""
        console().print(f"  {number:>11,}  {escape(reason + where)}", soft_wrap=True)


def _print_counter(title: str, counts: Mapping[str, int]) -> None:
    if not counts:
        return
    console().print(f"{title}:")
    for name, number in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        console().print(f"  {number:>11,}  {escape(name or '(none)')}", soft_wrap=True)
