"""What the paid time was good for: useful, redone, failed, preempted.

A run over several attempts costs more than one that nobody disturbs. Each attempt's time falls into three
pieces, cut at two moments that the ledger holds: where training began, and the last checkpoint that a later
attempt went on from (or, where none did, the last one it left).

    set-up      useful in the first attempt that left a checkpoint or is the last; in the others it was paid
                again because the one before ended: *failed* or *preempted*, by how that ended. What the target
                cache gained is kept on disk, so it is useful in every attempt.
    kept work   up to that checkpoint: useful.
    the rest    *redone* if a later attempt went over it again; else (the end of an attempt that was stopped, work
                that nobody repeated) *failed* or *preempted*. An attempt that finished, or that has no end and no
                successor yet, keeps its rest: useful.

Pieces are device time by phase and add up to the attempt exactly; dollars and energy follow the time. Where the
record of a checkpoint was lost with the process, the first beat at or after its step stands in: at most one
heartbeat too much.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from decimal import Decimal

from ssmke.cost.ledger.reader import Moment, Segment
from ssmke.cost.ledger.usage import Usage, attempts_of, spread, usage_of

OUTCOMES = ("useful", "redone", "failed", "preempted")
STOPPED = ("preempted", "interrupted", "budget")
"""Reasons of an end that somebody wanted, after a checkpoint; all others but "finished" are failures."""

Pieces = dict[str, dict[str, int]]
"""Nanoseconds by outcome and phase."""


def by_outcome(found: Iterable[Segment]) -> dict[str, Usage]:
    """Usage of a lineage by OUTCOMES; the parts add up to the whole."""
    parts = outcomes_by_attempt(found).values()
    return {name: sum((p[name] for p in parts), Usage()) for name in OUTCOMES}


def wasted(parts: Mapping[str, Usage]) -> Usage:
    """All that was not useful."""
    return sum((usage for name, usage in parts.items() if name != "useful"), Usage())


def outcomes_by_attempt(found: Iterable[Segment]) -> dict[str, dict[str, Usage]]:
    """Usage by attempt (in order of time) and outcome."""
    groups = attempts_of(found)
    order = list(groups)
    began = [_resumed(groups[name]) for name in order]
    left = [max((m.step for s in groups[name] for m in s.saves), default=None) for name in order]
    result: dict[str, dict[str, Usage]] = {}
    kept_before = False
    for i, name in enumerate(order):
        later = [step for step in began[i + 1 :] if step is not None]
        cut = min(later) if later else None
        before = _class(groups[order[i - 1]]) if i else "failed"
        pieces: Pieces = {}
        for segment in groups[name]:
            _cut(segment, cut, first=not kept_before, before=before, into=pieces)
        result[name] = _share(usage_of(groups[name]), pieces)
        kept_before = kept_before or _keeps(began[i], left[i], cut)
    return result


def is_stop(segment: Segment) -> bool:
    """Whether an attempt ended because somebody wanted it to, which it does with a checkpoint."""
    return segment.reason in STOPPED


def _keeps(began: int | None, left: int | None, cut: int | None) -> bool:
    if began is None:
        return False
    return left is not None if cut is None else cut > began


def _resumed(members: list[Segment]) -> int | None:
    """The step that an attempt went on from; None if it never got to training."""
    return next((s.resumed_step for s in members if s.resumed_step is not None), None)


def _class(members: list[Segment]) -> str:
    return "preempted" if any(s.reason in STOPPED for s in members) else "failed"


def _cut(segment: Segment, cut: int | None, *, first: bool, before: str, into: Pieces) -> None:
    """Adds a segment's pieces. ``cut``: the earliest step that a later attempt went on from, None if none did."""
    whole = dict(segment.phases)
    setup = _until(whole, None if segment.begun is None else segment.begun.phases)
    if segment.begun is None and segment.resumed_step is not None:
        setup = {name: ns for name, ns in whole.items() if name in ("setup", "target_cache")}
    cached = {name: ns for name, ns in setup.items() if name == "target_cache"}
    rest_of_setup = _minus(setup, cached)
    work = _minus(whole, setup)
    own = _class([segment])
    if cut is None and segment.reason in (None, "finished"):
        kept = work
    else:
        moment = _kept_until(segment, cut)
        kept = {} if moment is None else _minus(_until(whole, moment.phases), setup)
    lost = _minus(work, kept)
    again = cut is not None and segment.step is not None and segment.step > cut
    # The set-up of an attempt that left nothing was for nothing, unless it is the one that still goes on.
    useful_setup = first and (bool(kept) or (cut is None and segment.reason in (None, "finished")))
    _add(into, "useful", cached)
    _add(into, "useful" if useful_setup else (before if not first else own), rest_of_setup)
    _add(into, "useful", kept)
    _add(into, "redone" if again else own, lost)


