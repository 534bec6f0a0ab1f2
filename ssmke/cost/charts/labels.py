"""Where the names of points go, so that none lies on a point or on another name.

Greedy: in the order given, each name takes the first of twelve places around its point that is free and inside
the plot, or none. Sizes are estimated from the number of letters, which is near enough for charts whose fonts
are the reader's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# (dx, dy, anchor) from the point, down is positive, in the plot's units (pixels, points).
_PLACES = (
    (11, 4, "start"), (-11, 4, "end"), (0, -11, "middle"), (0, 20, "middle"),
    (9, -9, "start"), (-9, -9, "end"), (9, 17, "start"), (-9, 17, "end"),
    (8, -11, "end"), (-8, -11, "start"), (8, 20, "end"), (-8, 20, "start"),
)  # fmt: skip
_ASCENT = 11
_RADIUS = 9

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Spot:
    """The baseline's start, middle or end (``anchor``) relative to the point."""

    dx: float
    dy: float
    anchor: str


def place(
    points: Sequence[tuple[float, float, str]],
    width: float,
    height: float,
    *,
    letter: float = 6.4,
    line: float = 14.0,
) -> list[Spot | None]:
    """A spot for each (x, y, name), y downwards; None where nothing is free."""
    taken: list[Box] = [(x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS) for x, y, _ in points]
    spots: list[Spot | None] = []
    for x, y, name in points:
        found = None
        for dx, dy, anchor in _PLACES:
            box = _box(x + dx, y + dy, len(name) * letter, line, anchor)
            inside = box[0] >= -6 and box[2] <= width + 4 and box[1] >= -8 and box[3] <= height
            if inside and not any(_touch(box, other) for other in taken):
                found = Spot(dx, dy, anchor)
                taken.append(box)
                break
        spots.append(found)
    return spots


def _box(x: float, y: float, long: float, line: float, anchor: str) -> Box:
    left = x - (long if anchor == "end" else long / 2 if anchor == "middle" else 0)
    return (left, y - _ASCENT, left + long, y - _ASCENT + line)


def _touch(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
