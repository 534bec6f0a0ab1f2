"""Charts as inline SVG that read well at any width, in light and in dark.

Everything is placed in percent of the plot, and only paths lie in a stretched viewBox: a chart fills whatever
width it is given while its text keeps its size, without a script and without a second copy for phones. Colours
are CSS variables of the page (``data/dashboard.css``), named by class, so the page decides what dark looks
like. What a pointer may ask for is a <title>.

All text that is passed in is escaped here. About 15 KB for a stacked chart of 400 points and 7 bands.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ssmke.cost.charts.axes import Axis
from ssmke.words import printable

_SIZE = 1000  # units of the stretched viewBox, either way


@dataclass(frozen=True)
class Band:
    """One layer of a stacked chart. ``kind``: CSS class that colours it."""

    kind: str
    name: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Mark:
    """A vertical line at ``at`` with a word beside it: where something began."""

    at: float
    text: str


@dataclass(frozen=True)
class Part:
    """One piece of a horizontal bar: ``share`` of the whole, 0 to 1."""

    kind: str
    share: float
    title: str


@dataclass(frozen=True)
class Range:
    """One row of a range chart: an interval with a point in it, and other points worth a tooltip."""

    name: str
    kind: str
    value: str
    point: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""
    others: tuple[tuple[float, str], ...] = ()


def escape(text: object) -> str:
    """``text`` for HTML, without control and direction characters: a folder's name must not act on the page."""
    return html.escape(printable(str(text)), quote=True)


