"""The page of one run: what it cost, when, what for, on which devices, and how far the numbers can be trusted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from ssmke.cost.charts.axes import duration, linear, tick_money
from ssmke.cost.charts.svg import Band, Mark, bar, escape, legend, stacked
from ssmke.cost.charts.timeline import Timeline, timeline
from ssmke.cost.dashboard.devices import devices_section, energy_note, energy_tile
from ssmke.cost.dashboard.page import Column, Tile, hero, notes, page, section, small, table, tiles, warning
from ssmke.cost.dashboard.published import pareto_section, published_section
from ssmke.cost.dashboard.words import (
    clock,
    cost,
    dollars,
    ended,
    moment,
    numeral,
    outcome_legend,
    outcome_parts,
    period,
    phase_amounts,
    phase_kind,
    phase_name,
    phase_order,
)
from ssmke.cost.ledger.reader import Series
from ssmke.cost.published.baselines import Baseline
from ssmke.cost.published.pareto import Panel, eval_set_of, panels
from ssmke.cost.render.numbers import energy, hours
from ssmke.cost.render.own import unread_text
from ssmke.cost.report import Attempt, RunReport, Unread
from ssmke.words import counted, percent

_MOST_ATTEMPTS = 30


def run_page(
    run: RunReport, series: Iterable[Series], baselines: Sequence[Baseline], unread: Sequence[Unread] = ()
) -> str:
    """One self-contained HTML file about ``run``; ``series`` are its beats (`ledger.read_series`)."""
    over = timeline(run, series)
    recipe = run.facts.get("recipe")
    devices = ", ".join(run.devices) or "unknown device"
    parts = [str(recipe)] if recipe else []
    parts += [devices if run.nodes == 1 else f"{run.nodes} nodes, {devices}"]
    parts += [period(run.began_wall_ns, run.ended_wall_ns), ended(run)]
    body = [
        _hero(run, more=bool(unread)),
        warning(unread_text(unread)),
        warning(_lower_bound(run)),
        tiles(_tiles(run)),
        _over_time(run, over),
        _attempts(run),
        devices_section(run.usage, run.energy_methods, over),
        pareto_section(_panels(run, baselines)),
        published_section([("this run", run.usage.usd, "every attempt, waste included")], baselines),
        section("Behind these numbers", "", notes(_behind(run))),
    ]
    return page(
        run.name,
        "What this run cost",
        " · ".join(escape(p) for p in parts),
        "".join(body),
        f"Made by ssmke-cost from the run's own ledger, up to {moment(run.ended_wall_ns)} UTC.",
    )


def _hero(run: RunReport, *, more: bool) -> str:
    right = bar(outcome_parts(run.outcomes), "Paid time by what it was good for") + legend(
        outcome_legend(run.outcomes)
    )
    launches = "one attempt" if len(run.attempts) == 1 else f"all {len(run.attempts)} attempts"
    if run.usage.usd is None:
        return hero(f"{hours(run.usage.device_hours)} device-h", f"{launches}; dollars unknown", right)
    usd = dollars(run.usage.usd, partial=run.usage.usd_partial or more)
    return hero(usd, f"paid for {launches}", right)


def _lower_bound(run: RunReport) -> str:
    if run.usage.usd is None:
        return f"No price is known for this run: {run.price}. Device-hours are counted all the same."
    if run.usage.usd_partial:
        share = percent(run.usage.priced_ns / run.usage.node_ns) if run.usage.node_ns else "none"
        return f"Only {share} of the paid time has a price: dollars are a lower bound. Prices: {run.price}."
    return ""


def _tiles(run: RunReport) -> list[Tile]:
    found = [Tile("Device-hours", hours(run.usage.device_hours), _machines(run))]
    found.append(energy_tile(run.usage, run.energy_methods))
    rate = run.pairs_per_usd
    again = f"{numeral(run.pairs_redone)} done again" if run.pairs_redone else ""
    per = "" if rate is None else f"{numeral(round(rate))} per dollar"
    found.append(
        Tile(
            "Image-text pairs", numeral(run.pairs), ", ".join(p for p in (per, again) if p), run.pairs is None
        )
    )
    found.append(_quality(run))
    if run.mfu is not None:
        device = str(_facts(run, "efficiency").get("dtype") or "")
        found.append(
            Tile("Model FLOPs utilisation", percent(run.mfu), f"of the {device} peak".replace("  ", " "))
        )
    projected = _projected(run)
    if projected is not None:
        found.append(projected)
    return found


def _machines(run: RunReport) -> str:
    wide = run.usage.device_ns / run.usage.node_ns if run.usage.node_ns else 1
    if run.nodes > 1:
        return f"on {run.nodes} nodes"
    return f"on {wide:.2g} devices at a time" if wide > 1.05 else "on one device"


def _quality(run: RunReport) -> Tile:
    recall = run.recall_at_1
    if recall is None:
        return Tile("R@1", "unknown", "not evaluated yet", True)
    test = eval_set_of(run)
    where = test.title if test is not None else ""
    point = "" if run.usd_per_point is None else f"{dollars(run.usd_per_point)} per point"
    note = ", ".join(p for p in (where, point) if p)
    return Tile("R@1 i2t / t2i", f"{recall[0]:.1f} / {recall[1]:.1f}", note)


def _projected(run: RunReport) -> Tile | None:
    usd = run.projected_usd
    if usd is None:
        return None
    forecast = _facts(run, "forecast")
    low, high = _decimal(forecast.get("low")), _decimal(forecast.get("high"))
    span = "" if low is None or high is None else f"{dollars(low)} to {dollars(high)}"
    running = run.attempts[-1].outcome == "no end"
    return Tile("Projected total" if running else "Last projection", dollars(usd), span)


def _over_time(run: RunReport, over: Timeline) -> str:
    order = phase_order(over.spent)
    total = sum(over.spent[name][-1] for name in order)
    ahead = _ahead(run, over)
    top = max([total, *(y for _, y in ahead)])
    x = duration(max([over.total_hours, *(h for h, _ in ahead)]))
    unit = tick_money if over.priced else lambda v: f"{v:g} h"
    marks = [Mark(at, f"attempt {i}") for i, (at, _) in enumerate(over.begins, 1) if i > 1]
    chart = stacked(
        x,
        linear(top, unit),
        over.hours,
        [Band(phase_kind(n), phase_name(n), over.spent[n]) for n in order],
        label=f"{'Dollars' if over.priced else 'Device-hours'} spent over paid time, by phase",
        marks=marks,
        beyond=ahead,
        beyond_text="" if not ahead else f"projected {dollars(run.projected_usd)}",
        hover=lambda i: _moment_text(over, order, i),
    )
    gaps = " Gaps between attempts cost nothing and are left out." if len(run.attempts) > 1 else ""
    return section(
        "Dollars over time" if over.priced else "Device-hours over time",
        f"Sum so far by phase, over {clock(over.total_hours)} of paid time.{gaps}",
        chart + legend(phase_amounts(run.usage)),
    )


def _ahead(run: RunReport, over: Timeline) -> list[tuple[float, float]]:
    """The dashed line to the projected total, at the mean rate so far; only while the run goes on."""
    usd, spent = run.projected_usd, run.usage.usd
    if usd is None or not spent or usd <= spent or run.attempts[-1].outcome != "no end":
        return []
    now = over.total_hours
    return [(now, float(spent)), (now * float(usd / spent), float(usd))]


def _moment_text(over: Timeline, order: Sequence[str], i: int) -> str:
    def amount(value: float) -> str:
        return dollars(Decimal(repr(round(value, 9)))) if over.priced else f"{hours(value)} device-h"

    parts = [f"{phase_name(n)} {amount(over.spent[n][i])}" for n in order if over.spent[n][i] > 0]
    whole = sum(over.spent[n][i] for n in order)
    return f"after {clock(over.hours[i])}: {amount(whole)}\n" + "\n".join(parts)


def _attempts(run: RunReport) -> str:
    if len(run.attempts) == 1:
        return ""
    columns = [
        Column("attempt", "text"),
        Column("ended", "text"),
        Column("steps"),
        Column("device-hours"),
        Column("dollars", "strong"),
        Column("good for", "text"),
    ]
    rows = [_attempt_row(i, a) for i, a in enumerate(run.attempts, 1)]
    cut = ""
    if len(rows) > _MOST_ATTEMPTS:
        cut = f'<p class="note">The last {_MOST_ATTEMPTS} of {len(rows)} attempts.</p>'
        rows = rows[-_MOST_ATTEMPTS:]
    sub = "A resumed attempt goes on from a checkpoint; steps after the last one were paid twice."
    return section("Attempts", sub, table(columns, rows) + cut)


def _attempt_row(number: int, attempt: Attempt) -> list[str]:
    steps = " to ".join("?" if s is None else f"{s:,}" for s in (attempt.resumed_step, attempt.step))
    nothing = attempt.resumed_step is None and attempt.step is None
    parts = outcome_parts(attempt.outcomes)
    kinds = ", ".join(f"{percent(p.share)} {p.kind}" for p in parts)
    return [
        f"{number} {small(moment(attempt.began_wall_ns))}",
        escape("no end: killed, or running" if attempt.outcome == "no end" else attempt.outcome),
        "none" if nothing else steps,
        hours(attempt.usage.device_hours),
        escape(cost(attempt.usage)),
        bar(parts, kinds).replace('"bar"', '"bar thin"', 1) + small(kinds),
    ]


def _panels(run: RunReport, baselines: Sequence[Baseline]) -> list[Panel]:
    """The panel of this run's test, if others were measured on it; one point alone says nothing."""
    test = eval_set_of(run)
    return [p for p in panels([run], baselines) if p.test == test and len(p.points) > 1]


