"""The report's first sections: the runs of this workspace, where their time went, what was resumed or not read."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

from ssmke.cost.ledger.outcomes import OUTCOMES
from ssmke.cost.ledger.usage import Usage
from ssmke.cost.phases import PHASES
from ssmke.cost.render.numbers import AT_LEAST, UNKNOWN, count, energy, hours, money, money_short
from ssmke.cost.render.parts import Column, Marks, Section, Table
from ssmke.words import counted, percent

if TYPE_CHECKING:
    from ssmke.cost.report import Report, RunReport, Unread

MOST_RUNS = 40
MOST_DETAILED = 6
_MOST_UNREAD = 10


def unread_text(unread: Sequence[Unread], *, most: int = _MOST_UNREAD) -> str:
    """Which ledgers could not be read, and what that means for the totals; "" if all could."""
    if not unread:
        return ""
    named = "; ".join(f"{u.path} ({u.why})" for u in unread[:most])
    more = f"; and {len(unread) - most:,} more" if len(unread) > most else ""
    return (
        f"{counted(len(unread), 'ledger')} could not be read: {named}{more}. What is in there is missing here, so the "
        "project's total is a lower bound."
    )


def own_runs(report: Report, *, full: bool) -> list[Section]:
    title = f"Your runs in {report.root}"
    unread = unread_text(report.unread, most=len(report.unread) if full else _MOST_UNREAD)
    if not report.runs:
        none = f"No runs with a {'readable ' if unread else ''}cost ledger were found below {report.root}."
        return [Section(title, notes=(none, unread) if unread else (none,))]
    shown = list(report.runs)
    notes = [unread, _RUN_NOTE] if unread else [_RUN_NOTE]
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
    marks = Marks()
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
    Column("params", spare=5),
    Column("pairs", spare=2),
    Column("device-h"),
    Column("kWh", spare=1),
    Column("final"),
    Column("lineage"),
    Column("pairs/$", spare=4),
    Column("$/R@1", spare=3),
    Column("price"),
)


def _run_row(run: RunReport, name: str, marks: Marks) -> tuple[str, ...]:
    return (
        name,
        count(run.parameters),
        count(run.pairs),
        hours(run.usage.device_hours),
        energy(run.usage, unit=False),
        _part_usd(run.final, run.usage),
        _usd(run.usage),
        count(run.pairs_per_usd),
        money_short(run.usd_per_point, least=Decimal("1e-6")),
        "".join(marks.of(label) for label in run.prices),
    )


def _sums(report: Report) -> list[tuple[str, ...]]:
    project = report.project
    final = sum((run.final for run in report.runs), Usage())
    pairs = [run.pairs for run in report.runs if run.pairs is not None]
    spent: tuple[str, ...] = (
        count(sum(pairs)) if pairs else "",
        hours(project.device_hours),
        energy(project, unit=False),
        _part_usd(final, project),
        _usd(project),
    )
    if report.unread:
        spent = tuple(_at_least(cell) for cell in spent)
    label = f"project: {counted(len(report.runs), 'run')}"
    rows: list[tuple[str, ...]] = [(label, "", *spent, "", "", "")]
    if report.lines:
        partial = project.usd_partial or any(line.usd is None for line in report.lines) or bool(report.unread)
        usd = money_short(report.project_usd, partial=partial)
        rows.append(("with storage and transfer", "", "", "", "", "", usd, "", "", ""))
    return rows


def _usd(usage: Usage) -> str:
    return money_short(usage.usd, partial=usage.usd_partial)


def _part_usd(part: Usage, whole: Usage) -> str:
    """Dollars of a part of a run: "-" where it is known that there was none."""
    return "-" if whole.device_ns and not part.device_ns else _usd(part)


def _at_least(cell: str) -> str:
    return cell if cell in ("", "-", UNKNOWN) or cell.startswith(AT_LEAST) else f"{AT_LEAST}{cell}"


def _phases(runs: Sequence[tuple[str, RunReport]]) -> Section:
    found = [name for name in PHASES if any(run.usage.phases.get(name) for _, run in runs)]
    found += sorted({name for _, run in runs for name in run.usage.phases} - set(PHASES))
    rows = [
        (
            name,
            *(_part(run, p) for p in found),
            _part_usd(run.wasted, run.usage),
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
        again = "1 pair was" if run.pairs_redone == 1 else f"{count(run.pairs_redone)} pairs were"
        parts.append(f"{again} processed again after a resume")
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
        Column("ended", spare=1),
        Column("steps", spare=3),
        Column("device-h", spare=2),
        *(Column(t) for t in OUTCOMES),
    )
    return Section("Attempts of resumed runs", Table(columns, tuple(rows)))


def _common(names: Sequence[str]) -> str:
    """The folder that all names lie in, with its slash; "" if there is none."""
    shared = posixpath.commonpath([posixpath.dirname(n) for n in names]) if names else ""
    return f"{shared}/" if shared else ""
