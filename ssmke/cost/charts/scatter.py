"""Quality against dollars as inline SVG, with room for what is not known.

Dollars run on a log axis. A model without a known cost stands in a column of its own at the right, one without
a known quality in a row at the bottom: off the axes, so nobody reads a position into it. Labels are placed for three
widths (`labels`); CSS shows the set that fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ssmke.cost.charts.axes import Axis, linear, logarithmic, tick_money
from ssmke.cost.charts.labels import place
from ssmke.cost.charts.svg import escape, percent, shorten
from ssmke.cost.published.pareto import Panel, Point
from ssmke.cost.render.numbers import money, money_span

HEIGHT = 320
_WIDTHS = (("narrow", 290), ("middle", 440), ("wide", 760))
_UNKNOWN_COST, _UNKNOWN_QUALITY = 0.2, 0.14
_LONGEST = {"narrow": 18, "middle": 24, "wide": 34}


@dataclass(frozen=True)
class _Placed:
    point: Point
    x: float
    y: float
    """Shares of the plot, from its left and its top."""
    best: bool


def scatter(panel: Panel) -> str:
    """The panel as a chart; empty where no point has both a cost and a quality."""
    known = [p for p in panel.points if p.usd is not None and p.quality is not None]
    if not known:
        return ""
    ends = [float(v) for p in known for v in (p.span or (p.usd, p.usd)) if v]
    x = logarithmic(min(ends), max(ends), tick_money)
    scores = [p.quality for p in panel.points if p.quality is not None]
    room = max(max(scores) - min(scores), 2.0) * 0.15
    y = linear(min(100.0, max(scores) + room), lambda v: f"{v:g}", low=max(0.0, min(scores) - room), count=6)
    right = 1 - _UNKNOWN_COST * any(p.usd is None and p.quality is not None for p in panel.points)
    bottom = 1 - _UNKNOWN_QUALITY * any(p.quality is None and p.usd is not None for p in panel.points)
    best = panel.front
    placed = [_place(p, x, y, right, bottom, p in best) for p in panel.points if p.usd or p.quality]
    parts = [_axes(x, y, right, bottom), _front(best, x, y, right, bottom)]
    for one in placed:
        parts.append(_whisker(one, x, right))
    # The own ones last: they lie on top.
    for one in sorted(placed, key=lambda o: o.point.own):
        parts.append(_dot(one))
    for kind, width in _WIDTHS:
        parts.append(_labels(placed, kind, width))
    said = f"Mean R@1 on {panel.test.title} against training cost in US dollars, log scale"
    return (
        f'<div class="plot scatter" style="height:{HEIGHT}px"><svg role="img" aria-label="{escape(said)}">'
        f"{''.join(parts)}</svg></div>"
    )


def _place(point: Point, x: Axis, y: Axis, right: float, bottom: float, best: bool) -> _Placed:
    px = right * x.at(float(point.usd)) if point.usd is not None else (1 + right) / 2
    py = bottom * (1 - y.at(point.quality)) if point.quality is not None else (1 + bottom) / 2
    return _Placed(point, px, py, best)


def _axes(x: Axis, y: Axis, right: float, bottom: float) -> str:
    parts: list[str] = []
    edge, floor = percent(right), percent(bottom)
    for value, text in y.ticks:
        where = percent(bottom * (1 - y.at(value)))
        kind = "base" if value == y.low else "grid"
        parts.append(f'<line class="{kind}" x1="0" x2="{edge}" y1="{where}" y2="{where}"/>')
        parts.append(
            f'<text class="tick" x="0" y="{where}" dx="-8" dy=".32em" text-anchor="end">{escape(text)}</text>'
        )
    for i, (value, text) in enumerate(x.ticks):
        where = percent(right * x.at(value))
        minor = " minor" if i % 2 else ""
        parts.append(f'<line class="grid" x1="{where}" x2="{where}" y1="0" y2="{floor}"/>')
        if right == 1 or i + 1 < len(x.ticks):  # the last would run into the words of the column beside it
            parts.append(
                f'<text class="tick{minor}" x="{where}" y="100%" dy="1.5em" text-anchor="middle">{escape(text)}</text>'
            )
    if right < 1:
        parts.append(
            f'<rect class="off" x="{edge}" y="0" width="{percent(1 - right)}" height="{floor}"/>'
            f'<text class="off-text" x="100%" y="100%" dy="1.5em" text-anchor="end">'
            "cost unknown</text>"
        )
    if bottom < 1:
        parts.append(
            f'<rect class="off" x="0" y="{floor}" width="{edge}" height="{percent(1 - bottom)}"/>'
            f'<text class="off-text" x="6" y="{floor}" dy="1.2em">not evaluated</text>'
        )
    return "".join(parts)


def _front(best: Sequence[Point], x: Axis, y: Axis, right: float, bottom: float) -> str:
    if len(best) < 2:
        return ""
    steps: list[str] = []
    height = 0.0
    for point in best:
        if point.usd is None or point.quality is None:
            continue
        px, py = 1000 * right * x.at(float(point.usd)), 1000 * bottom * (1 - y.at(point.quality))
        steps.append(f"L{px:.1f} {height:.1f}L{px:.1f} {py:.1f}" if steps else f"M{px:.1f} {py:.1f}")
        height = py
    return (
        '<svg class="stretched" viewBox="0 0 1000 1000" preserveAspectRatio="none" width="100%" height="100%">'
        f'<path class="front" d="{"".join(steps)}"><title>Pareto front: more quality costs at least this much'
        "</title></path></svg>"
    )


def _whisker(one: _Placed, x: Axis, right: float) -> str:
    span = one.point.span
    if span is None or span[0] == span[1] or one.point.quality is None:
        return ""
    low, high, y = (
        percent(right * x.at(float(span[0]))),
        percent(right * x.at(float(span[1]))),
        percent(one.y),
    )
    return f'<line class="whisker" x1="{low}" x2="{high}" y1="{y}" y2="{y}"/>'


def _dot(one: _Placed) -> str:
    point = one.point
    kind = ("own" if point.own else "other") + (" best" if one.best else "")
    hollow = " hollow" if point.setting == "finetuned" else ""
    return (
        f'<circle class="dot {kind}{hollow}" cx="{percent(one.x)}" cy="{percent(one.y)}" r="6">'
        f"<title>{escape(describe(point))}</title></circle>"
    )


def describe(point: Point) -> str:
    """A point in words: name, R@1 both ways, dollars with their interval, and what to know about it."""
    parts = [point.name]
    if point.recall is not None:
        parts.append(f"R@1 image to text {point.recall[0]:.1f}, text to image {point.recall[1]:.1f}")
    if point.usd is None:
        parts.append("cost unknown")
    else:
        spread = f" ({money_span(point.span)} by price basis)" if point.span else ""
        parts.append(money(point.usd, partial=point.lower_bound) + spread)
    return "; ".join([*parts, *(w for w in (point.setting, point.note) if w)])


def _labels(placed: Sequence[_Placed], kind: str, width: int) -> str:
    """Texts for one width. Points of the front choose first, then one's own, then those with a known cost."""
    order = sorted(placed, key=lambda o: (not o.best, not o.point.own, o.point.usd is None))
    names = [shorten(label(o.point), _LONGEST[kind]) for o in order]
    spots = place([(o.x * width, o.y * HEIGHT, n) for o, n in zip(order, names, strict=True)], width, HEIGHT)
    texts: list[str] = []
    for one, name, spot in zip(order, names, spots, strict=True):
        if spot is None:
            continue  # its tooltip and the table have the name
        weight = " strong" if one.best else ""
        texts.append(
            f'<text class="{kind} label{weight}" x="{percent(one.x)}" y="{percent(one.y)}" dx="{spot.dx:g}"'
            f' dy="{spot.dy:g}" text-anchor="{spot.anchor}">{escape(name)}</text>'
        )
    return "".join(texts)


def label(point: Point) -> str:
    """A run by the last two folders of its name: what lies above them is the same for many."""
    return "/".join(point.name.split("/")[-2:]) if point.own else point.name
