"""What a section of the report is made of: plain text, without layout or escapes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """``right``: numbers, aligned; else text. ``spare``: where there is no room for all, the highest goes first."""

    title: str
    right: bool = True
    spare: int = 0


@dataclass(frozen=True)
class Table:
    """``rule``: the row before which a line is drawn (sums), None for none."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    rule: int | None = None


@dataclass(frozen=True)
class Section:
    """A heading, a table (or none), and paragraphs below it. ``legend``: what the marks in the table mean."""

    title: str
    table: Table | None = None
    legend: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Marks:
    """Numbers texts in order of appearance."""

    def __init__(self) -> None:
        self._texts: dict[str, int] = {}

    def of(self, text: str) -> str:
        return f"[{self._texts.setdefault(text, len(self._texts) + 1)}]"

    def legend(self) -> tuple[str, ...]:
        return tuple(f"[{number}] {text}" for text, number in self._texts.items())
