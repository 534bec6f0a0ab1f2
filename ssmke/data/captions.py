"""Captions as every later stage sees them: one line of normalised Unicode, never empty, of bounded length.

Crawled captions hold line breaks, tabs, zero bytes, decomposed accents and whole web pages. All are settled
here, once, both when shards are written and when they are read (cleaning twice changes nothing). Words,
case and punctuation are left alone: that is the tokenizer's business. A caption costs about a microsecond.
"""

from __future__ import annotations

import re
import unicodedata

from ssmke.errors import BadSample

CLEANING = 1
"""Version of `clean_caption`, to be raised with every change of what it gives: cached features depend on it."""
MAX_CHARACTERS = 2000
"""Far above the 64 tokens that the text encoder reads (about 400 characters), far below what hurts."""
_LAST_WORD = 100
"""A longer last word is cut, a shorter one left out."""

# Control characters carry no meaning in a caption; neither do the zero-width space and the byte-order mark.
# Other format characters stay: joiners are part of the spelling in several scripts.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200b\ufeff]")


def clean_caption(raw: str | bytes) -> str:
    """Normalise to NFC, turn control characters and runs of whitespace into single spaces, cut the end off.

    Raises:
        BadSample: "caption not UTF-8" for undecodable bytes, or for text with lone surrogates (what bytes that
            are not UTF-8 become when they are read with ``errors="surrogateescape"``); "empty caption".
    """
    try:
        if isinstance(raw, bytes):
            text = raw.decode("utf-8")
        else:
            raw.encode("utf-8")
            text = raw
    except UnicodeError as error:
        raise BadSample("caption not UTF-8", str(error)) from None
    text = " ".join(_CONTROL.sub(" ", unicodedata.normalize("NFC", text)).split())
    if len(text) > MAX_CHARACTERS:
        # In scripts without spaces the last one may be far away, and what follows it the whole caption.
        space = text.rfind(" ", MAX_CHARACTERS - _LAST_WORD, MAX_CHARACTERS + 1)
        text = text[: MAX_CHARACTERS if space < 0 else space]
    if not text:
        raise BadSample("empty caption")
    return text
