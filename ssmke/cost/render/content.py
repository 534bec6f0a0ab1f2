"""What the report shows, in the order in which a user wants to see it.

Own runs first, then the published ones in three price bases, the thesis' tables, today's cheap peers, and what
does not add up in the published numbers. Plain text without layout or escapes: those are the formats' business.
Prices are marked [1], [2], ... and spelled out once below their table, so that rows stay short.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from ssmke.cost.ledger.outcomes import OUTCOMES
from ssmke.cost.ledger.usage import Usage
from ssmke.cost.phases import PHASES
from ssmke.cost.prices.catalogue import Price
from ssmke.cost.published.baselines import BASES, Baseline, published_saving
from ssmke.cost.published.thesis import Thesis, inconsistencies, load_thesis, per_device
from ssmke.cost.render.numbers import (
    AT_LEAST,
    count,
    energy,
    hours,
    hours_span,
    money,
    money_short,
    money_span,
    percent,
    rate,
)

if TYPE_CHECKING:
    from ssmke.cost.report import Report, RunReport

MOST_RUNS = 40
MOST_DETAILED = 6


@dataclass(frozen=True)
class Column:
    """``right``: numbers, aligned and never broken; else text, which may be wrapped."""

    title: str
    right: bool = True


@dataclass(frozen=True)
class Table:
    """``rule``: the row before which a line is drawn (sums), None for none."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    rule: int | None = None


@dataclass(frozen=True)
class Section:
    """A heading, a table (or none), and paragraphs below it. ``legend``: what the marks in the table mean."""

    title: str
    table: Table | None = None
    legend: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def sections(report: Report, *, full: bool = False) -> tuple[Section, ...]:
    """The whole report; beyond MOST_RUNS runs the newest of them, unless ``full``."""
    thesis = load_thesis()
    return (
        *_own(report, full=full),
        _published(report.baselines),
        *_thesis(thesis),
        _peers(report.baselines),
        _inconsistencies(thesis, report.baselines),
    )


class _Marks:
    """Numbers texts in order of appearance."""

    def __init__(self) -> None:
        self._texts: dict[str, int] = {}

    def of(self, text: str) -> str:
        return f"[{self._texts.setdefault(text, len(self._texts) + 1)}]"

    def legend(self) -> tuple[str, ...]:
        return tuple(f"[{number}] {text}" for text, number in self._texts.items())


def _own(report: Report, *, full: bool) -> list[Section]:
    title = f"Your runs in {report.root}"
    if not report.runs:
        return [Section(title, notes=(f"No runs with a cost ledger were found below {report.root}.",))]
    shown = list(report.runs)
    notes = [_RUN_NOTE]
    if not full and len(shown) > MOST_RUNS:
        newest = {id(r) for r in sorted(shown, key=lambda r: (-r.began_wall_ns, r.name))[:MOST_RUNS]}
        shown = [r for r in shown if id(r) in newest]
        notes.insert(
            0,
            f"The newest {MOST_RUNS} of {len(report.runs):,} runs; the sum is over all. --full shows every run.",
        )
    prefix = _common([r.name for r in shown])
    if prefix:
        title += f", all below {prefix}"
    methods = sorted({m for r in shown for m in r.energy_methods})
    if methods:
        notes.append(
            f"kWh: of the accelerators alone, by {' and '.join(methods)}; >= where less was measured."
        )
    runs = [(r.name[len(prefix) :], r) for r in shown]
    marks = _Marks()
    rows = [_run_row(run, name, marks) for name, run in runs]
    table = Table(_RUN_COLUMNS, (*rows, *_sums(report)), rule=len(rows))
    found = [Section(title, table, marks.legend(), tuple(notes))]
    if full or len(runs) <= MOST_DETAILED:
        found.append(_phases(runs))
        attempts = _attempts(runs)
        found += [attempts] if attempts else []
    return found


_RUN_NOTE = (
    "final: the time that made it into the result; lineage: all attempts, with what was redone, failed or preempted. "
    "pairs: image-text pairs seen, once for each epoch. $/R@1: lineage dollars for a point of mean Recall@1 on the "
    "run's own evaluation split, so only runs on one split compare. `ssmke-cost audit` lists all that these numbers "
    "rest on."
)
_RUN_COLUMNS = (
    Column("run", right=False),
    *(
        Column(t)
        for t in ("params", "pairs", "device-h", "kWh", "final", "lineage", "pairs/$", "$/R@1", "price")
    ),
)


