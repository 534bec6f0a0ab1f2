"""Quality against dollars as a figure for a paper: PNG, PDF or SVG by the file's suffix.

The same panels, front and rules as on the dashboard (`pareto`), drawn with matplotlib, which takes a second to
import and is imported here only. No global state, no display, and no dates in the file: the same runs give the
same figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssmke.cost.charts.axes import linear, logarithmic, tick_money
from ssmke.cost.charts.labels import place
from ssmke.cost.charts.scatter import label
from ssmke.cost.charts.svg import shorten
from ssmke.cost.published.pareto import Panel, Point
from ssmke.errors import ConfigError, DataError
from ssmke.words import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "pdf", "svg")
_OWN, _OTHER, _INK, _FAINT = "#0d7263", "#8a8276", "#23211d", "#e0dbd1"
_WIDTH, _HEIGHT, _COLUMNS = 6.4, 4.2, 2  # inches of a panel
_DPI = 200
_OFF = 0.16  # decades' share that the column of unknown costs takes
_LETTERS = 30


def check_format(path: Path) -> str:
    """The format that a file's suffix asks for; ConfigError for another."""
    form = path.suffix.lower().lstrip(".")
    if form not in FORMATS:
        raise ConfigError(f"--out {path}: call it .png, .pdf or .svg")
    return form


def plot(panels: Sequence[Panel], path: Path) -> None:
    """Draws the panels that have any point with both numbers; DataError if none has."""
    form = check_format(path)
    shown = [panel.drawn for panel in panels if _known(panel)]
    if not shown:
        raise DataError("nothing to plot: no model has both a known cost and an evaluation on the same test")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    # Text stays text in PDF and SVG; a fixed salt, or each SVG would name its parts anew.
    settings: Any = {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "ssmke", "font.size": 9}
    with rc_context(settings):
        figure: Figure = Figure(figsize=(_WIDTH * columns, _HEIGHT * rows), dpi=_DPI, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for i, axes in enumerate(grid.flat):
            if i < len(shown):
                _panel(axes, shown[i])
            else:
                axes.set_axis_off()
        blank: dict[str, Any] = {
            "png": {"Software": None},
            "pdf": {"CreationDate": None},
            "svg": {"Date": None},
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, format=form, metadata=blank[form])
        except OSError as error:
            raise ConfigError(f"--out {path}: cannot be written: {error.strerror}") from error


def _known(panel: Panel) -> list[Point]:
    return [p for p in panel.points if p.usd is not None and p.quality is not None]


def _panel(axes: Axes, panel: Panel) -> None:
    known = _known(panel)
    ends = [float(v) for p in known for v in (p.span or (p.usd, p.usd)) if v]
    x = logarithmic(min(ends), max(ends), tick_money)
    scores = [p.quality for p in panel.points if p.quality is not None]
    room = max(max(scores) - min(scores), 2.0) * 0.15
    y = linear(min(100.0, max(scores) + room), lambda v: f"{v:g}", low=max(0.0, min(scores) - room), count=6)
    best = panel.front
    # In shares of the axes, like the dashboard: dollars to the left of ``right``, unknown costs beyond it.
    unknown = any(p.usd is None and p.quality is not None for p in panel.points)
    right = 1 - _OFF if unknown else 1.0
    placed = [
        (p, right * x.at(float(p.usd)) if p.usd is not None else (1 + right) / 2, y.at(p.quality))
        for p in panel.points
        if p.quality is not None
    ]
    _frame(
        axes, panel, x.ticks, [right * x.at(v) for v, _ in x.ticks], y.ticks, [y.at(v) for v, _ in y.ticks]
    )
    if unknown:
        axes.axvspan(right, 1, color=_FAINT, alpha=0.45, linewidth=0)
        axes.text(
            (1 + right) / 2, 0.012, "cost unknown", ha="center", va="bottom", style="italic", color=_OTHER
        )
    _line(axes, [(right * x.at(float(p.usd or 0)), y.at(p.quality or 0)) for p in best])
    for point, px, py in placed:
        if point.span is not None and point.span[0] != point.span[1]:
            low, high = (right * x.at(float(v)) for v in point.span)
            axes.plot(
                [low, high],
                [py, py],
                color=_OTHER,
                alpha=0.4,
                linewidth=2.5,
                solid_capstyle="round",
                zorder=2,
            )
        colour = _OWN if point.own else _INK if point in best else _OTHER
        hollow = point.setting == "finetuned"
        axes.plot(px, py, "o", ms=6.5, mfc="white" if hollow else colour, mec=colour, mew=1.4, zorder=4)
    _names(axes, placed, best)


def _frame(
    axes: Axes,
    panel: Panel,
    x_ticks: Sequence[tuple[float, str]],
    x_at: Sequence[float],
    y_ticks: Sequence[tuple[float, str]],
    y_at: Sequence[float],
) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="training cost in US dollars (log scale)", ylabel="mean R@1, %")
    axes.set_xticks(list(x_at), [text for _, text in x_ticks], parse_math=False)
    axes.set_yticks(list(y_at), [text for _, text in y_ticks])
    size = f" ({panel.test.size})" if panel.test.size else ""
    axes.set_title(printable(panel.test.title) + size, loc="left", fontsize=10, pad=10, parse_math=False)
    axes.grid(color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=_INK, pad=6)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_OTHER)


def _line(axes: Axes, best: Sequence[tuple[float, float]]) -> None:
    """The front as steps: between two of its points nothing is better for less."""
    if len(best) > 1:
        xs, ys = [p[0] for p in best], [p[1] for p in best]
        axes.step(xs, ys, where="post", color=_OWN, alpha=0.6, linewidth=1.6, zorder=3)


def _names(axes: Axes, placed: Sequence[tuple[Point, float, float]], best: Sequence[Point]) -> None:
    # Points of 1/72 inch, for the area that the labels and ticks leave of a panel.
    width, height = _WIDTH * 72 * 0.86, _HEIGHT * 72 * 0.76
    order = sorted(placed, key=lambda p: (p[0] not in best, not p[0].own, p[0].usd is None))
    names = [shorten(printable(label(p)), _LETTERS) for p, _, _ in order]
    spots = place(
        [(px * width, (1 - py) * height, n) for (_, px, py), n in zip(order, names, strict=True)],
        width,
        height,
        letter=4.9,
        line=11.0,
    )
    align = {"start": "left", "middle": "center", "end": "right"}
    for (point, px, py), name, spot in zip(order, names, spots, strict=True):
        if spot is None:
            continue
        axes.annotate(
            name,
            (px, py),
            (spot.dx * 0.75, -spot.dy * 0.75),
            textcoords="offset points",
            ha=align[spot.anchor],
            fontsize=8,
            color=_INK if point in best or point.own else _OTHER,
            fontweight="bold" if point in best else "normal",
            parse_math=False,
            # A halo would turn text into outlines, which nobody can search or edit.
            bbox={"facecolor": "white", "alpha": 0.75, "pad": 0.6, "linewidth": 0},
            zorder=5,
        )
