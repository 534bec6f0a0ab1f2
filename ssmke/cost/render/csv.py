"""The report as one flat CSV: a row for each run, published run, peer, thesis model and line, unrounded.

Columns are fixed, whatever the rows hold, so that reports of several workspaces can be put together. An empty field
is unknown or does not apply. Text that a spreadsheet would run as a formula gets an apostrophe before it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ssmke.cost.published.baselines import Baseline, Span
from ssmke.cost.published.thesis import load_thesis
from ssmke.cost.render.json import run_dict, usd_text

if TYPE_CHECKING:
    from ssmke.cost.report import Report, RunReport

COLUMNS = (
    "kind",
    "name",
    "variant",
    "lineage",
    "parameters",
    "pairs",
    "pairs_redone",
    "attempts",
    "device_hours",
    "device_hours_high",
    "node_hours",
    "energy_kwh",
    "energy_kwh_error",
    "energy_coverage",
    "energy_methods",
    "usd",
    "usd_is_lower_bound",
    "usd_final",
    "usd_wasted",
    "usd_on_demand",
    "usd_on_demand_high",
    "usd_spot",
    "usd_spot_high",
    "pairs_per_usd",
    "usd_per_point",
    "recall_at_1_i2t",
    "recall_at_1_t2i",
    "eval_split",
    "mfu",
    "devices",
    "price",
    "phases",
    "source",
    "excludes",
    "path",
)


def render(report: Report) -> str:
    return written(COLUMNS, _rows(report))


def written(columns: tuple[str, ...], rows: Iterable[Mapping[str, Any]]) -> str:
    """CSV text with a header; None is an empty field."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n", restval=None)
    writer.writeheader()
    for row in rows:
        writer.writerow({name: escaped(v) if isinstance(v, str) else v for name, v in row.items()})
    return buffer.getvalue()


def escaped(text: str) -> str:
    """One line without control characters, and never a formula to a spreadsheet, not even after white space."""
    one_line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return (
        f"'{one_line}" if one_line.lstrip()[:1] in ("=", "+", "-", "@", "＝", "＋", "－", "＠") else one_line
    )


def _rows(report: Report) -> Iterable[dict[str, Any]]:
    yield from map(_run, report.runs)
    for line in report.lines:
        yield {
            "kind": "line",
            "name": line.name,
            "variant": line.kind,
            "usd": usd_text(line.usd),
            "price": line.label,
            "source": line.source,
        }
    yield from map(_baseline, report.baselines)
    thesis = load_thesis()
    for model in thesis.models:
        here, there = thesis.usd(model)
        yield {
            "kind": "thesis_model",
            "name": model.name,
            "parameters": model.parameters,
            "pairs": model.samples,
            "device_hours": model.device_hours,
            "usd": usd_text(here),
            "usd_on_demand": usd_text(there),
            "devices": f"{model.devices} x {thesis.here.accelerator}",
            "price": f"usd: {thesis.here.name}; usd_on_demand: {thesis.there.name}",
            "source": thesis.source,
        }


def _run(run: RunReport) -> dict[str, Any]:
    data = run_dict(run)
    recall = data.pop("recall_at_1") or {}
    flat = {name: data[name] for name in COLUMNS if name in data}
    return flat | {
        "attempts": len(run.attempts),
        "energy_methods": " ".join(run.energy_methods) or None,
        "recall_at_1_i2t": recall.get("i2t"),
        "recall_at_1_t2i": recall.get("t2i"),
        "devices": "; ".join(run.devices),
        "phases": json.dumps(data["phases"], sort_keys=True),
    }


def _baseline(b: Baseline) -> dict[str, Any]:
    _, on_demand, spot = b.bases
    shown = [f"{basis.name}: {basis.price.name}" for basis in b.bases if basis.price is not None]
    floor = b.at_least.usd if b.at_least is not None else None
    return {
        "kind": b.kind,
        "name": b.name,
        "variant": b.variant,
        "parameters": b.parameters,
        "pairs": b.pairs,
        "device_hours": _end(b.device_hours, 0),
        "device_hours_high": _end(b.device_hours, 1),
        "usd": usd_text(b.usd if floor is None else floor),
        "usd_is_lower_bound": floor is not None,
        "usd_on_demand": _end(on_demand.usd, 0),
        "usd_on_demand_high": _end(on_demand.usd, 1),
        "usd_spot": _end(spot.usd, 0),
        "usd_spot_high": _end(spot.usd, 1),
        "devices": None if b.devices is None else f"{b.devices} x {b.accelerator}",
        "price": "; ".join(shown) or ("unpublished" if b.unpublished else None),
        "source": b.source,
        "excludes": b.excludes,
    }


def _end(span: Span | None, which: int) -> str | None:
    return None if span is None else f"{span[which]:f}"
