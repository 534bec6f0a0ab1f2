"""The report as text: terminal table, Markdown, CSV, JSON.

Run names come from folders and are hostile until shown otherwise: each format escapes what it would act on
(rich markup, Markdown and HTML, spreadsheet formulas). Unknown is the word "unknown", a lower bound has a
">=" before it.
"""

from __future__ import annotations

import csv
import io
import json
import re
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from ssmke.cost.baselines import Baseline, published_saving
from ssmke.cost.report import Report, RunReport
from ssmke.cost.usage import HOUR_NS

FORMATS = ("table", "json", "markdown", "csv")
COLUMNS = ("run", "parameters", "pairs", "device-hours", "energy", "dollars", "price basis", "attempts")
NOTE = (
    "Baselines are devices x hours x the price they were published with, and those bases differ: CLIP, VLMo and CoCa "
    "at three-year commitments, S-SMKE on demand. Own runs use the price stored when they ran."
)


def render(report: Report, form: str) -> str:
    """``report`` in one of FORMATS; ends with a newline."""
    if form == "json":
        return json.dumps(to_dict(report), indent=2) + "\n"
    if form == "csv":
        return _csv(report)
    return _markdown(report) if form == "markdown" else _table(report)


def to_dict(report: Report) -> dict[str, Any]:
    """The report as plain data; dollars are exact decimal strings, unknown is null."""
    return {
        "root": str(report.root),
        "runs": [_run_dict(run) for run in report.runs],
        "baselines": [_baseline_dict(b) for b in report.baselines],
        "published_saving": published_saving(list(report.baselines)),
        "note": NOTE,
    }


def money(usd: Decimal | None, *, partial: bool = False) -> str:
    """ "$77,414.40", "$15.456", "$0.0001234", "unknown", ">= $1.20"."""
    if usd is None:
        return "unknown"
    if usd >= 1 or usd == 0:
        shown = f"{usd.quantize(Decimal('0.001'), ROUND_HALF_UP):,f}"
        shown = shown[:-1] if shown.endswith("0") else shown
    else:
        digits = 3 - usd.adjusted()
        shown = f"{usd.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP):f}"
    return f"{'>= ' if partial else ''}${shown}"


def count(number: int | None) -> str:
    """Counts as people say them: 117.2M, 3.3M, 22,848."""
    if number is None:
        return "unknown"
    for size, letter in ((10**9, "B"), (10**6, "M")):
        if number >= size:
            return f"{number / size:.4g}{letter}"
    return f"{number:,}"


def hours(value: float | Decimal) -> str:
    return f"{value:,.1f}" if value >= 100 else f"{value:.4g}"


def energy(run: RunReport) -> str:
    kwh = run.usage.energy_kwh
    if kwh is None:
        return "unknown"
    covered = run.usage.energy_coverage
    return f"{kwh:.4g} kWh" + ("" if covered > 0.99 else f" ({covered:.0%} measured)")


def phases(run: RunReport) -> str:
    """Device-hours by phase, largest first: "train 91.2 %, setup 6.1 %, ..."."""
    whole = run.usage.device_ns or 1
    ordered = sorted(run.usage.phases.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {ns / whole:.1%}" for name, ns in ordered)


def _run_cells(run: RunReport) -> list[str]:
    return [
        run.name,
        count(run.parameters),
        count(run.pairs),
        hours(run.usage.device_hours),
        energy(run),
        money(run.usage.usd, partial=run.usage.usd_partial),
        run.price,
        str(len(run.attempts)),
    ]


def _baseline_cells(b: Baseline) -> list[str]:
    name = b.name + (f" ({b.variant.split(';')[0]})" if b.variant else "")
    cells = [name, count(b.parameters), count(b.pairs), hours(b.device_hours), "unknown", money(b.usd)]
    return [*cells, f"{b.devices} x {b.device} x {b.hours} h, {b.basis}", ""]


def _details(run: RunReport) -> list[str]:
    lines = [f"{run.name}: {phases(run)}"]
    if run.pairs_redone:
        lines.append(f"{run.name}: {count(run.pairs_redone)} pairs were processed again after a resume")
    if len(run.attempts) > 1:
        for a in run.attempts:
            usd = money(a.usage.usd, partial=a.usage.usd_partial)
            steps = " to ".join("?" if step is None else f"{step:,}" for step in (a.resumed_step, a.step))
            used = f"{hours(a.usage.device_hours)} device-hours, {usd}, steps {steps}"
            lines.append(f"{run.name}: attempt {a.name}: {a.outcome}, {used}")
    return lines


def _table(report: Report) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"Training cost: runs in {report.root}", title_justify="left", expand=False)
    for name in COLUMNS:
        wide = name in ("run", "price basis")
        table.add_column(name, justify="left" if wide else "right", overflow="fold", no_wrap=not wide)
    for run in report.runs:
        table.add_row(*(Text(_printable(cell)) for cell in _run_cells(run)))
    if report.runs:
        table.add_section()
    for baseline in report.baselines:
        table.add_row(*(Text(cell) for cell in _baseline_cells(baseline)))
    buffer = io.StringIO()
    console = Console(file=buffer, width=max(_width(), 120), highlight=False, markup=False)
    console.print(table)
    for run in report.runs:
        for line in _details(run):
            console.print(_printable(line))
    if not report.runs:
        console.print(f"No runs with a cost ledger were found below {report.root}.")
    console.print(published_saving(list(report.baselines)) + ".")
    console.print(NOTE)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _width() -> int:
    import shutil

    return shutil.get_terminal_size((140, 24)).columns


