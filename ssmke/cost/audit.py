"""Every assumption behind a run's numbers, and what makes two of them incomparable.

A cost is a chain of assumptions: which price, of which day and source, for which node, over which time, with how much
energy measured and how. ``of_run`` spells out that chain for one run, ``of_report`` what holds for the workspace
and for the published runs beside it. A *warning* may change a conclusion; the rest is there so that nobody has to
guess. Only ``shared_nodes`` reads the ledgers again: two runs that were on one node at the same time both pay for
all of it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from ssmke.cost.ledger.reader import ENERGY_ERROR, read_run
from ssmke.cost.ledger.usage import HOUR_NS, Usage
from ssmke.cost.published.baselines import Baseline
from ssmke.cost.published.thesis import inconsistencies, load_thesis
from ssmke.cost.render.numbers import energy, hours, money, money_span
from ssmke.cost.render.own import unread_text
from ssmke.words import counted, percent

if TYPE_CHECKING:
    from ssmke.cost.report import Report, RunReport

WARN, INFO = "warn", "info"
_OLD_DAYS = 365
_MUCH_IDLE = 0.10
_COVERED = 0.9
_METHODS = {
    "counter": "the devices' energy counters",
    "power": "power readings x time",
    "tdp": "rated power x time, whatever the load was",
    "mig": "the whole GPU's energy x the slice's share of it",
}


@dataclass(frozen=True)
class Finding:
    """One assumption. ``about``: the number it stands behind."""

    severity: str
    about: str
    text: str


def of_run(run: RunReport, baselines: Sequence[Baseline] = ()) -> tuple[Finding, ...]:
    """What a run's numbers rest on, warnings first."""
    found = [
        *_dollars(run),
        *_bases(run, baselines),
        *_time(run),
        *_energy(run),
        *_scope(run),
        *_quality(run),
    ]
    return tuple(sorted(found, key=lambda f: f.severity != WARN))


def of_report(report: Report) -> tuple[Finding, ...]:
    """What holds for the whole workspace and for the published runs."""
    found = []
    if report.unread:
        found.append(Finding(WARN, "project", unread_text(report.unread)))
    if not report.lines:
        text = "no storage or transfer is counted: prices.toml has no [[line]]"
        found.append(Finding(INFO, "project", text))
    for line in report.lines:
        usd = "unknown: it has no end" if line.usd is None else money(line.usd)
        text = f"{line.kind} {line.name}: {line.label} = {usd} ({line.source})"
        found.append(Finding(WARN if line.usd is None else INFO, "project", text))
    found += _published(report.baselines)
    return tuple(sorted(found, key=lambda f: f.severity != WARN))


def shared_nodes(runs: Iterable[RunReport]) -> dict[str, tuple[Finding, ...]]:
    """By lineage, the runs that were on its node at the same time: each pays for the whole node."""
    stays: dict[tuple[str, str], list[tuple[int, int, str]]] = {}
    names: dict[str, str] = {}
    for run in runs:
        names[run.lineage] = run.name
        for segment in read_run(run.path):
            if segment.lineage == run.lineage:
                stay = (segment.begin_ns, segment.end_ns, run.lineage)
                stays.setdefault((segment.host, segment.boot), []).append(stay)
    together: dict[tuple[str, str], int] = {}
    for found in stays.values():
        present: list[tuple[int, str]] = []
        for begin, end, lineage in sorted(set(found)):
            present = [(until, other) for until, other in present if until > begin]
            for until, other in present:
                if other != lineage:
                    for pair in ((lineage, other), (other, lineage)):
                        together[pair] = together.get(pair, 0) + min(until, end) - begin
            present.append((end, lineage))
    result: dict[str, tuple[Finding, ...]] = {}
    for (lineage, other), ns in sorted(together.items(), key=lambda item: (names[item[0][1]], item[0])):
        text = (
            f"shared its node with {names[other]} for {hours(ns / HOUR_NS)} h: both pay for the whole node, and the "
            "project counts that time twice"
        )
        result[lineage] = (*result.get(lineage, ()), Finding(WARN, "dollars", text))
    return result


def _dollars(run: RunReport) -> Iterator[Finding]:
    known = [s for s in run.snapshots if s.get("usd_per_hour") is not None]
    if not known:
        yield Finding(
            WARN, "dollars", f"no price is known: {run.price}; `ssmke-cost report --reprice SPEC` prices it"
        )
        return
    if run.usage.usd_partial:
        priced = hours(run.usage.priced_ns / HOUR_NS)
        text = f"a lower bound: {priced} of {hours(run.usage.node_hours)} node-hours are priced in full"
        yield Finding(WARN, "dollars", text)
    if len(run.snapshots) > 1:
        yield Finding(WARN, "dollars", f"{len(run.snapshots)} different prices in one lineage: {run.price}")
    for snapshot in known:
        yield from _price(run, snapshot)