def _behind(run: RunReport) -> list[tuple[str, str]]:
    found = [("Price", _price(snapshot)) for snapshot in run.snapshots] or [("Price", run.price)]
    found.append(("Energy", _energy(run)))
    found.append(
        (
            "Waste",
            "What crashes and preemptions cost: work after the last checkpoint, set-up paid again, attempts that "
            "left nothing. A killed attempt is counted to one heartbeat after its last sign of life.",
        )
    )
    if run.clock_jumps:
        found.append(
            (
                "Clock",
                f"The wall clock was set {counted(run.clock_jumps, 'time')}; durations do not depend on it.",
            )
        )
    efficiency = _facts(run, "efficiency")
    if efficiency.get("tflops_per_device") is not None:
        achieved = (
            f"{float(efficiency['tflops_per_device']):.3g} TFLOP/s per device, from analytic FLOPs per pair"
        )
        found.append(("Efficiency", achieved if run.mfu is not None else f"{achieved}; no MFU: peak unknown"))
    found.append(
        ("Not counted", "The pretrained encoders and the teacher's own training: somebody else paid them.")
    )
    found.append(("Ledger", f"{run.path}, lineage {run.lineage}"))
    return found


def _price(snapshot: Mapping[str, Any]) -> str:
    """A stored price with its provenance, whatever of it was stored."""
    if not snapshot:
        return "none was stored"
    parts = [str(snapshot.get("label") or "unknown")]
    if snapshot.get("guessed"):
        parts.append(f"guessed because {snapshot.get('why')}")
    elif snapshot.get("why"):
        parts.append(str(snapshot["why"]))
    low, high = _decimal(snapshot.get("low")), _decimal(snapshot.get("high"))
    if low is not None and high is not None:
        parts.append(f"other entries that fit: {dollars(low)} to {dollars(high)} per hour")
    if snapshot.get("confidence"):
        parts.append(f"confidence {snapshot['confidence']}")
    if snapshot.get("source"):
        ref = str(snapshot.get("source_ref") or "")
        parts.append(f"source {snapshot['source']}" + (f" @{ref[:12]}" if ref else ""))
    return "; ".join(parts)


def _energy(run: RunReport) -> str:
    if run.usage.energy_kwh is None:
        return (
            "Unknown: these devices gave neither an energy counter nor power readings. Unknown is not zero."
        )
    return f"{energy(run.usage)}; {energy_note(run.usage, run.energy_methods)}"


def _facts(run: RunReport, name: str) -> Mapping[str, Any]:
    value = run.facts.get(name)
    return value if isinstance(value, dict) else {}


def _decimal(value: Any) -> Decimal | None:
    try:
        return None if value is None else Decimal(str(value))
    except ArithmeticError:
        return None
