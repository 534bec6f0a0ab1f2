"""Numbers of things in messages."""

from __future__ import annotations


def counted(number: int, one: str, many: str = "") -> str:
    """``1 epoch``, ``9,000 pairs``; ``many``: the plural that is not ``one`` with an s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
