"""Cleaning as options: images too small or too long to be pictures, captions that say nothing of them.

Everything is off by default, and what `ssmke.data.captions` and `ssmke.data.decode` refuse is refused in any
case. The boilerplate patterns are few. Each fits the whole caption and stands for text that a machine or a
web page wrote without looking at the picture, so a caption that says anything else is kept: of the 171,310
captions that people wrote for Flickr8k and Flickr30k they drop none. Whoever wants more has to score captions
against their images. A caption costs about 7 microseconds with everything on, 3.5 of them for the patterns.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from ssmke.data.captions import clean_caption
from ssmke.errors import BadSample, ConfigError

_IMAGE = r"(?:image|photo|photograph|picture|pic|img|foto)"
_BOILERPLATE: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (what, re.compile(pattern, re.IGNORECASE))
    for what, pattern in (
        # Alt text that was filled with the name of the file; names with spaces often do describe, and stay.
        ("file name", r"\S+\.(?:jpe?g|png|gif|webp|tiff?|bmp|svg|heic)"),
        ("web address", r"(?:https?://|www\.)\S+|(?:[a-z0-9-]+\.)+(?:com|net|org)(?:/\S*)?"),
        # The counters of cameras, phones and editors: "DSC_0012", "IMG 20190102 113000", "image (3 of 7)". Words
        # that may also name what is seen (a slide in a playground) count only with a number.
        (
            "counter",
            rf"(?:{_IMAGE}|untitled|(?=.*\d)(?:dsc[nf]?|dcim|imgp|pict|mvi|gopr|pxl|wp|scan|slide|screen ?shot))"
            r"(?:[\s_\-#.:()/]|\d|\bat\b|\b[ap]m\b|\bof\b)*",
        ),
        ("identifier", r"(?=\S*\d)(?:[0-9a-f]{16,}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"),
        # Written by a social network's classifier, for want of a description.
        ("automatic text", rf"{_IMAGE} may contain\b.*|may be an? .*{_IMAGE} of\b.*"),
        # What a page shows where a picture is missing, or how its viewer is used.
        (
            "placeholder",
            rf"no {_IMAGE}(?: description)?(?: yet)?(?: available)?[.!]?"
            rf"|{_IMAGE} (?:is )?(?:currently )?(?:not (?:yet )?(?:available|found)|unavailable|coming soon)[.!]?"
            rf"|(?:default|missing|placeholder|featured|stock|main|product) {_IMAGE}"
            r"|placeholder|thumbnail|loading[.…]+|undefined|null|none|n/a|alt(?: text)?",
        ),
        (
            "instruction",
            rf"(?:click|tap|press|hover)(?: (?:on|over|here|the|this|each|any|{_IMAGE}s?|thumbnails?)){{0,4}}"
            r" (?:to|for) (?:a |the )?(?:enlarge|zoom|expand|view|open|download|large|larger|bigger|full)\b"
            r"(?:[ -](?:in|it|the|a|an|size|sized|version|view|gallery|screen|larger|full|high|resolution"
            rf"|{_IMAGE}s?))*[.!]?",
        ),
        (
            "rights",
            r"(?:(?:©|\(c\)|copyright)[^.]*)?(?:\.\s*)?all rights reserved[.!]?|(?:©|\(c\)|copyright)\s*\d*",
        ),
    )
)


@dataclasses.dataclass(frozen=True)
class CleaningConfig:
    """What is left out beyond what cannot be used at all; by default nothing."""

    min_side: int = 0
    """Leave out images with a shorter side below this."""
    max_aspect: float = 0.0
    """Leave out images whose longer side is more than this many times the shorter; 0: no limit."""
    min_words: int = 0
    """Leave out captions of fewer words (split at spaces, punctuation not counted)."""
    boilerplate: bool = False
    """Leave out captions that say nothing of the picture: file names, counters, "click to enlarge"."""
    drop_repeats: bool = False
    """Leave out captions that an image already has, letter for letter."""

    def __post_init__(self) -> None:
        if self.min_side < 0:
            raise ConfigError(f"--clean.min-side {self.min_side}: must be 0 (no limit) or more")
        if self.max_aspect != 0 and not self.max_aspect >= 1:
            raise ConfigError(f"--clean.max-aspect {self.max_aspect}: must be 0 (no limit) or at least 1")
        if self.min_words < 0:
            raise ConfigError(f"--clean.min-words {self.min_words}: must be 0 (no limit) or more")

    def identity(self) -> dict[str, Any]:
        """Value by flag name, of those that differ from the default: what an `ImportState` is told apart by."""
        return {
            f"--clean.{field.name.replace('_', '-')}": getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }


def usable_captions(
    raw: Sequence[str], config: CleaningConfig
) -> tuple[list[str], list[tuple[int, BadSample]]]:
    """The cleaned captions of an image, and ``(number, why)`` of those left out.

    Reasons: those of `clean_caption`, "short caption", "boilerplate caption", "repeated caption".
    """
    kept: list[str] = []
    dropped: list[tuple[int, BadSample]] = []
    for number, caption in enumerate(raw):
        try:
            text = clean_caption(caption)
            _check_caption(text, config)
            if config.drop_repeats and text in kept:
                raise BadSample("repeated caption")
        except BadSample as error:
            dropped.append((number, error))
        else:
            kept.append(text)
    return kept, dropped


def check_size(width: int, height: int, config: CleaningConfig) -> None:
    """Refuse what ``config`` has no use for.

    Raises:
        BadSample: "too small" or "extreme aspect".
    """
    shorter, longer = sorted((width, height))
    if shorter < config.min_side:
        raise BadSample("too small", f"{width} x {height}")
    if config.max_aspect and longer > config.max_aspect * shorter:
        raise BadSample("extreme aspect", f"{width} x {height}")


def boilerplate(caption: str) -> str | None:
    """Which kind of boilerplate a cleaned caption is; None if it may well describe the picture."""
    for what, pattern in _BOILERPLATE:
        if pattern.fullmatch(caption):
            return what
    return None if any(map(_says_something, caption)) else "no words"


def _check_caption(caption: str, config: CleaningConfig) -> None:
    words = sum(1 for word in caption.split() if any(map(str.isalnum, word))) if config.min_words else 0
    if words < config.min_words:
        raise BadSample("short caption", f"{words} of {config.min_words} words")
    what = boilerplate(caption) if config.boilerplate else None
    if what is not None:
        raise BadSample("boilerplate caption", what)


def _says_something(character: str) -> bool:
    """Letters of any script do, and pictures such as emoji; digits, punctuation and mathematical signs do not."""
    category = unicodedata.category(character)
    return category[0] == "L" or category == "So"