def _price(run: RunReport, snapshot: Mapping[str, Any]) -> Iterator[Finding]:
    label = str(snapshot.get("label") or f"${snapshot['usd_per_hour']}/h")
    if snapshot.get("guessed"):
        fits = _interval(run, snapshot)
        between = "" if fits is None else f"; what else would fit makes it {fits}"
        yield Finding(
            WARN,
            "dollars",
            f"the price is guessed: {label}; {snapshot.get('why')}{between}. Say --cost.price",
        )
    else:
        yield Finding(INFO, "dollars", f"price per node: {label}; {snapshot.get('why')}")
    for name, text in (snapshot.get("assumptions") or {}).items():
        if text != snapshot.get("why"):
            yield Finding(INFO, "dollars", f"assumed {name}: {text}")
    if snapshot.get("source") is None:
        yield Finding(INFO, "dollars", "the price has no source: whoever started the run gave the number")
        return
    source = " @".join(str(snapshot[k]) for k in ("source", "source_ref") if snapshot.get(k))
    grade = snapshot.get("confidence")
    text = f"price from {source}, as of {snapshot.get('as_of')}" + (f", grade {grade}" if grade else "")
    yield Finding(WARN if grade == "C" else INFO, "dollars", text)
    if snapshot.get("provider") != "own":
        yield from _age(run, str(snapshot.get("as_of")))


def _interval(run: RunReport, snapshot: Mapping[str, Any]) -> str | None:
    low, high = snapshot.get("usd_per_hour_low"), snapshot.get("usd_per_hour_high")
    if low is None or high is None or low == high or run.usage.usd is None or len(run.snapshots) > 1:
        return None
    hourly = Decimal(str(snapshot["usd_per_hour"]))
    if not hourly:
        return None
    usd = run.usage.usd / hourly
    return money_span((usd * Decimal(str(low)), usd * Decimal(str(high))))


