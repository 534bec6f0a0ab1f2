"""``ssmke-cost audit``: every assumption behind the numbers, warnings first, each said once for all its runs."""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ssmke.cli.cost.folder import add_folder, add_prices
from ssmke.cli.cost.report import read
from ssmke.cli.cost.terminal import write
from ssmke.cost.audit import WARN, Finding, of_report, of_run, shared_nodes
from ssmke.cost.render import WIDTH
from ssmke.cost.render.numbers import money
from ssmke.cost.report import Report
from ssmke.words import counted, printable

_NAMED = 3


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "audit", help="every assumption behind the numbers, and mismatched comparisons"
    )
    add_folder(parser)
    add_prices(parser)
    parser.add_argument("--format", choices=("table", "json"), default="table", dest="form")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="exit code 1 if a run has a warning or a ledger could not be read",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the findings; exit code 0, with --strict 1 if a run has a warning or a ledger could not be read."""
    report = read(arguments)
    shared = shared_nodes(report.runs)
    by_run = {r.lineage: (*shared.get(r.lineage, ()), *of_run(r, report.baselines)) for r in report.runs}
    if arguments.form == "json":
        write(json.dumps(_to_dict(report, by_run), indent=2) + "\n")
    else:
        width = max(shutil.get_terminal_size((WIDTH, 24)).columns, 60)
        write("\n".join(_lines(report, by_run, width)) + "\n")
    warned = any(f.severity == WARN for found in by_run.values() for f in found)
    return 1 if arguments.strict and (warned or report.unread) else 0


def _lines(report: Report, by_run: Mapping[str, Sequence[Finding]], width: int) -> list[str]:
    names = {r.lineage: r.name for r in report.runs}
    holders: dict[Finding, list[str]] = {}
    for lineage, found in by_run.items():
        for finding in found:
            holders.setdefault(finding, []).append(names[lineage])
    usd = money(report.project.usd, partial=report.project.usd_partial or bool(report.unread))
    lines = [f"{counted(len(report.runs), 'run')} in {printable(str(report.root))}: {usd}"]
    if not report.runs:
        readable = "readable " if report.unread else ""
        lines = [f"No runs with a {readable}cost ledger were found below {printable(str(report.root))}."]
    for severity, title in ((WARN, "Warnings"), ("info", "Assumptions")):
        chosen = [(f, who) for f, who in holders.items() if f.severity == severity]
        if chosen:
            lines += ["", f"{title} behind your runs", ""]
            for finding, who in chosen:
                lines += _entry(finding, _who(who, len(names)), width)
    lines += ["", "The workspace and the published runs", ""]
    for finding in of_report(report):
        lines += _entry(finding, "", width)
    return lines


def _entry(finding: Finding, who: str, width: int) -> list[str]:
    mark = "!" if finding.severity == WARN else "-"
    text = f"{mark} {finding.about}: {finding.text}{f' ({who})' if who else ''}"
    kept = printable(text).replace(" %", "\N{NO-BREAK SPACE}%")
    wrapped = textwrap.wrap(kept, width, subsequent_indent="  ", break_on_hyphens=False)
    return [line.replace("\N{NO-BREAK SPACE}%", " %") for line in wrapped]


def _who(names: Sequence[str], of: int) -> str:
    if of == 1:
        return ""
    if len(names) == of:
        return f"all {of:,} runs"
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED:,} more"


def _to_dict(report: Report, by_run: Mapping[str, Sequence[Finding]]) -> dict[str, Any]:
    def plain(found: Sequence[Finding]) -> list[dict[str, str]]:
        return [{"severity": f.severity, "about": f.about, "text": f.text} for f in found]

    runs = [{"name": r.name, "lineage": r.lineage, "findings": plain(by_run[r.lineage])} for r in report.runs]
    return {"root": str(report.root), "runs": runs, "workspace": plain(of_report(report))}