def _markdown(report: Report) -> str:
    rows = [_run_cells(run) for run in report.runs] + [_baseline_cells(b) for b in report.baselines]
    lines = ["| " + " | ".join(COLUMNS) + " |", "| --- | --: | --: | --: | --: | --: | --- | --: |"]
    lines += ["| " + " | ".join(_in_markdown(cell) for cell in row) + " |" for row in rows]
    lines += ["", *(f"- {_in_markdown(line)}" for run in report.runs for line in _details(run))]
    lines += ["", published_saving(list(report.baselines)) + ".", "", NOTE]
    return "\n".join(lines) + "\n"


def _csv(report: Report) -> str:
    buffer = io.StringIO()
    fields = list(_baseline_dict(report.baselines[0])) if report.baselines else []
    writer = csv.DictWriter(buffer, fields, lineterminator="\n")
    writer.writeheader()
    for row in [*map(_run_dict, report.runs), *map(_baseline_dict, report.baselines)]:
        flat = {name: row.get(name) for name in fields}
        flat["phases"] = json.dumps(row["phases"], sort_keys=True) if row["phases"] else None
        writer.writerow({k: _in_csv(v) if isinstance(v, str) else v for k, v in flat.items()})
    return buffer.getvalue()


def _run_dict(run: RunReport) -> dict[str, Any]:
    return {
        "kind": "run",
        "name": run.name,
        "parameters": run.parameters,
        "pairs": run.pairs,
        "device_hours": run.usage.device_hours,
        "node_hours": run.usage.node_hours,
        "energy_kwh": run.usage.energy_kwh,
        "energy_coverage": run.usage.energy_coverage,
        "usd": None if run.usage.usd is None else str(run.usage.usd),
        "usd_is_lower_bound": run.usage.usd is not None and run.usage.usd_partial,
        "price": run.price,
        "phases": {name: ns / HOUR_NS for name, ns in sorted(run.usage.phases.items())},
        "pairs_redone": run.pairs_redone,
        "devices": list(run.devices),
        "path": str(run.path),
        "attempts": [
            {
                "name": a.name,
                "outcome": a.outcome,
                "device_hours": a.usage.device_hours,
                "usd": None if a.usage.usd is None else str(a.usage.usd),
                "resumed_step": a.resumed_step,
                "step": a.step,
                "resumed_pairs": a.resumed_pairs,
                "pairs": a.pairs,
            }
            for a in run.attempts
        ],
        "facts": run.facts,
    }


def _baseline_dict(b: Baseline) -> dict[str, Any]:
    return {
        "kind": "baseline",
        "name": b.name,
        "variant": b.variant,
        "parameters": b.parameters,
        "pairs": b.pairs,
        "device_hours": float(b.device_hours),
        "node_hours": None,
        "energy_kwh": None,
        "energy_coverage": None,
        "usd": str(b.usd),
        "usd_is_lower_bound": False,
        "price": b.basis,
        "phases": None,
        "pairs_redone": None,
        "devices": f"{b.devices} x {b.device}",
        "path": None,
        "source": b.source,
        "excludes": b.excludes,
        "note": b.note,
    }


def _printable(text: str) -> str:
    """Without control characters: a folder's name must not drive the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _in_markdown(text: str) -> str:
    escaped = _printable(text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", escaped)


def _in_csv(text: str) -> str:
    """A leading apostrophe keeps a spreadsheet from reading a name as a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
