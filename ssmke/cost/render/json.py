"""The report as JSON: everything, unrounded. Dollars are exact decimal strings, unknown is null."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from ssmke.cost.ledger.usage import HOUR_NS, Usage
from ssmke.cost.prices.catalogue import Price
from ssmke.cost.published.baselines import Baseline, Span, published_saving
from ssmke.cost.published.thesis import Thesis, inconsistencies, load_thesis

if TYPE_CHECKING:
    from ssmke.cost.report import Attempt, Report, RunReport

VERSION = 2


def render(report: Report) -> str:
    return json.dumps(to_dict(report), indent=2, allow_nan=False) + "\n"


def to_dict(report: Report) -> dict[str, Any]:
    """The report as plain data."""
    thesis = load_thesis()
    return {
        "version": VERSION,
        "root": str(report.root),
        "unread": [{"path": str(u.path), "why": u.why} for u in report.unread],
        "runs": [run_dict(run) for run in report.runs],
        "project": {
            **usage_dict(report.project),
            "usd_is_lower_bound": report.project.usd is not None
            and (report.project.usd_partial or bool(report.unread)),
            "usd_with_lines": usd_text(report.project_usd),
            "lines": [
                {
                    "name": x.name,
                    "kind": x.kind,
                    "factors": x.label,
                    "usd": usd_text(x.usd),
                    "source": x.source,
                }
                for x in report.lines
            ],
        },
        "baselines": [baseline_dict(b) for b in report.baselines],
        "published_saving": published_saving(report.baselines),
        "thesis": _thesis_dict(thesis),
        "inconsistencies": [
            {"title": i.title, "text": i.text, "values": {k: f"{v:f}" for k, v in i.values.items()}}
            for i in inconsistencies(thesis, report.baselines)
        ],
    }


def run_dict(run: RunReport) -> dict[str, Any]:
    """A run with its outcomes, attempts and prices; the totals are of the whole lineage."""
    recall = run.recall_at_1
    return {
        "kind": "run",
        "name": run.name,
        "path": str(run.path),
        "lineage": run.lineage,
        "parameters": run.parameters,
        "pairs": run.pairs,
        "pairs_redone": run.pairs_redone,
        **usage_dict(run.usage),
        "energy_methods": list(run.energy_methods),
        "usd_final": _part_usd(run.final, run.usage),
        "usd_wasted": _part_usd(run.wasted, run.usage),
        "usd_projected": usd_text(run.projected_usd),
        "pairs_per_usd": run.pairs_per_usd,
        "usd_per_point": usd_text(run.usd_per_point),
        "recall_at_1": None if recall is None else {"i2t": recall[0], "t2i": recall[1]},
        "eval_split": run.eval_split,
        "mfu": run.mfu,
        "price": run.price,
        "price_snapshots": [dict(s) for s in run.snapshots],
        "devices": list(run.devices),
        "nodes": run.nodes,
        "clock_jumps": run.clock_jumps,
        "began_ns": run.began_wall_ns,
        "ended_ns": run.ended_wall_ns,
        "outcomes": {name: usage_dict(u) for name, u in run.outcomes.items()},
        "attempts": [_attempt_dict(a) for a in run.attempts],
        "facts": _plain(run.facts),
    }


def _part_usd(part: Usage, whole: Usage) -> str | None:
    """Dollars of a part of a run, 0 where it is known that there was none."""
    nothing = whole.device_ns and not part.device_ns and whole.usd is not None
    return "0" if nothing else usd_text(part.usd)


def usage_dict(usage: Usage) -> dict[str, Any]:
    """Usage as numbers; hours and kilowatt-hours are floats, dollars exact."""
    return {
        "device_hours": usage.device_hours,
        "node_hours": usage.node_hours,
        "energy_kwh": usage.energy_kwh,
        "energy_kwh_error": usage.energy_kwh_error,
        "energy_coverage": usage.energy_coverage,
        "usd": usd_text(usage.usd),
        "usd_is_lower_bound": usage.usd is not None and usage.usd_partial,
        "phases": {name: ns / HOUR_NS for name, ns in sorted(usage.phases.items())},
    }


def baseline_dict(b: Baseline) -> dict[str, Any]:
    """A baseline with its three bases; intervals are [low, high]."""
    return {
        "kind": b.kind,
        "name": b.name,
        "variant": b.variant,
        "parameters": b.parameters,
        "pairs": b.pairs,
        "pairs_is_lower_bound": b.pairs_at_least,
        "accelerator": b.accelerator,
        "devices": b.devices,
        "device_hours": None if b.device_hours is None else [float(h) for h in b.device_hours],
        "usd": usd_text(b.usd),
        "usd_at_least": None if b.at_least is None else usd_text(b.at_least.usd),
        "bases": {
            basis.name: {
                "usd": span_text(basis.usd),
                "price": price_dict(basis.price),
                "why": basis.why or None,
            }
            for basis in b.bases
        },
        "list_prices": {
            "usd": span_text(b.listed),
            "lowest": price_dict(b.lowest),
            "highest": price_dict(b.highest),
        },
        "printed": b.printed or None,
        "source": b.source,
        "excludes": b.excludes,
        "note": b.note or None,
    }


def price_dict(price: Price | None) -> dict[str, Any] | None:
    """Where a dollar comes from."""
    if price is None:
        return None
    return {
        "key": price.name,
        "usd_per_device_hour": usd_text(price.usd_per_gpu_hour),
        "as_of": price.as_of_text,
        "confidence": price.confidence,
        "source": price.source,
        "source_ref": price.source_ref,
    }


def usd_text(usd: Decimal | None) -> str | None:
    """Exact digits, never in scientific notation."""
    return None if usd is None else f"{usd:f}"


def span_text(span: Span | None) -> list[str] | None:
    return None if span is None else [f"{usd:f}" for usd in span]


def _attempt_dict(a: Attempt) -> dict[str, Any]:
    return {
        "name": a.name,
        "outcome": a.outcome,
        **usage_dict(a.usage),
        "outcomes": {name: usage_dict(u) for name, u in a.outcomes.items() if u.device_ns},
        "resumed_step": a.resumed_step,
        "step": a.step,
        "resumed_pairs": a.resumed_pairs,
        "pairs": a.pairs,
        "began_ns": a.began_wall_ns,
        "ended_ns": a.ended_wall_ns,
    }


def _thesis_dict(thesis: Thesis) -> dict[str, Any]:
    models = []
    for m in thesis.models:
        here, there = thesis.usd(m)
        models.append(
            {
                "name": m.name,
                "parameters": m.parameters,
                "samples": m.samples,
                "devices": m.devices,
                "hours": str(m.hours),
                "device_hours": str(m.device_hours),
                "usd": {"paid": usd_text(here), "aws": usd_text(there)},
                "printed": {"paid": m.printed[0], "aws": m.printed[1]},
            }
        )
    project = []
    for line in thesis.project:
        computed = thesis.line_usd(line)
        project.append(
            {
                "name": line.name,
                "amount": line.amount,
                "printed": {"paid": usd_text(line.printed[0]), "aws": usd_text(line.printed[1])},
                "usd": None
                if computed is None
                else {"paid": usd_text(computed[0]), "aws": usd_text(computed[1])},
            }
        )
    prices = {"paid": price_dict(thesis.here), "aws": price_dict(thesis.there)}
    return {"source": thesis.source, "prices": prices, "models": models, "project": project}


def _plain(value: Any) -> Any:
    """Facts as JSON can hold them: a ledger may carry a NaN loss."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
