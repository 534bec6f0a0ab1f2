"""The report on a terminal: aligned columns that fit the width, nothing that needs colour.

Number columns keep their width; the first text column takes what is left and is wrapped, at a slash, dash or space
where there is one. Written here and not with rich because importing that takes longer than reading a hundred
ledgers, and because wide (East Asian) names must still line up. Control characters of a folder's name never
reach the terminal.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ssmke.cost.render.content import Column, Section, Table, sections

if TYPE_CHECKING:
    from ssmke.cost.report import Report

_GAP = "  "
_NARROWEST = 12


def render(report: Report, *, width: int, full: bool = False) -> str:
    """The whole report, ``width`` columns wide."""
    return "\n".join("\n".join(_section(s, width)) + "\n" for s in sections(report, full=full))


def printable(text: str) -> str:
    """Without control and direction characters: a folder's name must not drive the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def lines_of(table: Table, width: int) -> list[str]:
    """The table's lines: a heading, a rule, the rows."""
    rows = [tuple(printable(cell) for cell in row) for row in table.rows]
    widths = _widths(table.columns, rows, width)
    head = [c.title for c in table.columns]
    rule = "─" * (sum(widths) + len(_GAP) * (len(widths) - 1))
    lines = [*_row(head, table.columns, widths), rule]
    for number, row in enumerate(rows):
        if number == table.rule:
            lines.append(rule)
        lines += _row(row, table.columns, widths)
    return lines


def cells(text: str) -> int:
    """Terminal columns that ``text`` takes: wide characters two, combining ones none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def _section(section: Section, width: int) -> list[str]:
    title = printable(section.title)
    lines = [*_wrapped(title, width), ""]
    if section.table is not None:
        lines += lines_of(section.table, width)
    for text in section.legend:
        lines += _filled(text, width, "    ")
    if section.notes and section.table is not None:
        lines.append("")
    for text in section.notes:
        lines += _filled(text, width, "  ")
    return lines


def _widths(columns: tuple[Column, ...], rows: list[tuple[str, ...]], width: int) -> list[int]:
    natural = [
        max(cells(text) for text in (column.title, *(row[i] for row in rows)))
        for i, column in enumerate(columns)
    ]
    over = sum(natural) + len(_GAP) * (len(columns) - 1) - width
    text = [i for i, column in enumerate(columns) if not column.right]
    if over > 0 and text:
        natural[text[0]] = max(_NARROWEST, natural[text[0]] - over)
    return natural


def _row(row: Iterable[str], columns: tuple[Column, ...], widths: list[int]) -> list[str]:
    wrapped = [
        [text] if column.right else _wrapped(text, width)
        for text, column, width in zip(row, columns, widths, strict=True)
    ]
    lines = []
    for n in range(max(len(cell) for cell in wrapped)):
        parts = []
        for cell, column, width in zip(wrapped, columns, widths, strict=True):
            text = cell[n] if n < len(cell) else ""
            space = " " * (width - cells(text))
            parts.append(space + text if column.right else text + space)
        lines.append(_GAP.join(parts).rstrip())
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    """``text`` in pieces of at most ``width`` columns, cut after a space, else a slash or dash, else anywhere."""
    lines, line = [], ""
    for c in text:
        if line and cells(line + c) > width:
            cut = line.rfind(" ") + 1 or max(line.rfind(mark) for mark in "/-_") + 1 or len(line)
            lines.append(line[:cut].rstrip())
            line = line[cut:]
        line += c
    return [*lines, line]


def _filled(text: str, width: int, indent: str) -> list[str]:
    """A paragraph; a number keeps its percent sign."""
    kept = printable(text).replace(" %", "\N{NO-BREAK SPACE}%")
    lines = textwrap.wrap(kept, width, subsequent_indent=indent, break_on_hyphens=False)
    return [line.replace("\N{NO-BREAK SPACE}%", " %") for line in lines]
