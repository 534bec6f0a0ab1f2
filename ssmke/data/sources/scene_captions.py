"""Sentences about a rendered scene, as people would write them: varied, some exact, some vague.

Each caption is written at one level of detail: "full" (sizes, colours, shapes, relation and background),
"usual" (no background, a size now and then), "loose" (something left out: a colour, or what kind of thing
it is). Synonyms, word order ("A left of B", "B to the right of A") and frames ("there is ...", "a picture
of ...") vary freely, so two captions of one image seldom share a sentence, and a text encoder cannot lean
on fixed positions.

`caption_words` lists every word that can be written, which is what the shipped tokenizer's vocabulary is
built from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from ssmke.data.sources.scene_plan import CANVAS_COLOURS, COLOURS, Canvas, Scene, Thing

SHAPE_WORDS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "circle": (("circle", "circles"), ("disc", "discs"), ("ball", "balls"), ("dot", "dots")),
    "square": (("square", "squares"), ("box", "boxes"), ("block", "blocks")),
    "triangle": (("triangle", "triangles"), ("pyramid", "pyramids")),
    "star": (("star", "stars"), ("five pointed star", "five pointed stars")),
    "heart": (("heart", "hearts"), ("love heart", "love hearts")),
    "cross": (("cross", "crosses"), ("plus sign", "plus signs")),
    "diamond": (("diamond", "diamonds"), ("rhombus", "rhombuses"), ("kite", "kites")),
    "ring": (("ring", "rings"), ("hoop", "hoops"), ("donut", "donuts")),
}
COLOUR_WORDS: Mapping[str, tuple[str, ...]] = {
    "red": ("red", "scarlet"),
    "purple": ("purple", "violet"),
    "blue": ("blue",),
    "yellow": ("yellow", "golden"),
    "brown": ("brown", "chocolate brown"),
    "grey": ("grey", "gray"),
    "navy": ("navy", "dark blue"),
    "mint": ("mint", "light green"),
    "lavender": ("lavender", "light purple"),
    "beige": ("beige", "sand"),
}
SIZE_WORDS: Mapping[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium sized", "mid sized"),
    "large": ("large", "big", "huge"),
}
# relation: (first phrase second) and (second phrase first)
RELATION_WORDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "left": (
        ("left of", "to the left of", "on the left side of"),
        ("right of", "to the right of", "on the right side of"),
    ),
    "above": (("above", "over", "higher than"), ("below", "under", "beneath")),
    "inside": (("inside", "within", "in the middle of"), ("around", "surrounding", "that contains")),
    "next": (("next to", "beside", "close to"), ("next to", "beside", "near")),
}
NUMBER_WORDS: Mapping[int, tuple[str, ...]] = {
    2: ("two", "a pair of"),
    3: ("three", "three"),
    4: ("four", "four"),
    5: ("five", "five"),
}
THING_WORDS = (("shape", "shapes"), ("thing", "things"), ("figure", "figures"), ("object", "objects"))
FRAMES = (
    *4 * ("{}",),
    "there is {}",
    "a picture of {}",
    "an image with {}",
    "we see {}",
    "a drawing shows {}",
    "this is {}",
    "{} can be seen",
)
CANVAS_FRAMES = ("on {}", "against {}", "in front of {}", "over {}")
LEVELS = ("full", "usual", "loose")
MAX_WORDS = 22  # few people write more, and a batch is padded to its longest caption
LEVEL_CYCLE = ("usual", "full", "usual", "loose", "full")


def write_captions(scene: Scene, count: int) -> tuple[str, ...]:
    """`count` different captions of at most `MAX_WORDS` words, a function of `scene` alone."""
    rng = np.random.default_rng([scene.seed, 1])
    captions: list[str] = []
    while len(captions) < count:
        caption = write_caption(scene, LEVEL_CYCLE[len(captions) % len(LEVEL_CYCLE)], rng)
        if caption not in captions and len(caption.split()) <= MAX_WORDS:
            captions.append(caption)
    return tuple(captions)


def write_caption(scene: Scene, level: str, rng: np.random.Generator) -> str:
    """One caption with the given level of detail ("full", "usual" or "loose")."""
    parts = [_noun(group, level, rng) for group in scene.groups]
    if level == "loose" and len(parts) > 1 and scene.kind != "pair" and rng.random() < 0.4:
        parts, body = [], _inventory(scene, rng)
    else:
        body = _body(scene, parts, level, rng)
    if level == "full":
        body = f"{body} {_one_of(CANVAS_FRAMES, rng).format(_canvas(scene.canvas, rng))}"
    return _one_of(FRAMES, rng).format(body)


def caption_words() -> tuple[str, ...]:
    """Every word a caption can hold, sorted; from the grammar's tables, not from a sample."""
    tables: list[str] = [*COLOURS, *CANVAS_COLOURS, *FRAMES, *CANVAS_FRAMES, *_DIRECTIONS.values()]
    tables += [word for pair in (*SHAPE_WORDS.values(), THING_WORDS) for forms in pair for word in forms]
    tables += [
        word
        for words in (*COLOUR_WORDS.values(), *SIZE_WORDS.values(), *NUMBER_WORDS.values())
        for word in words
    ]
    tables += [text for texts in (*_PLACES.values(), *_CANVAS_WORDS.values()) for text in texts]
    tables += [phrase for both in RELATION_WORDS.values() for phrases in both for phrase in phrases]
    tables += [
        *_LINES["row"],
        *_LINES["column"],
        *_LINES["scattered"],
        *_BETWEEN,
        *_ORDERED["row"],
        *_ORDERED["column"],
    ]
    tables += ["a an and something some with"]
    return tuple(sorted({word for text in tables for word in re.sub(r"\{\w*\}", " ", text).split()}))


