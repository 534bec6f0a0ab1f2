"""The report as LaTeX tables, to be \\input into a document that loads booktabs and tabularx.

Every character that TeX acts on is spelled out, control characters are dropped, and what a plain T1 font may lack is
named by a command or shown as "?", so that a folder's name can neither run a command nor stop the build.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from ssmke.cost.render.content import sections
from ssmke.cost.render.parts import Section, Table

if TYPE_CHECKING:
    from ssmke.cost.report import Report

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    "±": r"$\pm$",
    "[": "{[}",  # after \\ a bracket would be its argument
}
_FIRST = "% needs \\usepackage[T1]{fontenc}, textcomp, booktabs and tabularx\n"


def render(report: Report, *, full: bool = False) -> str:
    return _FIRST + "\n".join("\n".join(_section(s)) + "\n" for s in sections(report, full=full))


def escaped(text: str) -> str:
    """``text`` as LaTeX that shows it and does nothing else."""
    plain = "".join(_character(c) for c in text)
    for pair in ("--", ",,"):  # ligatures: a dash, a quotation mark
        while pair in plain:
            plain = plain.replace(pair, f"{pair[0]}{{}}{pair[1]}")
    return plain


def _character(c: str) -> str:
    if c in _SPECIAL:
        return _SPECIAL[c]
    if " " <= c <= "~":
        return c
    # Latin letters with marks are in every T1 font; beyond that the build would stop or print nothing.
    return c if c.isalpha() and unicodedata.name(c, "").startswith("LATIN") and ord(c) < 0x180 else "?"


def _section(section: Section) -> list[str]:
    if section.table is None:
        return [rf"\paragraph{{{escaped(section.title)}}}", *_paragraphs(section)]
    lines = [
        r"\begin{table}[htbp]",
        r"\footnotesize",
        rf"\caption{{{escaped(section.title)}}}",
        *_table(section.table),
        *(rf"\par {escaped(text)}" for text in section.legend),
        r"\end{table}",
    ]
    return [*lines, *_paragraphs(section)]


def _paragraphs(section: Section) -> list[str]:
    notes = section.notes if section.table is not None else (*section.legend, *section.notes)
    return [rf"\par\noindent {escaped(text)}" for text in notes]


def _table(table: Table) -> list[str]:
    layout = "".join("r" if c.right else "X" for c in table.columns)
    lines = [rf"\begin{{tabularx}}{{\linewidth}}{{@{{}}{layout}@{{}}}}", r"\toprule"]
    lines += [_row(tuple(c.title for c in table.columns)), r"\midrule"]
    for number, row in enumerate(table.rows):
        if number == table.rule:
            lines.append(r"\midrule")
        lines.append(_row(row))
    return [*lines, r"\bottomrule", r"\end{tabularx}"]


def _row(row: tuple[str, ...]) -> str:
    return " & ".join(escaped(cell) for cell in row) + r" \\"