def shorten(text: str, length: int) -> str:
    """At most ``length`` characters, the middle left out: run names differ at both ends."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def percent(share: float) -> str:
    return f"{100 * share:.2f}".rstrip("0").rstrip(".") + "%"


def stacked(
    x: Axis,
    y: Axis,
    at: Sequence[float],
    bands: Sequence[Band],
    *,
    label: str,
    height: int = 280,
    marks: Sequence[Mark] = (),
    beyond: Sequence[tuple[float, float]] = (),
    beyond_text: str = "",
    hover: Callable[[int], str] | None = None,
) -> str:
    """Bands on top of each other over ``at``; ``beyond`` is a dashed line that goes on from them."""
    parts = [_grid(x, y)]
    base = [0.0] * len(at)
    paths: list[str] = []
    xs = [x.at(value) for value in at]
    for band in bands:
        top = [b + v for b, v in zip(base, band.values, strict=True)]
        outline = [(px, y.at(v)) for px, v in zip(xs, top, strict=True)]
        floor = [(px, y.at(v)) for px, v in zip(reversed(xs), reversed(base), strict=True)]
        title = f"<title>{escape(band.name)}</title>"
        paths.append(f'<path class="area {band.kind}" d="{_path([*outline, *floor])}Z">{title}</path>')
        base = top
    if beyond:
        paths.append(
            f'<path class="beyond" d="{_path([(x.at(a), y.at(b)) for a, b in beyond])}">'
            f"<title>{escape(beyond_text)}</title></path>"
        )
    parts.append(_stretched(paths))
    parts.append(_marks(x, marks))
    if beyond and beyond_text:
        end = beyond[-1]
        parts.append(
            f'<circle class="beyond-end" cx="{percent(x.at(end[0]))}" cy="{percent(1 - y.at(end[1]))}" r="4"/>'
            f'<text class="beyond-text" x="{percent(x.at(end[0]))}" y="{percent(1 - y.at(end[1]))}" dx="-10"'
            f' dy="-.6em" text-anchor="end">{escape(beyond_text)}</text>'
        )
    if hover is not None:
        parts.append(_hits(xs, hover))
    return _plot("".join(parts), label, height)


def profile(
    x: Axis,
    y: Axis,
    at: Sequence[float],
    values: Sequence[float | None],
    *,
    kind: str,
    label: str,
    height: int,
    hover: Callable[[int], str] | None = None,
    ticks: bool = True,
) -> str:
    """One quantity over time as a filled line; it breaks where a value is unknown (None)."""
    paths: list[str] = []
    for piece in _pieces(at, values):
        line = [(x.at(a), y.at(v)) for a, v in piece]
        closed = [*line, (line[-1][0], 0.0), (line[0][0], 0.0)]
        paths.append(f'<path class="area soft {kind}" d="{_path(closed)}Z"/>')
        paths.append(f'<path class="line {kind}" d="{_path(line)}"/>')
    parts = [_grid(x, y) if ticks else '<line class="base" x1="0" x2="100%" y1="100%" y2="100%"/>']
    parts.append(_stretched(paths))
    if hover is not None:
        parts.append(_hits([x.at(a) for a in at], hover))
    return _plot("".join(parts), label, height, bare=not ticks)


def lines(
    x: Axis,
    y: Axis,
    series: Sequence[tuple[str, str, Sequence[tuple[float, float]]]],
    *,
    label: str,
    height: int = 280,
) -> str:
    """Several quantities over the same axis; ``series``: (CSS class, name, points)."""
    paths = [
        f'<path class="line {kind}" d="{_path([(x.at(a), y.at(b)) for a, b in points])}">'
        f"<title>{escape(name)}</title></path>"
        for kind, name, points in series
        if points
    ]
    return _plot(_grid(x, y) + _stretched(paths), label, height)


def bar(parts: Iterable[Part], label: str) -> str:
    """Shares of one whole side by side; a piece too thin to see is still 2 px wide."""
    pieces = "".join(
        f'<i class="{p.kind}" style="flex-grow:{p.share:.6f}" title="{escape(p.title)}"></i>'
        for p in parts
        if p.share > 0
    )
    return f'<div class="bar" role="img" aria-label="{escape(label)}">{pieces}</div>'


def ranges(axis: Axis, rows: Sequence[Range], label: str) -> str:
    """Intervals on one shared axis, a row each, the value in words at the right."""
    lines = "".join(
        f'<line class="grid" x1="{percent(axis.at(v))}" x2="{percent(axis.at(v))}" y1="0" y2="100%"/>'
        for v, _ in axis.ticks
    )
    shown = "".join(_range(axis, row, lines) for row in rows)
    words = "".join(
        f'<text class="{"minor " if i % 2 else ""}tick" x="{percent(axis.at(v))}" y="1em" text-anchor="'
        f'{_anchor(axis.at(v))}">{escape(t)}</text>'
        for i, (v, t) in enumerate(axis.ticks)
    )
    track = f'<div class="track"><svg aria-hidden="true">{words}</svg></div>'
    foot = f'<div class="range foot"><span></span>{track}<span></span></div>'
    return f'<div class="ranges" role="group" aria-label="{escape(label)}">{shown}{foot}</div>'


def legend(items: Iterable[tuple[str, str, str]]) -> str:
    """(class, name, value) with a swatch each."""
    rows = "".join(
        f'<li><i class="{kind}"></i><span>{escape(name)}</span><b>{escape(value)}</b></li>'
        for kind, name, value in items
    )
    return f'<ul class="legend">{rows}</ul>'


def _range(axis: Axis, row: Range, lines: str) -> str:
    drawn = [lines]
    if row.low is not None and row.high is not None:
        low, high = axis.at(row.low), axis.at(row.high)
        drawn.append(
            f'<line class="span {row.kind}" x1="{percent(low)}" x2="{percent(high)}" y1="50%" y2="50%"/>'
        )
    for value, text in row.others:
        drawn.append(
            f'<circle class="alt {row.kind}" cx="{percent(axis.at(value))}" cy="50%" r="4">'
            f"<title>{escape(text)}</title></circle>"
        )
    if row.point is not None:
        drawn.append(f'<circle class="dot {row.kind}" cx="{percent(axis.at(row.point))}" cy="50%" r="6"/>')
    note = f"<small>{escape(row.note)}</small>" if row.note else ""
    return (
        f'<div class="range {row.kind}"><span class="name">{escape(row.name)}{note}</span>'
        f'<div class="track"><svg role="img" aria-label="{escape(f"{row.name}: {row.value}")}">'
        f"{''.join(drawn)}</svg></div>"
        f'<span class="value">{escape(row.value)}</span></div>'
    )


def _grid(x: Axis, y: Axis) -> str:
    parts: list[str] = []
    for value, text in y.ticks:
        where = percent(1 - y.at(value))
        kind = "base" if value == y.low else "grid"
        parts.append(f'<line class="{kind}" x1="0" x2="100%" y1="{where}" y2="{where}"/>')
        parts.append(
            f'<text class="tick" x="0" y="{where}" dx="-8" dy=".32em" text-anchor="end">{escape(text)}</text>'
        )
    for i, (value, text) in enumerate(x.ticks):
        place = x.at(value)
        minor = " minor" if i % 2 and len(x.ticks) > 3 else ""
        parts.append(
            f'<text class="tick{minor}" x="{percent(place)}" y="100%" dy="1.5em"'
            f' text-anchor="{_anchor(place)}">{escape(text)}</text>'
        )
    return "".join(parts)


def _marks(x: Axis, marks: Sequence[Mark]) -> str:
    """Vertical lines; a word that would run into the next is shown on wide charts only, or as a tooltip."""
    places = [x.at(mark.at) for mark in marks]
    parts: list[str] = []
    for mark, here, after in zip(marks, places, [*places, 1.0][1:], strict=True):
        where, last = percent(here), here > 0.7
        parts.append(
            f'<line class="mark" x1="{where}" x2="{where}" y1="0" y2="100%"><title>{escape(mark.text)}</title></line>'
        )
        room = here - max([0.0, *(p for p in places if p < here)]) if last else after - here
        if room > 0.1:
            kind = "mark-text" if room > 0.3 else "mark-text wide"
            parts.append(
                f'<text class="{kind}" x="{where}" y="0" dx="{-6 if last else 6}" dy="1em"'
                f' text-anchor="{"end" if last else "start"}">{escape(mark.text)}</text>'
            )
    return "".join(parts)


def _hits(xs: Sequence[float], text: Callable[[int], str]) -> str:
    """Invisible columns, at most 80, that say what lies above them."""
    count = min(len(xs), 80)
    if count < 2:
        return ""
    chosen = sorted({round(i * (len(xs) - 1) / (count - 1)) for i in range(count)})
    edges = [0.0, *((xs[a] + xs[b]) / 2 for a, b in pairwise(chosen)), max(xs)]
    return "".join(
        f'<rect class="hit" x="{percent(left)}" y="0" width="{percent(max(0.0, right - left))}" height="100%">'
        f"<title>{escape(text(i))}</title></rect>"
        for i, left, right in zip(chosen, edges[:-1], edges[1:], strict=True)
    )


def _pieces(at: Sequence[float], values: Sequence[float | None]) -> Iterable[list[tuple[float, float]]]:
    piece: list[tuple[float, float]] = []
    for where, value in zip(at, values, strict=True):
        if value is not None:
            piece.append((where, value))
        elif piece:
            yield piece
            piece = []
    if piece:
        yield piece


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{_SIZE * px:.1f} {_SIZE * (1 - py):.1f}" for px, py in points)


def _stretched(paths: Sequence[str]) -> str:
    return (
        f'<svg class="stretched" viewBox="0 0 {_SIZE} {_SIZE}" preserveAspectRatio="none" width="100%"'
        f' height="100%">{"".join(paths)}</svg>'
    )


def _plot(content: str, label: str, height: int, *, bare: bool = False) -> str:
    return (
        f'<div class="plot{" bare" if bare else ""}" style="height:{height}px"><svg role="img"'
        f' aria-label="{escape(label)}">{content}</svg></div>'
    )


def _anchor(where: float) -> str:
    return "start" if where < 0.03 else "end" if where > 0.97 else "middle"
