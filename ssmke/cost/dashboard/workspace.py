"""The page of a workspace: all runs side by side, what they cost together, and what they are worth.

At most ``MOST_RUNS`` rows are drawn, the newest; sums are over all runs, however many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal

from ssmke.cost.charts.axes import calendar, duration, linear, tick_money
from ssmke.cost.charts.svg import Band, Part, bar, escape, legend, shorten, stacked
from ssmke.cost.charts.timeline import timeline
from ssmke.cost.dashboard.devices import METHODS, energy_tile, track_rows
from ssmke.cost.dashboard.page import Column, Tile, hero, notes, page, section, small, table, tiles, warning
from ssmke.cost.dashboard.published import pareto_section, published_section
from ssmke.cost.dashboard.spending import Spending, spending
from ssmke.cost.dashboard.words import (
    cost,
    dollars,
    ended,
    moment,
    numeral,
    outcome_legend,
    outcome_parts,
    phase_amounts,
    phase_kind,
    phase_name,
    phase_order,
)
from ssmke.cost.ledger.outcomes import OUTCOMES
from ssmke.cost.ledger.reader import Series
from ssmke.cost.ledger.usage import Usage
from ssmke.cost.published.pareto import EvalSet, eval_set_of, panels
from ssmke.cost.render.numbers import energy, hours
from ssmke.cost.render.own import unread_text
from ssmke.cost.report import Report, RunReport
from ssmke.words import counted, percent

MOST_RUNS = 40
MOST_TRACKED = 6


def workspace_page(report: Report, series: Mapping[str, Sequence[Series]] | None = None) -> str:
    """One self-contained HTML file about all runs.

    ``series``: beats of some runs by lineage, for their devices' utilisation (the newest few are drawn).
    """
    runs = sorted(report.runs, key=lambda r: (-r.began_wall_ns, r.name))
    project = report.project
    outcomes = {o: sum((r.outcomes[o] for r in runs), Usage()) for o in OUTCOMES}
    body = [
        _hero(report, outcomes),
        warning(unread_text(report.unread)),
        warning(_lower_bound(report)),
        tiles(_tiles(report, outcomes)) if runs else "",
        _over_time(runs, project),
        _runs(runs, project, more=bool(report.unread)),
        pareto_section(panels(runs, report.baselines)),
        _devices(runs, series or {}),
        published_section(_own(report, runs), report.baselines),
        section("Behind these numbers", "", notes(_behind(report))),
    ]
    until = max((r.ended_wall_ns for r in runs), default=None)
    sub = f"{counted(len(runs), 'run')} in {escape(report.root.resolve())}"
    if runs and until is not None:
        sub += f" · {escape(moment(min(r.began_wall_ns for r in runs)))} to {escape(moment(until))} UTC"
    name = report.root.resolve().name or "workspace"
    title = name if name not in ("runs", ".") else report.root.resolve().parent.name or name
    footer = "Made by ssmke-cost from the runs' own ledgers, at the prices stored in them."
    return page(title, "What training cost", sub, "".join(body), footer)


def _hero(report: Report, outcomes: Mapping[str, Usage]) -> str:
    if not report.runs:
        if report.unread:
            return hero("No readable run", "Published runs are below.", "", word=True)
        return hero("No runs yet", "No cost ledger was found here; published runs are below.", "", word=True)
    right = bar(outcome_parts(outcomes), "Paid time by what it was good for") + legend(
        outcome_legend(outcomes)
    )
    usd = report.project_usd
    if usd is None:
        at_least = "≥ " if report.unread else ""
        return hero(
            f"{at_least}{hours(report.project.device_hours)} device-h", "all runs; dollars unknown", right
        )
    extra = ", storage and transfer" if report.lines else ""
    return hero(
        dollars(usd, partial=report.project.usd_partial or bool(report.unread)),
        f"all runs with every attempt{extra}",
        right,
    )


def _lower_bound(report: Report) -> str:
    unpriced = [r for r in report.runs if r.usage.usd is None]
    if not unpriced and not report.project.usd_partial:
        return ""
    partly = len(unpriced) or sum(r.usage.usd_partial for r in report.runs)
    return (
        f"Paid time without a known price in {partly} of {counted(len(report.runs), 'run')}: dollars are a lower bound "
        "there, device-hours are complete. Give a price with --cost.price, or price them again with --reprice."
    )


def _tiles(report: Report, outcomes: Mapping[str, Usage]) -> list[Tile]:
    project, useful = report.project, outcomes["useful"]
    wasted = sum((outcomes[o] for o in OUTCOMES if o != "useful"), Usage())
    share = percent(wasted.device_ns / project.device_ns) if project.device_ns else ""
    done = sum(r.attempts[-1].outcome == "finished" for r in report.runs)
    found = [
        Tile("Runs", f"{len(report.runs):,}", f"{done:,} finished"),
        Tile("Device-hours", hours(project.device_hours), f"{hours(useful.device_hours)} of them useful"),
        Tile(
            "Wasted",
            cost(wasted) if wasted.device_ns else "nothing",
            f"{share} of the paid time" if wasted.device_ns else "no crash, no preemption",
            wasted.device_ns > 0 and wasted.usd is None,
        ),
        energy_tile(project, sorted({m for r in report.runs for m in r.energy_methods})),
    ]
    best = [r for r in report.runs if r.usd_per_point is not None]
    if best:
        # Points of unlike tests are not worth the same: the best of the test that most runs share.
        tests = [eval_set_of(r) for r in best]
        [(common, _)] = Counter(tests).most_common(1)
        first = min(
            (r for r, t in zip(best, tests, strict=True) if t == common),
            key=lambda r: r.usd_per_point or Decimal(0),
        )
        where = "" if common is None else f", {common.title}"
        found.append(
            Tile("Cheapest R@1 point", dollars(first.usd_per_point), f"{shorten(first.name, 26)}{where}")
        )
    going = [r for r in report.runs if r.attempts[-1].outcome == "no end" and r.projected_usd is not None]
    if going:
        total = sum((r.projected_usd or Decimal(0) for r in going), Decimal(0))
        found.append(
            Tile(
                "Projected, still running",
                dollars(total),
                f"{counted(len(going), 'unfinished run')}, to the end",
            )
        )
    lines = [line.usd for line in report.lines if line.usd is not None]
    if lines:
        found.append(
            Tile("Storage and transfer", dollars(sum(lines, Decimal(0))), counted(len(lines), "line"))
        )
    return found


def _over_time(runs: Sequence[RunReport], project: Usage) -> str:
    if not runs:
        return ""
    over: Spending = spending(runs)
    order = phase_order(over.spent)
    unit = tick_money if over.priced else lambda v: f"{v:g} h"
    chart = stacked(
        calendar(int(over.moments[0]), int(over.moments[-1])),
        linear(sum(over.spent[n][-1] for n in order), unit),
        over.moments,
        [Band(phase_kind(n), phase_name(n), over.spent[n]) for n in order],
        label=f"{'Dollars' if over.priced else 'Device-hours'} spent by all runs over time, by phase",
        hover=lambda i: over.text(i, order),
    )
    return section(
        "Dollars over time" if over.priced else "Device-hours over time",
        "All runs together, sum so far by phase; times in UTC.",
        chart + legend(phase_amounts(project)),
    )


def _runs(runs: Sequence[RunReport], project: Usage, *, more: bool) -> str:
    """``more``: there are runs that could not be read, so sums are lower bounds."""
    if not runs:
        return ""
    columns = [
        Column("run", "text"),
        Column("R@1 i2t / t2i"),
        Column("pairs"),
        Column("device-hours"),
        Column("energy"),
        Column("final run"),
        Column("with waste", "strong"),
        Column("pairs per $"),
        Column("$ per point"),
    ]
    shown = runs[:MOST_RUNS]
    most = max((r.usage.device_ns for r in shown), default=1) or 1
    foot: list[str] = []
    useful = sum((r.final for r in runs), Usage())
    if len(runs) > 1:
        label = "all runs" if len(shown) == len(runs) else f"all {len(runs):,} runs"
        sums = [hours(project.device_hours), energy(project, unit=False), cost(useful), cost(project)]
        if more:
            sums = [s if s.startswith(("≥", ">=", "unknown")) else f"≥ {s}" for s in sums]
        foot = [label, "", "", *(escape(s) for s in sums), "", ""]
    cut = (
        f'<p class="note">The {MOST_RUNS} newest of {len(runs):,} runs; sums are over all. '
        "ssmke-cost report lists every one.</p>"
        if len(shown) < len(runs)
        else ""
    )
    sub = (
        "Newest first. Final run: what an undisturbed run would have cost. With waste: every attempt. Bars: device "
        "time, coloured by what it was good for. Energy in kWh."
    )
    return section("Runs compared", sub, table(columns, [_run_row(r, most) for r in shown], foot) + cut)


def _run_row(run: RunReport, most: int) -> list[str]:
    recall = run.recall_at_1
    width = run.usage.device_ns / most
    parts = [Part(p.kind, p.share * width, p.title) for p in outcome_parts(run.outcomes)]
    rest = [Part("nothing", 1 - width, "")] if width < 1 else []
    told = bar([*parts, *rest], f"{run.name}: device time").replace('"bar"', '"bar thin"', 1)
    tries = "" if len(run.attempts) == 1 else f"{len(run.attempts)} attempts, "
    test = eval_set_of(run)
    unknown = '<span class="unknown">unknown</span>'
    return [
        f"{escape(shorten(run.name, 64))}{small(tries + ended(run))}",
        unknown if recall is None else f"{recall[0]:.1f} / {recall[1]:.1f}{small(_title(test))}",
        unknown if run.pairs is None else escape(numeral(run.pairs)),
        f"{hours(run.usage.device_hours)}{told}",
        unknown if run.usage.energy_kwh is None else escape(energy(run.usage, unit=False)),
        escape(cost(run.final)) if run.final.device_ns else "none",
        escape(cost(run.usage)),
        unknown if run.pairs_per_usd is None else escape(numeral(round(run.pairs_per_usd))),
        unknown if run.usd_per_point is None else escape(dollars(run.usd_per_point)),
    ]


def _title(test: EvalSet | None) -> str:
    return "" if test is None else shorten(test.title, 26)


def _devices(runs: Sequence[RunReport], series: Mapping[str, Sequence[Series]]) -> str:
    shown: list[str] = []
    for run in runs:
        beats = series.get(run.lineage)
        if not beats or len(shown) == MOST_TRACKED:
            continue
        over = timeline(run, beats, points=200)
        rows = track_rows(over.tracks, over.edges, duration(over.total_hours))
        if rows:
            shown.append(f'<div class="group"><h3>{escape(shorten(run.name, 64))}</h3>{rows}</div>')
    if not shown:
        return ""
    sub = f"How busy each device was over the paid time of a run, 0 to 100 %; the newest {MOST_TRACKED} runs at most."
    return section("Devices", sub, "".join(shown))


def _own(report: Report, runs: Sequence[RunReport]) -> list[tuple[str, Decimal | None, str]]:
    """The newest finished run and the whole project: two very different sums (thesis: a factor of 112)."""
    found: list[tuple[str, Decimal | None, str]] = []
    last = next((r for r in runs if r.attempts[-1].outcome == "finished" and r.usage.usd is not None), None)
    if last is not None:
        pairs = "" if last.pairs is None else f", {numeral(last.pairs)} pairs"
        found.append((shorten(last.name, 40), last.usage.usd, f"newest finished run{pairs}"))
    if len(runs) > 1 and report.project_usd is not None:
        found.append(("all runs here", report.project_usd, f"{len(runs):,} runs with every attempt"))
    return found


def _behind(report: Report) -> list[tuple[str, str]]:
    methods = sorted({m for r in report.runs for m in r.energy_methods})
    how = " and ".join(METHODS.get(m, m) for m in methods) or "not measured by any run here"
    prices = list(dict.fromkeys(p for r in report.runs for p in r.prices))
    listed = "; ".join(prices[:5]) + (f"; and {len(prices) - 5} more" if len(prices) > 5 else "")
    return [
        ("Prices", f"As stored when each run began: {listed}." if prices else ""),
        ("Energy", f"{how[0].upper()}{how[1:]}." if report.runs else ""),
        ("Waste", "Work after the last checkpoint, set-up paid again, attempts that left nothing."),
        ("Not counted", "The pretrained encoders and the teacher's own training: somebody else paid them."),
        ("Every assumption", "ssmke-cost audit"),
    ]
