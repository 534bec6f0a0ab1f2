"""The report as GitHub-flavoured Markdown. Cells are escaped: a name can be no link, image, code, HTML or column."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ssmke.cost.render.content import sections
from ssmke.cost.render.parts import Section, Table
from ssmke.words import printable

if TYPE_CHECKING:
    from ssmke.cost.report import Report


def render(report: Report, *, full: bool = False) -> str:
    return document(sections(report, full=full))


def document(parts: Iterable[Section]) -> str:
    """Sections below each other."""
    return "\n".join("\n".join(_section(part)) + "\n" for part in parts)


def escaped(text: str) -> str:
    """``text`` as Markdown that shows it and does nothing else; bare addresses are no links either."""
    safe = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    safe = re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", safe)
    return re.sub(
        r"(?i)://|www\.|@",
        lambda m: m[0].replace(":", "&#58;").replace(".", "&#46;").replace("@", "&#64;"),
        safe,
    )


def _section(section: Section) -> list[str]:
    lines = [f"## {escaped(section.title)}", ""]
    if section.table is not None:
        lines += [*_table(section.table), ""]
    # List items, also where a paragraph begins with a number: "1." there would be another list.
    lines += [f"- {_item(text)}" for text in (*section.legend, *section.notes)]
    return lines


def _item(text: str) -> str:
    return re.sub(r"^(\d+)\.", r"\1\\.", escaped(text))


def _table(table: Table) -> list[str]:
    rows = [tuple(c.title for c in table.columns), *table.rows]
    lines = ["| " + " | ".join(escaped(cell) for cell in row) + " |" for row in rows]
    return [
        lines[0],
        "| " + " | ".join("--:" if c.right else "---" for c in table.columns) + " |",
        *lines[1:],
    ]
