"""The report in seven formats, one a file.

``content`` says once what a reader gets to see, in which order; ``table``, ``markdown``, ``latex`` and ``html`` lay
that out. ``csv``, ``json`` and ``focus`` hold the numbers for other programs, unrounded. Run names come from folders
and are hostile until shown otherwise: each format escapes what it would act on (terminal control characters,
Markdown and HTML, LaTeX, spreadsheet formulas). Unknown is the word "unknown" or an empty field, never 0; a lower
bound has ">=" before it.

Only the format that is asked for is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssmke.errors import ConfigError

if TYPE_CHECKING:
    from ssmke.cost.report import Report

FORMATS = ("table", "markdown", "latex", "csv", "json", "html", "focus")
WIDTH = 100


def render(report: Report, form: str, *, width: int = WIDTH, full: bool = False) -> str:
    """``report`` in one of FORMATS; ends with a newline.

    ``width``: columns of the terminal table. ``full``: every run and its attempts, also where there are many
    (table, markdown, latex and html; the others always hold all).
    """
    if form == "table":
        from ssmke.cost.render import table

        return table.render(report, width=width, full=full)
    if form == "markdown":
        from ssmke.cost.render import markdown

        return markdown.render(report, full=full)
    if form == "latex":
        from ssmke.cost.render import latex

        return latex.render(report, full=full)
    if form == "html":
        from ssmke.cost.render import html

        return html.render(report, full=full)
    if form == "csv":
        from ssmke.cost.render import csv

        return csv.render(report)
    if form == "json":
        from ssmke.cost.render import json

        return json.render(report)
    if form == "focus":
        from ssmke.cost.render import focus

        return focus.render(report)
    raise ConfigError(f"--format {form}: known are {', '.join(FORMATS)}")
