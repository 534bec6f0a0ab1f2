"""Words in messages and on pages: numbers of things, and names that come from folders."""

from __future__ import annotations


def counted(number: int, one: str, many: str = "") -> str:
    """``1 epoch``, ``9,000 pairs``; ``many``: the plural that is not ``one`` with an s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def printable(text: str) -> str:
    """Without control and direction characters and line breaks: a folder's name must not drive the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
