"""The report on a terminal: aligned columns that fit the width, nothing that needs colour.

Where there is room, number columns keep their width; the first text column takes what is left and is wrapped, at a
slash, dash or space where there is one. In a narrower terminal numbers wrap between words, then the least important
columns go (and are named below the table), and what is still too wide is stacked: a line for each number of a row.
Written here and not with rich because importing that takes longer than reading a hundred
ledgers, and because wide (East Asian) names must still line up. Control characters of a folder's name never
reach the terminal.
"""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Iterable
from dataclasses import replace
from itertools import zip_longest
from typing import TYPE_CHECKING

from ssmke.cost.render.content import sections
from ssmke.cost.render.parts import Column, Section, Table
from ssmke.words import printable

if TYPE_CHECKING:
    from ssmke.cost.report import Report

_GAP = "  "
_NARROWEST = 12
_JOIN = "\N{NO-BREAK SPACE}"


def render(report: Report, *, width: int, full: bool = False) -> str:
    """The whole report, ``width`` columns wide."""
    return "\n".join("\n".join(_section(s, width)) + "\n" for s in sections(report, full=full))


def lines_of(table: Table, width: int) -> list[str]:
    """The table's lines, at most ``width`` wide: a heading, a rule, the rows; or stacked."""
    columns = tuple(replace(c, title=printable(c.title)) for c in table.columns)
    rows = [tuple(printable(cell) for cell in row) for row in table.rows]
    order = sorted((i for i, c in enumerate(columns) if c.spare), key=lambda i: -columns[i].spare)
    for gone in range(len(order) + 1):
        kept = [i for i in range(len(columns)) if i not in order[:gone]]
        few = tuple(columns[i] for i in kept)
        cut = [tuple(row[i] for i in kept) for row in rows]
        widths = _widths(few, cut, width)
        if widths is not None:
            missing = ", ".join(columns[i].title for i in sorted(order[:gone]))
            note = f"No room for {missing}: widen the terminal, or see --format csv." if missing else ""
            return [*_grid(few, cut, table.rule, widths), *(_filled(note, width, "  ") if note else ())]
    return _stacked(columns, rows, table.rule, width)


def _grid(
    columns: tuple[Column, ...], rows: list[tuple[str, ...]], rule_at: int | None, widths: list[int]
) -> list[str]:
    head = [c.title for c in columns]
    rule = "─" * (sum(widths) + len(_GAP) * (len(widths) - 1))
    lines = [*_row(head, columns, widths), rule]
    for number, row in enumerate(rows):
        if number == rule_at:
            lines.append(rule)
        lines += _row(row, columns, widths)
    return lines


def _stacked(
    columns: tuple[Column, ...], rows: list[tuple[str, ...]], rule_at: int | None, width: int
) -> list[str]:
    """A row as its name and, below it, a line for each of its other cells."""
    titles = min(max(cells(c.title) for c in columns), width // 2)
    lines = ["─" * width]
    for number, row in enumerate(rows):
        if number == rule_at:
            lines.append("─" * width)
        lines += [line.rstrip() for line in _wrapped(row[0], width)]
        for column, cell in zip(columns[1:], row[1:], strict=True):
            if not cell:
                continue
            room = width - 2 * len(_GAP) - titles
            pairs = zip_longest(_wrapped(column.title, titles), _wrapped(cell, room), fillvalue="")
            lines += [
                f"{_GAP}{title}{' ' * (titles - cells(title))}{_GAP}{text}".rstrip() for title, text in pairs
            ]
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


def _widths(columns: tuple[Column, ...], rows: list[tuple[str, ...]], width: int) -> list[int] | None:
    """A width for each column, so that they fit; None if they cannot."""
    natural = [
        max(cells(text) for text in (column.title, *(row[i] for row in rows)))
        for i, column in enumerate(columns)
    ]
    over = sum(natural) + len(_GAP) * (len(columns) - 1) - width
    text = [i for i, column in enumerate(columns) if not column.right]
    if over > 0 and text:
        given = min(over, max(0, natural[text[0]] - _NARROWEST))
        natural[text[0]] -= given
        over -= given
    longest = [
        max(cells(word) for t in (column.title, *(row[i] for row in rows)) for word in _words(t))
        for i, column in enumerate(columns)
    ]
    while over > 0:
        # The widest of those that can give: a long phrase takes two lines before a number does.
        giving = [i for i, column in enumerate(columns) if column.right and natural[i] > longest[i]]
        if not giving:
            return None
        natural[max(giving, key=lambda i: natural[i])] -= 1
        over -= 1
    return natural


def _words(text: str) -> list[str]:
    """Where a number's cell may be cut: not between a number and its ">=", "±" or "%"."""
    return [word.replace(_JOIN, " ") for word in re.sub(r"(?<=[>=]) | (?=[%±])", _JOIN, text).split(" ")]


def _phrase(text: str, width: int) -> list[str]:
    """A number's cell in lines of whole words."""
    lines = [""]
    for word in _words(text):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and cells(joined) > width:
            lines.append(word)
        else:
            lines[-1] = joined
    return lines


def _row(row: Iterable[str], columns: tuple[Column, ...], widths: list[int]) -> list[str]:
    wrapped = [
        (_phrase if column.right else _wrapped)(text, width)
        for text, column, width in zip(row, columns, widths, strict=True)
    ]
    lines = []
    for n in range(max(map(len, wrapped))):
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
    if cells(kept) == len(kept):
        lines = textwrap.wrap(kept, width, subsequent_indent=indent, break_on_hyphens=False)
    else:  # textwrap takes a wide character for one column
        first, *rest = _wrapped(kept, width - len(indent))
        lines = [first, *(f"{indent}{line}" for line in rest)]
    return [line.replace("\N{NO-BREAK SPACE}%", " %") for line in lines]
