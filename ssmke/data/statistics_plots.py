"""Statistics as a picture: six plain plots on one sheet, for a report or for a look.

Shares of captions or images in percent, so that datasets of different sizes can be laid side by side; a dotted
line at each median. Drawn with matplotlib without a display and without global state; the file holds no date,
so the same data give the same file. Takes about two seconds, most of which is importing matplotlib.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssmke.data.atomic import atomic_writer, make_folder
from ssmke.data.statistics import Report
from ssmke.data.tally import Histogram, Tally
from ssmke.errors import ConfigError
from ssmke.words import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GREEN, _SAND, _INK, _FAINT, _WARM = "#0d7263", "#b9ac95", "#23211d", "#e0dbd1", "#b5543c"
_GREY = "#6d675e"
_PAPER = "#fdfcfa"
_SIZE = (13.2, 7.6)  # inches
_DPI = 150
_TRAINED_AT = 224
"""Pixels of the square that training crops."""


def check_name(path: Path) -> None:
    """ConfigError for a name that is not a PNG's."""
    if path.suffix.lower() != ".png":
        raise ConfigError(f"--out {path}: the name must end in .png")


def draw(report: Report, path: Path) -> None:
    """Write the plots of ``report`` to ``path``.

    Raises:
        ConfigError: the name does not end in .png.
        DataError: it cannot be written.
    """
    check_name(path)
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    settings: Any = {"font.size": 9.5, "text.color": _INK, "axes.labelcolor": _INK, "axes.facecolor": _PAPER}
    with rc_context(settings):
        layout = ConstrainedLayoutEngine(w_pad=0.18, h_pad=0.16, wspace=0.05, hspace=0.06)
        figure = Figure(figsize=_SIZE, dpi=_DPI, facecolor=_PAPER, layout=layout)
        figure.suptitle(_title(report), x=0.012, ha="left", fontsize=13, parse_math=False)
        axes = figure.subplots(2, 3).flat
        found = report.together
        _lengths(axes[0], found)
        _per_image(axes[1], found)
        _left_out(axes[2], report)
        _short_side(axes[3], found)
        _aspect(axes[4], found)
        _file_size(axes[5], found)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    make_folder(path.parent)
    with atomic_writer(path) as file:
        file.write(buffer.getvalue())


def _title(report: Report) -> str:
    images = sum(images for images, _ in report.stated.values())
    pairs = sum(pairs for _, pairs in report.stated.values())
    names = " + ".join(dict.fromkeys(report.names))
    names = names if len(names) <= 60 else f"{len(report.names)} datasets"
    order = sorted(report.stated, key=lambda name: -report.stated[name][0])
    parts = ", ".join(order) if len(order) <= 4 else f"{len(order)} splits"
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in f"{names} ({parts})")
    read = f", of which {report.together.images:,} images were read" if report.sampled else ""
    return f"{text}: {images:,} images, {pairs:,} pairs{read}"


def _lengths(axes: Axes, found: Tally) -> None:
    _frame(
        axes, "Length of captions", "words" if not found.tokens.counts else "words or tokens", "captions, %"
    )
    if not _any(axes, found.words):
        return
    end = found.words.quantiles(0.995)[0]
    if found.tokens.counts:
        end = max(end, found.tokens.quantiles(0.995)[0])
    _bars(axes, found.words, end, label=f"words, median {found.words.quantiles(0.5)[0]}")
    if found.tokens.counts:
        values = np.arange(0, end + 1)
        shares = [100 * found.tokens.counts[int(v)] / found.tokens.total for v in values]
        label = f"tokens with the special ones, median {found.tokens.quantiles(0.5)[0]}"
        axes.step(values, shares, where="mid", color=_WARM, linewidth=1.4, label=label)
        axes.legend(frameon=False, loc="upper right", fontsize=8.5, handlelength=1.2)
    else:
        _median(axes, found.words, "words")
        _beyond(axes, found.words, end)
    axes.set_xlim(0, end + 1)


def _per_image(axes: Axes, found: Tally) -> None:
    _frame(axes, "Captions of an image", "captions", "images, %")
    if not _any(axes, found.captions_per_image):
        return
    end = max(6, found.captions_per_image.quantiles(0.999)[0])
    _bars(axes, found.captions_per_image, end, width=0.7)
    axes.set_xlim(0 if not found.captions_per_image.counts[0] else -0.6, end + 0.8)
    _whole_ticks(axes)
    _beyond(axes, found.captions_per_image, end)