def _run_row(run: RunReport, name: str, marks: _Marks) -> tuple[str, ...]:
    return (
        name,
        count(run.parameters),
        count(run.pairs),
        hours(run.usage.device_hours),
        energy(run.usage, unit=False),
        _usd(run.final),
        _usd(run.usage),
        count(run.pairs_per_usd),
        money_short(run.usd_per_point, least=Decimal("1e-6")),
        "".join(marks.of(label) for label in run.prices),
    )


def _sums(report: Report) -> list[tuple[str, ...]]:
    project = report.project
    final = sum((run.final for run in report.runs), Usage())
    pairs = [run.pairs for run in report.runs if run.pairs is not None]
    each = f"{len(report.runs):,} runs" if len(report.runs) != 1 else "1 run"
    spent = (hours(project.device_hours), energy(project, unit=False), _usd(final), _usd(project))
    rows: list[tuple[str, ...]] = [
        (f"project: {each}", "", count(sum(pairs)) if pairs else "", *spent, "", "", "")
    ]
    if report.lines:
        partial = project.usd_partial or any(line.usd is None for line in report.lines)
        usd = money_short(report.project_usd, partial=partial)
        rows.append(("with storage and transfer", "", "", "", "", "", usd, "", "", ""))
    return rows


def _usd(usage: Usage) -> str:
    return money_short(usage.usd, partial=usage.usd_partial)


def _phases(runs: Sequence[tuple[str, RunReport]]) -> Section:
    found = [name for name in PHASES if any(run.usage.phases.get(name) for _, run in runs)]
    found += sorted({name for _, run in runs for name in run.usage.phases} - set(PHASES))
    rows = [
        (
            name,
            *(_part(run, p) for p in found),
            _usd(run.wasted),
        )
        for name, run in runs
    ]
    notes = [f"{name}: {facts}" for name, run in runs if (facts := _facts(run))]
    columns = (Column("run", right=False), *(Column(p.replace("_", " ")) for p in found), Column("wasted"))
    return Section("Where your device time went", Table(columns, tuple(rows)), notes=tuple(notes))


def _part(run: RunReport, phase: str) -> str:
    ns = run.usage.phases.get(phase, 0)
    return percent(ns / (run.usage.device_ns or 1)) if ns else "-"


def _facts(run: RunReport) -> str:
    parts = []
    if run.recall_at_1 is not None:
        i2t, t2i = run.recall_at_1
        split = f" on {run.eval_split}" if run.eval_split else ""
        parts.append(f"R@1 {i2t:.1f} image to text, {t2i:.1f} text to image{split}")
    if run.energy_methods:
        parts.append(f"energy {energy(run.usage)}, by {' and '.join(run.energy_methods)}")
    if run.mfu is not None:
        parts.append(f"MFU {percent(run.mfu)}")
    if run.projected_usd is not None and run.attempts[-1].outcome == "no end":
        parts.append(f"expected to cost {money(run.projected_usd)} in all")
    if run.pairs_redone:
        parts.append(f"{count(run.pairs_redone)} pairs were processed again after a resume")
    return "; ".join(parts)


def _attempts(runs: Sequence[tuple[str, RunReport]]) -> Section | None:
    rows = []
    for name, run in runs:
        for number, a in enumerate(run.attempts if len(run.attempts) > 1 else (), 1):
            steps = " to ".join("?" if s is None else f"{s:,}" for s in (a.resumed_step, a.step))
            outcomes = [_usd(a.outcomes[o]) if a.outcomes[o].device_ns else "-" for o in OUTCOMES]
            rows.append((f"{name} {number}", a.outcome, steps, hours(a.usage.device_hours), *outcomes))
    if not rows:
        return None
    columns = (
        Column("run, attempt", right=False),
        *(Column(t) for t in ("ended", "steps", "device-h", *OUTCOMES)),
    )
    return Section("Attempts of resumed runs", Table(columns, tuple(rows)))


def _common(names: Sequence[str]) -> str:
    """The folder that all names lie in, with its slash; "" if there is none."""
    shared = posixpath.commonpath([posixpath.dirname(n) for n in names]) if names else ""
    return f"{shared}/" if shared else ""


def _published(baselines: Sequence[Baseline]) -> Section:
    found = [b for b in baselines if b.kind == "published"]
    marks = _Marks()
    ranges = "; ".join(
        f"{b.name} {money_span(b.listed)}"
        for b in found
        if b.listed is not None and b.listed[0] != b.listed[1]
    )
    left_out: dict[str, list[str]] = {}
    for b in found:
        if not b.unpublished:
            left_out.setdefault(b.excludes, []).append(b.name)
    notes = [
        f"{published_saving(found)}, as cited. pairs: in the data set, not seen in training.",
        f"At the lowest to the highest list price of the same kind of device: {ranges}.",
        *(f"{' and '.join(names)} left out: {text}." for text, names in left_out.items()),
    ]
    columns = (
        Column("published run", right=False),
        *(Column(t) for t in ("params", "pairs", "device-h", *BASES)),
    )
    rows = tuple(_baseline_row(b, marks) for b in found)
    return Section(
        "Published runs: devices x hours x price, in three bases",
        Table(columns, rows),
        marks.legend(),
        tuple(notes),
    )