_PLACES = {
    "middle": ("in the middle", "in the center", "in the centre"),
    "left": ("on the left", "at the left edge"),
    "right": ("on the right", "at the right edge"),
    "top": ("at the top", "near the top edge"),
    "bottom": ("at the bottom", "near the bottom edge"),
    "top left": ("in the top left corner", "at the upper left"),
    "top right": ("in the top right corner", "at the upper right"),
    "bottom left": ("in the bottom left corner", "at the lower left"),
    "bottom right": ("in the bottom right corner", "at the lower right"),
}
_CANVAS_WORDS = {
    "plain": ("a plain {c} background", "a {c} background", "plain {c}"),
    "speckles": ("a noisy {c} background", "a speckled {c} background", "grainy {c}"),
    "gradient": (
        "a background fading from {c} to {o}",
        "a smooth {c} and {o} gradient",
        "a {c} to {o} gradient",
    ),
    "stripes": ("{c} and {o} stripes", "a striped {c} and {o} background", "{d} stripes of {c} and {o}"),
    "checks": ("a {c} and {o} checkerboard", "a checkered {c} and {o} background", "{c} and {o} tiles"),
}
_LINES = {
    "row": ("in a row", "side by side", "in a horizontal line"),
    "column": ("in a column", "stacked on top of each other", "in a vertical line"),
    "scattered": ("scattered around", "spread out", "here and there"),
}
_DIRECTIONS = {"across": "horizontal", "down": "vertical", "diagonal": "diagonal"}
_BETWEEN = ("{b} between {a} and {c}", "{a} and {c} with {b} in between")
_ORDERED = {
    "row": (
        "{a} then {b} then {c} from left to right",
        "from left to right {a} {b} and {c}",
        "{a} {b} and {c} in a row",
    ),
    "column": (
        "{a} then {b} then {c} from top to bottom",
        "from top to bottom {a} {b} and {c}",
        "{a} {b} and {c} in a column",
    ),
}


def _one_of(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _colour(name: str, rng: np.random.Generator) -> str:
    # The plain name twice as often as any synonym, as in people's captions.
    return name if rng.random() < 0.5 else _one_of(COLOUR_WORDS.get(name, (name,)), rng)


def _noun(group: tuple[Thing, ...], level: str, rng: np.random.Generator) -> str:
    """A noun phrase: "a tiny red disc", "three blue squares", loosely "something red" or "a star"."""
    thing, many = group[0], len(group) > 1
    forms = SHAPE_WORDS[thing.shape]
    name = forms[0 if rng.random() < 0.6 else int(rng.integers(len(forms)))][int(many)]
    words = [_colour(thing.colour, rng), name]
    if rng.random() < {"full": 0.9, "usual": 0.35, "loose": 0.1}[level]:
        words.insert(0, _one_of(SIZE_WORDS[thing.size], rng))
    if level == "loose" and rng.random() < 0.6:
        if rng.random() < 0.5:
            words = [name]
        elif many or rng.random() < 0.5:
            words = [_colour(thing.colour, rng), THING_WORDS[int(rng.integers(len(THING_WORDS)))][int(many)]]
        else:
            return f"something {_colour(thing.colour, rng)}"
    if many:
        number = "some" if level == "loose" and rng.random() < 0.3 else _one_of(NUMBER_WORDS[len(group)], rng)
        return f"{number} {' '.join(words)}"
    return f"{_article(words[0])} {' '.join(words)}"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _body(scene: Scene, parts: list[str], level: str, rng: np.random.Generator) -> str:
    vague = level == "loose" and rng.random() < 0.3
    if scene.kind == "one":
        return parts[0] if vague else f"{parts[0]} {_one_of(_PLACES[scene.relation], rng)}"
    if scene.kind == "group":
        return parts[0] if vague else f"{parts[0]} {_one_of(_LINES[scene.relation], rng)}"
    if scene.kind == "three":
        frames = _BETWEEN if rng.random() < 0.4 else _ORDERED[scene.relation]
        a, b, c = parts
        return _one_of(frames, rng).format(a=a, b=b, c=c)
    if vague:
        return " and ".join(parts if rng.random() < 0.5 else parts[::-1])
    forward, backward = RELATION_WORDS[scene.relation]
    if rng.random() < 0.5:
        return f"{parts[0]} {_one_of(forward, rng)} {parts[1]}"
    return f"{parts[1]} {_one_of(backward, rng)} {parts[0]}"


def _inventory(scene: Scene, rng: np.random.Generator) -> str:
    """The vaguest kind: "four shapes", "a few things one of them red"."""
    things = [thing for group in scene.groups for thing in group]
    many = THING_WORDS[int(rng.integers(len(THING_WORDS)))][1]
    star = things[int(rng.integers(len(things)))]
    number = _one_of(NUMBER_WORDS[min(len(things), 5)], rng)
    return f"{number} {many} with {_noun((star,), 'usual', rng)}"


def _canvas(canvas: Canvas, rng: np.random.Generator) -> str:
    first, other = _colour(canvas.colour, rng), _colour(canvas.other, rng) if canvas.other else ""
    # A gradient has a direction; for tiles and stripes either colour may be named first.
    if other and canvas.pattern != "gradient" and rng.random() < 0.5:
        first, other = other, first
    frame = _one_of(_CANVAS_WORDS[canvas.pattern], rng)
    return frame.format(c=first, o=other, d=_DIRECTIONS.get(canvas.direction, ""))