def _left_out(axes: Axes, report: Report) -> None:
    """What imports left out; below it what training would still skip."""
    rows = [(reason, number, _SAND) for reason, number in report.all_losses.most_common(6)]
    rows += [
        (f"{reason} (stored)", number, _WARM) for reason, number in report.together.unusable.most_common(3)
    ]
    _frame(axes, "Left out, by reason", "images and captions", "")
    axes.grid(visible=False)
    if not rows:
        axes.set_xlabel("")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines["bottom"].set_visible(False)
        axes.text(0, 0.93, "nothing", transform=axes.transAxes, va="top", color=_GREY)
        return
    for place, (_, number, colour) in enumerate(rows):
        axes.barh(-place, number, height=0.62, color=colour)
        axes.annotate(
            f"{number:,}", (number, -place), (4, 0), textcoords="offset points", va="center", fontsize=8.5
        )
    names = [reason if len(reason) <= 28 else f"{reason[:27]}…" for reason, _, _ in rows]
    axes.set_yticks([-place for place in range(len(rows))], names, parse_math=False)
    axes.set_ylim(-max(len(rows), 4) + 0.4, 0.6)
    axes.set_xlim(0, 1.18 * max(number for _, number, _ in rows))
    _whole_ticks(axes, 4)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _short_side(axes: Axes, found: Tally) -> None:
    _frame(axes, "Size of images", "shorter side, pixels", "images, %")
    if not _any(axes, found.short_side):
        return
    low, high = found.short_side.quantiles(0.0, 0.995)
    _filled(
        axes, found.short_side, np.linspace(min(low, _TRAINED_AT) * 0.8, max(high, _TRAINED_AT) * 1.1, 41)
    )
    axes.axvline(_TRAINED_AT, color=_WARM, linewidth=1.2)
    smaller = sum(count for side, count in found.short_side.counts.items() if side < _TRAINED_AT)
    text = f"{percent(smaller / found.short_side.total)} below {_TRAINED_AT}"
    axes.text(0.99, 0.985, text, transform=axes.transAxes, ha="right", va="top", color=_WARM)
    _median(axes, found.short_side, "pixels", height=0.86)
    _beyond(axes, found.short_side, high)


def _aspect(axes: Axes, found: Tally) -> None:
    _frame(axes, "Shape of images", "width : height", "images, %")
    if not _any(axes, found.aspect):
        return
    edges = np.geomspace(100 / 3.2, 320, 45)
    _filled(axes, found.aspect, edges)
    axes.set_xscale("log")
    ticks = {"1:3": 1 / 3, "1:2": 0.5, "2:3": 2 / 3, "1:1": 1, "3:2": 1.5, "2:1": 2, "3:1": 3}
    axes.set_xticks([100 * v for v in ticks.values()], list(ticks))
    axes.set_xticks([], minor=True)
    axes.set_xlim(edges[0], edges[-1])
    outside = sum(n for value, n in found.aspect.counts.items() if not edges[0] <= value < edges[-1])
    if outside:
        _note(axes, f"{percent(outside / found.aspect.total)} beyond")


def _file_size(axes: Axes, found: Tally) -> None:
    _frame(axes, "Size of image files", "kB", "images, %")
    if not _any(axes, found.bytes):
        return
    smallest, largest = found.bytes.quantiles(0.001, 0.999)
    low, high = min(smallest, largest / 4), max(largest, smallest * 4)
    _filled(axes, found.bytes, np.geomspace(low * 0.8, high * 1.25, 41))
    axes.set_xscale("log")
    steps = [s * 10.0**n for n in range(1, 10) for s in (1, 2, 5)]
    shown = [value for value in steps if low * 0.8 <= value <= high * 1.25]
    shown = shown[:: math.ceil(len(shown) / 7)]
    axes.set_xticks(shown, [f"{value / 1000:g}" for value in shown])
    axes.set_xticks([], minor=True)
    axes.set_xlim(low * 0.8, high * 1.25)
    _median(axes, found.bytes, "kB", scale=1000)


def _frame(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, pad=10)
    axes.set(xlabel=x, ylabel=y)
    axes.grid(axis="y", color=_FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=_INK, pad=5)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_SAND)


def _whole_ticks(axes: Axes, count: int = 8) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(count, integer=True))


def _bars(axes: Axes, counts: Histogram, end: int, width: float = 0.82, label: str = "") -> None:
    values = [value for value in sorted(counts.counts) if value <= end]
    heights = [100 * counts.counts[value] / counts.total for value in values]
    axes.bar(values, heights, width=width, color=_GREEN, label=label)


def _filled(axes: Axes, counts: Histogram, edges: np.ndarray[Any, Any]) -> None:
    """A histogram as one filled outline."""
    values = np.array(list(counts.counts))
    heights, _ = np.histogram(values, edges, weights=np.array(list(counts.counts.values())))
    axes.stairs(100 * heights / counts.total, edges, fill=True, color=_GREEN)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, 1.12 * 100 * max(heights) / counts.total or 1)


def _median(axes: Axes, counts: Histogram, unit: str, *, scale: float = 1, height: float = 1.0) -> None:
    """A dotted line at the median, with its value."""
    (median,) = counts.quantiles(0.5)
    top = axes.get_ylim()[1]
    axes.plot([median, median], [0, top], linestyle=(0, (1, 2)), color=_INK, linewidth=1.2)
    axes.set_ylim(0, top)
    x = axes.transAxes.inverted().transform(axes.transData.transform((median, 0)))[0]
    side = "right" if x > 0.62 else "left"
    text = f"median {median / scale:.3g} {unit}" if scale != 1 else f"median {median:,} {unit}"
    offset = (-5 if side == "right" else 5, -4)
    axes.annotate(
        text, (median, height * top), offset, textcoords="offset points", ha=side, va="top", color=_INK
    )


def _beyond(axes: Axes, counts: Histogram, end: int) -> None:
    rest = sum(number for value, number in counts.counts.items() if value > end)
    if rest:
        _note(axes, f"{percent(rest / counts.total)} beyond, up to {max(counts.counts):,}")


def _note(axes: Axes, text: str) -> None:
    axes.text(0.99, 0.62, text, transform=axes.transAxes, ha="right", va="center", color=_GREY, fontsize=8.5)


def _any(axes: Axes, counts: Histogram) -> bool:
    if counts.counts:
        return True
    _note(axes, "none could be read")
    return False
