"""The shell of a page and its few building blocks: one HTML file, nothing fetched, no script.

The page carries its own content policy (nothing but its one style element), so that even a mistake in escaping
could not run, load or restyle anything; it works in MLflow's sandboxed artifact frame and from a disk. Arguments named
``text`` are escaped here, those named ``html`` were by whoever made them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssmke.cost.charts.svg import escape
from ssmke.cost.render.policy import head, without_style_attributes

STYLE = Path(__file__).parents[1] / "data" / "dashboard.css"


@dataclass(frozen=True)
class Tile:
    """A number with its name above and what to know about it below."""

    name: str
    value: str
    note: str = ""
    unknown: bool = False


@dataclass(frozen=True)
class Column:
    """``kind``: "text" for words at the left, "strong" for what the eye should find."""

    title: str
    kind: str = ""


def page(title: str, eyebrow: str, html_sub: str, html_body: str, footer: str) -> str:
    """A whole document."""
    html_body, rules = without_style_attributes(html_body)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"{head(STYLE.read_text(encoding='utf-8') + rules)}"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{escape(title)}</title>\n'
        f"</head>\n<body>\n<header><p class="
        f'"eyebrow">{escape(eyebrow)}</p><h1>{escape(title)}</h1><p class="sub">{html_sub}</p></header>\n'
        f"{html_body}\n<footer>{escape(footer)}</footer>\n</body>\n</html>\n"
    )


def section(title: str, sub: str, html: str) -> str:
    """A card; nothing where there is nothing in it."""
    if not html:
        return ""
    below = f'<p class="sub">{escape(sub)}</p>' if sub else ""
    return f"<section><h2>{escape(title)}</h2>{below}{html}</section>\n"


def pair(*html: str) -> str:
    """Cards beside each other where there is room."""
    return f'<div class="pair">{"".join(html)}</div>\n' if any(html) else ""


def tiles(items: Iterable[Tile]) -> str:
    cells = "".join(
        f"<div><dt>{escape(t.name)}</dt><dd{' class=unknown' if t.unknown else ''}>{escape(t.value)}</dd>"
        f"{f'<small>{escape(t.note)}</small>' if t.note else ''}</div>"
        for t in items
    )
    return f'<dl class="tiles">{cells}</dl>\n'


def hero(value: str, caption: str, html_right: str, *, word: bool = False) -> str:
    """The number that the page is about."""
    kind = "big word" if word else "big"
    return (
        f'<section class="hero"><div><div class="{kind}">{escape(value)}</div>'
        f'<p class="sub">{escape(caption)}</p></div><div>{html_right}</div></section>\n'
    )


def table(
    columns: Sequence[Column], html_rows: Sequence[Sequence[str]], html_foot: Sequence[str] = ()
) -> str:
    """Rows that become cards on a narrow screen: each cell knows its column's name."""
    head = "".join(f'<th scope="col" class="{c.kind}">{escape(c.title)}</th>' for c in columns)
    body = "".join(f"<tr>{_cells(columns, row)}</tr>" for row in html_rows)
    foot = f"<tfoot><tr>{_cells(columns, html_foot)}</tr></tfoot>" if html_foot else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>{foot}</table>"


def notes(items: Iterable[tuple[str, str]]) -> str:
    """(name, text) lines."""
    rows = "".join(f"<li><span>{escape(n)}</span><span>{escape(t)}</span></li>" for n, t in items if t)
    return f'<ul class="notes">{rows}</ul>' if rows else ""


def warning(text: str) -> str:
    return f'<p class="warn">{escape(text)}</p>\n' if text else ""


def small(text: str) -> str:
    return f"<small>{escape(text)}</small>" if text else ""


def _cells(columns: Sequence[Column], html_row: Sequence[str]) -> str:
    return "".join(
        f'<td class="{c.kind}" data-label="{escape(c.title)}"><div class="cell">{cell}</div></td>'
        for c, cell in zip(columns, html_row, strict=True)
    )