def _kept_until(segment: Segment, cut: int | None) -> Moment | None:
    if cut is None:
        if not segment.saves and is_stop(segment) and segment.resumed_step is not None:
            # A ledger from before checkpoints were recorded: a stop that was asked for ends with one.
            return Moment(segment.step or 0, segment.end_ns, segment.phases)
        return segment.saves[-1] if segment.saves else None
    if segment.resumed_step is None or cut <= segment.resumed_step:
        return None
    exact = [m for m in segment.saves if m.step <= cut]
    if exact and exact[-1].step == cut:
        return exact[-1]
    reached = [m for m in segment.passed if m.step >= cut]
    if reached:
        return reached[0]
    return exact[-1] if exact else None


def _until(whole: Mapping[str, int], phases: Mapping[str, int] | None) -> dict[str, int]:
    """``phases``, nowhere more than ``whole``; all of it for None."""
    if phases is None:
        return dict(whole)
    return {name: min(ns, int(phases.get(name, 0))) for name, ns in whole.items()}


def _minus(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: max(0, ns - other.get(name, 0)) for name, ns in one.items()}


def _add(into: Pieces, outcome: str, phases: Mapping[str, int]) -> None:
    sums = into.setdefault(outcome, {})
    for name, ns in phases.items():
        if ns:
            sums[name] = sums.get(name, 0) + ns


def _share(usage: Usage, pieces: Pieces) -> dict[str, Usage]:
    """An attempt's usage by outcome, in proportion to time: whole numbers, nothing lost in rounding."""
    keys = [(o, p) for o in OUTCOMES for p in sorted(pieces.get(o, {}))]
    sizes = {f"{o}/{p}": pieces[o][p] for o, p in keys}
    device = spread(sizes, usage.device_ns)
    if not sizes:
        device = {"useful/idle": usage.device_ns} if usage.device_ns else {}
    time = {name: sum(ns for key, ns in device.items() if key.startswith(f"{name}/")) for name in OUTCOMES}
    split = {
        field: spread(time, getattr(usage, field) or 0)
        for field in ("node_ns", "priced_ns", "energy_mj", "energy_ns", "energy_error_mj")
    }
    parts: dict[str, Usage] = {}
    left = usage.usd_ns
    for name in OUTCOMES:
        usd_ns = None
        if usage.usd_ns is not None and time[name]:
            usd_ns = (usage.usd_ns * time[name] / usage.device_ns).quantize(Decimal("1e-9"))
        if left is not None and usd_ns is not None:
            left -= usd_ns
        parts[name] = Usage(
            device_ns=time[name],
            node_ns=split["node_ns"].get(name, 0),
            usd_ns=usd_ns,
            priced_ns=split["priced_ns"].get(name, 0),
            energy_mj=None if usage.energy_mj is None or not time[name] else split["energy_mj"].get(name, 0),
            energy_ns=split["energy_ns"].get(name, 0),
            energy_error_mj=split["energy_error_mj"].get(name, 0),
            phases={k.partition("/")[2]: ns for k, ns in device.items() if k.startswith(f"{name}/")},
        )
    if left and parts[largest := max(OUTCOMES, key=lambda n: time[n])].usd_ns is not None:
        parts[largest] = replace(parts[largest], usd_ns=(parts[largest].usd_ns or Decimal(0)) + left)
    return parts
