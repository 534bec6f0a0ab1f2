"""What a rendered scene contains, and which split it may be in.

A scene is a small composition (one thing, a pair in a relation, a counted group, a group beside a thing,
three in a line) before a background. Everything is a pure function of (seed, split, number): `plan_scenes`
draws the contents, `scene_render.py` draws the pixels, `scene_captions.py` writes the sentences.

Splits are disjoint in COMPOSITION. `Scene.key` names what is shown and how it is arranged, without size,
background or exact place; the right-hand neighbour of a relation is written in one canonical order, so "A
left of B" and "B right of A" share a key. A hash of the key, not the drawing order, decides the split: 80 %
of all keys can only appear in train, 6 % in val, 14 % in test, whatever the seed. Val and test show every
key at most once, or one caption would have several right images by construction.

Cost: about 70 us a drawn scene (a split keeps its share of them); planning is sequential and done once, drawing
is parallel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "ring")
CANVAS_COLOURS: Mapping[str, tuple[int, int, int]] = {
    "white": (242, 242, 240),
    "grey": (150, 152, 156),
    "black": (24, 24, 28),
    "beige": (226, 207, 170),
    "mint": (168, 222, 190),
    "lavender": (196, 182, 232),
    "navy": (28, 36, 92),
    "peach": (250, 190, 160),
}
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (208, 30, 36),
    "orange": (244, 132, 22),
    "yellow": (246, 218, 38),
    "green": (36, 146, 56),
    "blue": (40, 84, 214),
    "purple": (126, 40, 160),
    "pink": (244, 110, 178),
    "brown": (120, 72, 36),
    "black": (20, 20, 22),
    "white": (250, 250, 250),
}
# Pairs of names that can hardly be told apart by eye; a thing never has a colour that blends with its canvas.
BLENDS: Mapping[str, frozenset[str]] = {
    "black": frozenset({"black", "navy"}),
    "white": frozenset({"white"}),
    "yellow": frozenset({"beige"}),
    "orange": frozenset({"peach"}),
    "pink": frozenset({"peach", "lavender"}),
    "blue": frozenset({"navy"}),
    "purple": frozenset({"navy"}),
}
PATTERNS = ("plain", "gradient", "stripes", "checks", "speckles")
RADIUS: Mapping[str, float] = {"small": 0.085, "medium": 0.135, "large": 0.19}
SIZES = tuple(RADIUS)
SPLITS = ("train", "val", "test")
KINDS = ("one", "pair", "group", "group and one", "three")
KIND_SHARES = (0.12, 0.42, 0.10, 0.16, 0.20)
HOSTS = ("circle", "square", "diamond", "ring", "heart")  # wide enough to hold another thing


@dataclass(frozen=True)
class Thing:
    """One drawn shape; `x`, `y` (centre) and `radius` in fractions of the image side, `turn` in degrees."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    turn: float = 0.0

    @property
    def kind(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Canvas:
    """The background: a pattern of one colour, or of two (`other` is "" for one)."""

    pattern: str
    colour: str
    other: str = ""
    direction: str = ""


@dataclass(frozen=True)
class Scene:
    """Contents of one image.

    `groups` holds the things in caption order, alike things together; `relation` says how they are arranged:
    a cell ("top left") for "one"; "left", "above" (first is left of, above the second), "inside", "next" for
    two; "row", "column", "scattered" for a group; "row", "column" for three.
    """

    kind: str
    groups: tuple[tuple[Thing, ...], ...]
    relation: str
    canvas: Canvas
    seed: int

    @property
    def key(self) -> str:
        """The composition: what decides the split (see the module docstring)."""
        names = [f"{len(group)} {group[0].kind}" for group in self.groups]
        if self.relation == "next":  # the one relation without an order
            names.sort()
        return f"{self.kind}: {', '.join(names)}: {self.relation}"


def split_of(key: str) -> str:
    """The only split in which a composition may appear: a hash of its name, so no seed can move it."""
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 100
    return "train" if bucket < 80 else "val" if bucket < 86 else "test"


def plan_scenes(seed: int, split: str, count: int) -> list[Scene]:
    """`count` scenes of one split; a longer plan of the same seed starts with the shorter one."""
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    scenes: list[Scene] = []
    taken: set[str] = set()
    while len(scenes) < count:
        scene = draw_scene(rng)
        if split_of(scene.key) != split or (split != "train" and scene.key in taken):
            continue
        taken.add(scene.key)
        scenes.append(scene)
    return scenes


def draw_scene(rng: np.random.Generator) -> Scene:
    """One scene at random, of any split."""
    kind = KINDS[int(rng.choice(len(KINDS), p=KIND_SHARES))]
    canvas = _canvas(rng)
    groups, relation = _ARRANGE[kind](rng, canvas)
    return Scene(kind, groups, relation, canvas, int(rng.integers(2**31)))


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _canvas(rng: np.random.Generator) -> Canvas:
    pattern = _pick(rng, PATTERNS)
    names = tuple(CANVAS_COLOURS)
    colour = _pick(rng, names)
    if pattern in ("plain", "speckles"):
        return Canvas(pattern, colour)
    other = _pick(rng, tuple(name for name in names if name != colour))
    directions = {"gradient": ("across", "down"), "stripes": ("across", "down", "diagonal"), "checks": ("",)}
    return Canvas(pattern, colour, other, _pick(rng, directions[pattern]))


def _look(
    rng: np.random.Generator, canvas: Canvas, avoid: tuple[tuple[str, str], ...] = ()
) -> tuple[str, str]:
    """A (shape, colour) that stands out from the canvas and is none of `avoid`."""
    while True:
        look = _pick(rng, SHAPES), _pick(rng, tuple(COLOURS))
        if look not in avoid and not BLENDS.get(look[1], frozenset()) & {canvas.colour, canvas.other}:
            return look


def _thing(
    rng: np.random.Generator, look: tuple[str, str], size: str, x: float, y: float, scale: float = 1.0
) -> Thing:
    radius = RADIUS[size] * scale * rng.uniform(0.92, 1.08)
    return Thing(look[0], look[1], size, x, y, radius, float(rng.uniform(-10, 10)))


Groups = tuple[tuple[Thing, ...], ...]


def _one(rng: np.random.Generator, canvas: Canvas) -> tuple[Groups, str]:
    column, row = int(rng.integers(3)), int(rng.integers(3))
    place = (("left", "", "right")[column], ("top", "", "bottom")[row])
    x, y = (0.26 + 0.24 * cell + rng.uniform(-0.02, 0.02) for cell in (column, row))
    thing = _thing(rng, _look(rng, canvas), _pick(rng, SIZES), x, y)
    return ((thing,),), f"{place[1]} {place[0]}".strip() or "middle"


def _pair(rng: np.random.Generator, canvas: Canvas) -> tuple[Groups, str]:
    relation = ("left", "above", "inside", "next")[int(rng.choice(4, p=(0.3, 0.3, 0.2, 0.2)))]
    first = _look(rng, canvas)
    second = _look(rng, canvas, (first,))
    if relation == "inside":
        while second[0] not in HOSTS or second[1] == first[1]:
            second = _look(rng, canvas, (first,))
        x, y = rng.uniform(0.42, 0.58), rng.uniform(0.42, 0.58)
        host = Thing(
            second[0], second[1], "large", x, y, float(rng.uniform(0.31, 0.36)), float(rng.uniform(-8, 8))
        )
        guest = _thing(rng, first, "small", x + rng.uniform(-0.02, 0.02), y + rng.uniform(-0.02, 0.02), 1.15)
        return ((guest,), (host,)), relation
    if relation == "next":
        one = _thing(rng, first, _pick(rng, SIZES[:2]), 0, 0)
        two = _thing(rng, second, _pick(rng, SIZES[:2]), 0, 0)
        side = rng.choice((-1.0, 1.0))
        gap = one.radius + two.radius + 0.03
        x, y = rng.uniform(0.42, 0.58), rng.uniform(0.25, 0.75)
        moved = [(one, x - side * gap / 2), (two, x + side * gap / 2)]
        things = [Thing(t.shape, t.colour, t.size, float(at), float(y), t.radius, t.turn) for t, at in moved]
        return ((things[0],), (things[1],)), relation
    near, far = rng.uniform(0.25, 0.29), rng.uniform(0.71, 0.75)
    middle = rng.uniform(0.3, 0.7)
    cross = middle + rng.uniform(-0.06, 0.06)
    places = ((near, middle), (far, cross)) if relation == "left" else ((middle, near), (cross, far))
    one = _thing(rng, first, _pick(rng, SIZES), *places[0])
    two = _thing(rng, second, _pick(rng, SIZES), *places[1])
    return ((one,), (two,)), relation


def _row(
    rng: np.random.Generator, look: tuple[str, str], count: int, along: str, at: float, size: str
) -> tuple[Thing, ...]:
    """`count` alike things in a row (at height `at`) or a column (at `at` from the left)."""
    step = min(0.30, 0.72 / max(count - 1, 1))
    scale = min(1.0, 0.43 * step / RADIUS[size])
    things = []
    for number in range(count):
        place = 0.5 + (number - (count - 1) / 2) * step, at + rng.uniform(-0.02, 0.02)
        x, y = place if along == "row" else place[::-1]
        things.append(_thing(rng, look, size, float(x), float(y), scale))
    return tuple(things)


def _group(rng: np.random.Generator, canvas: Canvas) -> tuple[Groups, str]:
    relation = _pick(rng, ("row", "column", "scattered"))
    count, look = int(rng.integers(2, 6)), _look(rng, canvas)
    size = _pick(rng, SIZES[:2])
    if relation != "scattered":
        return (_row(rng, look, count, relation, float(rng.uniform(0.3, 0.7)), size),), relation
    # A knight's-move spread: cells of a 3 x 3 grid, never all in one line.
    cells = rng.permutation(9)[:count]
    while len(set(cells % 3)) == 1 or len(set(cells // 3)) == 1:
        cells = rng.permutation(9)[:count]
    spots = [(0.22 + 0.28 * int(c % 3), 0.22 + 0.28 * int(c // 3)) for c in cells]
    jitter = rng.uniform(-0.04, 0.04, (count, 2))
    things = [
        _thing(rng, look, size, x + jx, y + jy, 0.9) for (x, y), (jx, jy) in zip(spots, jitter, strict=True)
    ]
    return (tuple(things),), relation


def _group_and_one(rng: np.random.Generator, canvas: Canvas) -> tuple[Groups, str]:
    relation = _pick(rng, ("left", "above"))
    look = _look(rng, canvas)
    other = _look(rng, canvas, (look,))
    group_first = bool(rng.integers(2))
    ends = float(rng.uniform(0.25, 0.29)), float(rng.uniform(0.71, 0.75))
    along = "row" if relation == "above" else "column"
    group = _row(rng, look, int(rng.integers(2, 5)), along, ends[0] if group_first else ends[1], "small")
    middle, end = float(rng.uniform(0.4, 0.6)), ends[1] if group_first else ends[0]
    single = _thing(rng, other, _pick(rng, SIZES), *((middle, end) if relation == "above" else (end, middle)))
    return ((group, (single,)) if group_first else ((single,), group)), relation


def _three(rng: np.random.Generator, canvas: Canvas) -> tuple[Groups, str]:
    relation = _pick(rng, ("row", "column"))
    looks: list[tuple[str, str]] = []
    for _ in range(3):
        looks.append(_look(rng, canvas, tuple(looks)))
    size = _pick(rng, SIZES[:2])
    at = rng.uniform(0.35, 0.65)
    groups = []
    for look, place in zip(looks, (0.2, 0.5, 0.8), strict=True):
        spot = float(place + rng.uniform(-0.02, 0.02)), float(at + rng.uniform(-0.04, 0.04))
        groups.append((_thing(rng, look, size, *(spot if relation == "row" else spot[::-1]), 0.95),))
    return tuple(groups), relation


_ARRANGE = {"one": _one, "pair": _pair, "group": _group, "group and one": _group_and_one, "three": _three}