def _age(run: RunReport, as_of: str) -> Iterator[Finding]:
    began = dt.datetime.fromtimestamp(run.began_wall_ns // 1_000_000_000, dt.timezone.utc).date()
    try:
        seen = dt.date.fromisoformat(f"{as_of}-01" if len(as_of) == 7 else as_of[:10])
    except ValueError:
        yield Finding(
            WARN, "dollars", "the price is undated: nobody knows whether it held when the run began"
        )
        return
    days = (began - seen).days
    if days < 0:
        text = f"the price was seen {counted(-days, 'day')} after the run began: no earlier one is known"
        yield Finding(WARN, "dollars", text)
    elif days > _OLD_DAYS:
        yield Finding(WARN, "dollars", f"the price was {counted(days, 'day')} old when the run began")
    else:
        yield Finding(INFO, "dollars", f"the price was {counted(days, 'day')} old when the run began")


def _bases(run: RunReport, baselines: Sequence[Baseline]) -> Iterator[Finding]:
    """Comparisons of this run's dollars with published ones of another tier."""
    tiers = {str(s["tier"]) for s in run.snapshots if s.get("tier")}
    unlike = [
        b
        for b in baselines
        if b.kind == "published" and b.cited is not None and tiers and {b.cited.tier} != tiers
    ]
    if not unlike:
        return
    parts = []
    for b in unlike:
        listed = b.at(b.on_demand)
        other = "" if listed is None else f", {money_span(listed)} on demand"
        parts.append(f"{b.name} at {b.cited.tier if b.cited else ''} {money(b.usd)}{other}")
    text = (
        f"this run is priced at {' and '.join(sorted(tiers))}, and published dollars as cited are not: "
        f"{'; '.join(parts)}. Compare within one column"
    )
    yield Finding(WARN, "comparison", text)


def _time(run: RunReport) -> Iterator[Finding]:
    blind = [a for a in run.attempts if a.usage.node_ns and not a.usage.device_ns]
    if blind:
        usage = sum((a.usage for a in blind), Usage())
        text = (
            f"{len(blind)} of {counted(len(run.attempts), 'attempt')} lists no device: {hours(usage.node_hours)} "
            f"node-hours ({money(usage.usd, partial=usage.usd_partial)}) are paid in the lineage, but not in the "
            "device-hours, nor in `final`, nor in what was wasted"
        )
        yield Finding(WARN, "device-hours", text.replace(" lists no", " list no") if len(blind) > 1 else text)
    open_ended = [a.name for a in run.attempts if a.outcome == "no end"]
    if open_ended:
        has = "has" if len(open_ended) == 1 else "have"
        yield Finding(
            WARN if len(open_ended) > 1 or open_ended[0] != run.attempts[-1].name else INFO,
            "device-hours",
            f"{len(open_ended)} of {counted(len(run.attempts), 'attempt')} {has} no end (killed, or still running): "
            "counted up to one heartbeat period after their last record",
        )
    if run.clock_jumps:
        text = (
            f"the wall clock was set {counted(run.clock_jumps, 'time')} by more than 2 s: durations are of the boot "
            "clock, so none changed"
        )
        yield Finding(INFO, "device-hours", text)
    lost = run.wasted
    if lost.device_ns:
        share = lost.device_ns / (run.usage.device_ns or 1)
        parts = ", ".join(
            f"{name} {hours(u.device_hours)}"
            for name, u in run.outcomes.items()
            if name != "useful" and u.device_ns
        )
        text = (
            f"{percent(share)} of the lineage's device-hours are not in the result ({parts}): published runs state "
            "the final run only, so compare `final` with them"
        )
        yield Finding(INFO, "device-hours", text)
    idle = run.usage.phases.get("idle", 0) / (run.usage.device_ns or 1)
    if idle > _MUCH_IDLE:
        text = f"{percent(idle)} of the time no phase was open: paid, but not explained"
        yield Finding(WARN, "device-hours", text)
    where = f"{run.nodes} node{'s' if run.nodes > 1 else ''}, {', '.join(run.devices) or 'no device listed'}"
    text = (
        f"{where}: from the meter's start to its end; booting the machine, copying data and idle time between "
        "attempts are not in it"
    )
    yield Finding(INFO, "device-hours", text)


def _energy(run: RunReport) -> Iterator[Finding]:
    usage = run.usage
    if usage.energy_kwh is None:
        text = "unknown: no device told its energy or power (a CPU does not)"
        yield Finding(INFO, "energy", text)
        return
    yield Finding(
        INFO if usage.energy_coverage >= _COVERED else WARN,
        "energy",
        f"{energy(usage)}; {percent(usage.energy_coverage)} of the device time was measured, the rest is not in it",
    )
    for method in run.energy_methods:
        estimated = method not in ("counter", "power")
        error = ENERGY_ERROR.get(method)
        margin = "error unknown" if error is None else f"±{error:.0%} by our choice".replace("%", " %")
        text = f"by {_METHODS.get(method, method)}: {margin}"
        yield Finding(WARN if estimated else INFO, "energy", text)
    text = "of the accelerators alone: host, network and cooling are not in it"
    yield Finding(INFO, "energy", text)


def _scope(run: RunReport) -> Iterator[Finding]:
    text = "whole nodes are charged; whether anybody else used them is not recorded, but for runs of this workspace"
    yield Finding(INFO, "dollars", text)
    text = "upstream cost is excluded: the pretrained encoders and the teacher were trained by others"
    yield Finding(INFO, "dollars", text)
    cached = run.usage.phases.get("target_cache", 0)
    if cached:
        share = percent(cached / (run.usage.device_ns or 1))
        text = f"building or checking the teacher's targets is in it: {share} of the device time"
        yield Finding(INFO, "dollars", text)
    else:
        text = (
            "no time went into teacher targets here: if there were any, another run or command paid for them"
        )
        yield Finding(INFO, "dollars", text)


def _quality(run: RunReport) -> Iterator[Finding]:
    if run.pairs is None or run.parameters is None:
        missing = " and ".join(
            n for n, v in (("pairs", run.pairs), ("parameters", run.parameters)) if v is None
        )
        yield Finding(INFO, "pairs", f"{missing} unknown: the run did not say")
    if run.recall_at_1 is not None:
        text = (
            f"R@1 is on {run.eval_split or 'an unnamed split'} of the run's own data: it compares with runs on that "
            "split; whether that is the published test set, the data must tell"
        )
        yield Finding(INFO, "quality", text)
    if run.mfu is None and run.facts.get("efficiency"):
        text = "no MFU: the peak of this device and number format is not known"
        yield Finding(INFO, "efficiency", text)


def _published(baselines: Sequence[Baseline]) -> Iterator[Finding]:
    rows = [b for b in baselines if b.kind == "published"]
    if not rows:
        return
    weak: dict[str, list[str]] = {}
    for b in rows:
        for basis in b.bases:
            price = basis.price
            if price is not None and (price.as_of is None or price.confidence == "C"):
                text = f"{price.name}, {price.as_of_text[:10]}, grade {price.confidence}"
                weak.setdefault(text, []).append(b.name)
    for text, names in weak.items():
        yield Finding(
            WARN,
            "comparison",
            f"{' and '.join(names)} priced with {text}: undated, hand-kept or a median",
        )
    for found in inconsistencies(load_thesis(), rows):
        yield Finding(WARN, "comparison", f"{found.title}. {found.text}")
    unpublished = [b.name for b in rows if b.unpublished]
    if unpublished:
        text = f"compute unpublished, so no dollars: {', '.join(unpublished)}"
        yield Finding(INFO, "comparison", text)