def _baseline_row(b: Baseline, marks: _Marks) -> tuple[str, ...]:
    return (
        b.label,
        count(b.parameters),
        count(b.pairs, at_least=b.pairs_at_least),
        "unpublished" if b.device_hours is None else hours_span(b.device_hours),
        *_bases(b, marks),
    )


def _bases(b: Baseline, marks: _Marks) -> list[str]:
    cells = []
    floors = b.at_least.bases if b.at_least is not None else b.bases
    for basis, floor in zip(b.bases, floors, strict=True):
        if basis.usd is not None and basis.price is not None:
            cells.append(f"{money_span(basis.usd)} {marks.of(price_text(basis.price))}")
        elif basis is not floor and floor.usd is not None and floor.price is not None:
            cells.append(f"{AT_LEAST}{money(floor.usd[0])} {marks.of(price_text(floor.price))}")
        else:
            cells.append(basis.why)
    return cells


def price_text(price: Price) -> str:
    """A catalogue row in words: dollars for a device-hour, key, date, confidence."""
    when = "undated" if price.as_of is None else price.as_of_text[:10]
    return f"{rate(per_device(price))} per device-h: {price.name}, {when}, grade {price.confidence}"


def _peers(baselines: Sequence[Baseline]) -> Section:
    found = [b for b in baselines if b.kind == "peer"]
    marks = _Marks()
    columns = (
        Column("peer", right=False),
        *(Column(t) for t in ("pairs", "device-h", *BASES[1:], "list prices")),
    )
    rows = tuple(
        (b.label, count(b.pairs), hours_span(b.device_hours), *_bases(b, marks)[1:], money_span(b.listed))
        for b in found
    )
    notes = [f"{b.name}: {b.source}. Left out: {b.excludes}; {b.note}." for b in found]
    return Section("Today's cheap peers, priced by us", Table(columns, rows), marks.legend(), tuple(notes))


def _thesis(thesis: Thesis) -> tuple[Section, Section]:
    here, there = (f"{p.provider} {rate(per_device(p))}" for p in (thesis.here, thesis.there))
    columns = (
        Column("thesis model", right=False),
        *(Column(t) for t in ("params", "samples", "hours", "device-h", here, "printed", there, "printed")),
    )
    rows = []
    for m in thesis.models:
        paid, compared = thesis.usd(m)
        hardware = f"{m.devices} x {hours(m.hours)}"
        numbers = (hardware, hours(m.device_hours), money(paid), m.printed[0], money(compared), m.printed[1])
        rows.append((m.name, count(m.parameters), count(m.samples), *numbers))
    final = thesis.usd(thesis.models[-1])[0]
    prices = tuple(f"{price_text(p)} ({p.accelerator})" for p in (thesis.here, thesis.there))
    models = Section("The thesis' six models", Table(columns, tuple(rows)), prices)
    columns = (
        Column("thesis project", right=False),
        *(Column(t) for t in ("amount", "paid", f"at {here}", "AWS, printed", f"at {there}")),
    )
    lines = []
    for line in thesis.project:
        computed = thesis.line_usd(line)
        lines.append(
            (
                line.name,
                line.amount,
                money(line.printed[0]),
                "no factors" if computed is None else money(computed[0]),
                "-" if line.printed[1] is None else money(line.printed[1]),
                "no factors" if computed is None else money(computed[1]),
            )
        )
    total = ("total", "", money(thesis.paid), "", f"> {money(thesis.printed_total[1])}", "")
    note = (
        f"The final run ({money(final)}) is {percent(float(final / thesis.paid))} of the project: the whole cost "
        f"{float(thesis.paid / final):.0f} times as much."
    )
    table = Table(columns, (*lines, total), rule=len(lines))
    return models, Section("The thesis' whole project", table, notes=(note,))


def _inconsistencies(thesis: Thesis, baselines: Sequence[Baseline]) -> Section:
    found = inconsistencies(thesis, baselines)
    return Section(
        "What does not add up in the published numbers",
        notes=tuple(f"{number}. {i.title}. {i.text}" for number, i in enumerate(found, 1)),
    )
