"""Words in messages, reports and pages: numbers of things, shares, durations, and names that come from folders."""

from __future__ import annotations


def counted(number: int, one: str, many: str = "") -> str:
    """``1 epoch``, ``9,000 pairs``; ``many``: the plural that is not ``one`` with an s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def percent(share: float) -> str:
    """``91.2 %``; what is there at all is never ``0.0 %``."""
    return "<0.1 %" if 0 < share < 0.0005 else f"{share:.1%}".replace("%", " %")


def duration(seconds: float) -> str:
    """``40 s``, ``27 min``, ``5.3 h``, ``2.1 days``."""
    if seconds < 59.5:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:,.1f} h" if seconds < 172_800 else f"{seconds / 86_400:,.1f} days"


def printable(text: str) -> str:
    """Without control and direction characters and line breaks: a folder's name must not drive the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


_CONTROLS = {
    code: "\N{REPLACEMENT CHARACTER}"
    for code in (*range(0x20), *range(0x7F, 0xA0), 0x061C, *range(0x200E, 0x2010), *range(0x2028, 0x202F),
                 *range(0x2066, 0x206A), *range(0xD800, 0xE000))
    if code not in (0x09, 0x0A)
}  # fmt: skip


def on_screen(text: str) -> str:
    """``text`` of several lines for a terminal or log: what would steer it, or reorder its words, is masked.

    Other than `printable` it keeps line breaks, and every letter and blank of every script.
    """
    return text.translate(_CONTROLS)
