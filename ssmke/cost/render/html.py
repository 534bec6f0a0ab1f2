"""The report as one HTML page: no script, no external resource, light and dark by the reader's setting.

Wide tables scroll within themselves, so the page itself never does sideways, down to a phone. A content security
policy (`ssmke.cost.render.policy`) forbids everything but this one style, should an escape ever be missed.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from ssmke.cost.render.content import sections
from ssmke.cost.render.parts import Section, Table
from ssmke.cost.render.policy import head
from ssmke.words import printable

if TYPE_CHECKING:
    from ssmke.cost.report import Report

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5b6470; --line: #d8dde3; --page: #fff; --even: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --soft: #9aa4af; --line: #343b43; --page: #14181c; --even: #1b2026; }
}
body { margin: 0 auto; max-width: 75rem; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .875rem; }
th { font-weight: 600; color: var(--soft); border-bottom: 2px solid var(--line); vertical-align: bottom; }
th, td { padding: .35rem .6rem; text-align: left; vertical-align: top; overflow-wrap: normal; }
td:first-child { min-width: 9rem; overflow-wrap: anywhere; }
.n { text-align: right; white-space: nowrap; }
tbody tr:nth-child(even) { background: var(--even); }
tr.sum td { border-top: 2px solid var(--line); font-weight: 600; }
.notes { padding-left: 1.1rem; margin: .6rem 0; color: var(--soft); font-size: .85rem; }
.legend { list-style: none; padding-left: 0; }
"""


def render(report: Report, *, full: bool = False) -> str:
    return page("Training cost", "\n".join(section(s) for s in sections(report, full=full)))


def page(title: str, body: str, style: str = "") -> str:
    """A whole page around ``body``, which is HTML; ``style``: more CSS than that of text and tables."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"{head(_STYLE + style)}"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n</head>\n<body>\n<h1>{escaped(title)}</h1>\n"
        f"{body}\n</body>\n</html>\n"
    )


def escaped(text: str) -> str:
    """``text`` for element content and quoted attributes."""
    return escape(printable(text), quote=True)


def section(section: Section, more: str = "") -> str:
    """A section as HTML; ``more``: HTML that goes below its table."""
    parts = [f"<section>\n<h2>{escaped(section.title)}</h2>"]
    if section.table is not None:
        parts.append(f'<div class="wide">\n{_table(section.table)}\n</div>')
    if more:
        parts.append(more)
    for name, texts in (("notes legend", section.legend), ("notes", section.notes)):
        if texts:
            items = "\n".join(f"<li>{escaped(text)}</li>" for text in texts)
            parts.append(f'<ul class="{name}">\n{items}\n</ul>')
    return "\n".join((*parts, "</section>"))


def _table(table: Table) -> str:
    classes = [' class="n"' if c.right else "" for c in table.columns]
    head = "".join(
        f'<th scope="col"{k}>{escaped(c.title)}</th>' for k, c in zip(classes, table.columns, strict=True)
    )
    rows = []
    for number, row in enumerate(table.rows):
        marked = ' class="sum"' if table.rule is not None and number >= table.rule else ""
        cells = "".join(f"<td{k}>{escaped(cell)}</td>" for k, cell in zip(classes, row, strict=True))
        rows.append(f"<tr{marked}>{cells}</tr>")
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody>\n</table>"
