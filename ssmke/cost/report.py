"""The report's numbers: every run below a folder, and the published baselines beside them.

A run is a lineage: all attempts of one training, wherever copies of its ledgers lie (`ssmke-cost import`, a
folder copied by hand), each counted once. Its numbers are derived from the ledgers alone, with the prices
stored in them: the same ledgers give the same report for ever, whatever the catalogue says later. Only
``reprice`` asks for another price. `render` shows it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from ssmke.cost.ledger.outcomes import OUTCOMES, is_stop, outcomes_by_attempt, wasted
from ssmke.cost.ledger.reader import Problems, Segment, ledger_files, read_run
from ssmke.cost.ledger.usage import Usage, attempts_of, usage_of
from ssmke.cost.ledger.writer import FOLDER
from ssmke.cost.prices.catalogue import Catalogue, shipped
from ssmke.cost.prices.lines import Line
from ssmke.cost.prices.quote import label_of
from ssmke.cost.prices.reprice import repriced
from ssmke.cost.published.baselines import Baseline, load
from ssmke.errors import DataError

_DEPTH = 4
_GROUPS: dict[str, tuple[str, ...]] = {
    "retrieval": (),
    "forecast": (),
    "efficiency": ("dtype", "device", "mfu_note"),
}
"""Facts that are groups of numbers, and which of their entries are words instead."""
_COUNTS = ("parameters", "pairs_per_epoch", "ranks")
_LARGEST = 1e24
_SKIPPED = {"checkpoints", "artifacts", "mlartifacts", "__pycache__", "node_modules"}


@dataclass(frozen=True)
class Attempt:
    """One launch of a run. ``outcome``: how it ended, "no end" if the process was killed or still runs."""

    name: str
    usage: Usage
    outcomes: Mapping[str, Usage]
    outcome: str
    resumed_step: int | None
    step: int | None
    resumed_pairs: int | None
    pairs: int | None
    began_wall_ns: int
    ended_wall_ns: int


@dataclass(frozen=True)
class RunReport:
    """A run over all its attempts (its lineage).

    ``usage`` is all that was paid, ``outcomes`` what it was good for (`outcomes`). ``pairs``: image-text pairs
    that made it into the result; ``pairs_redone``: processed again after a resume, because they came after the
    last checkpoint. ``prices`` and ``snapshots``: the distinct price labels and stored prices of its nodes.
    """

    name: str
    path: Path
    lineage: str
    parameters: int | None
    pairs: int | None
    pairs_redone: int
    usage: Usage
    outcomes: Mapping[str, Usage]
    attempts: tuple[Attempt, ...]
    prices: tuple[str, ...]
    snapshots: tuple[Mapping[str, Any], ...]
    devices: tuple[str, ...]
    nodes: int
    energy_methods: tuple[str, ...]
    clock_jumps: int
    began_wall_ns: int
    ended_wall_ns: int
    facts: dict[str, Any]

    @property
    def price(self) -> str:
        """The price basis in one line."""
        return "; ".join(self.prices) or "unknown"

    @property
    def final(self) -> Usage:
        """What an undisturbed run would have used: the useful part of the lineage."""
        return self.outcomes["useful"]

    @property
    def wasted(self) -> Usage:
        """What crashes and preemptions cost: the lineage without its useful part."""
        return wasted(self.outcomes)

    @property
    def recall_at_1(self) -> tuple[float, float] | None:
        """(image to text, text to image) in percent, of the evaluation at the end."""
        scores = self.facts.get("retrieval")
        try:
            return float(scores["i2t_r1"]), float(scores["t2i_r1"])  # type: ignore[index]
        except (KeyError, TypeError, ValueError):
            return None

    @property
    def eval_split(self) -> str | None:
        split = self.facts.get("eval_split")
        return split if isinstance(split, str) else None

    @property
    def pairs_per_usd(self) -> float | None:
        """Pairs that made it into the result, per dollar of the lineage."""
        if self.pairs is None or not self.usage.usd or self.usage.usd_partial:
            return None
        return self.pairs / float(self.usage.usd)

    @property
    def usd_per_point(self) -> Decimal | None:
        """Dollars of the lineage per point of R@1 (mean of both directions)."""
        if self.recall_at_1 is None or self.usage.usd is None or self.usage.usd_partial:
            return None
        mean = Decimal(str(sum(self.recall_at_1))) / 2
        return self.usage.usd / mean if mean > 0 else None

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation, 0 to 1; None where the device's peak is not known."""
        value = _mapping(self.facts.get("efficiency")).get("mfu")
        return float(value) if isinstance(value, (int, float)) else None

    @property
    def projected_usd(self) -> Decimal | None:
        """What the run was last expected to cost in all, while it ran."""
        value = _mapping(self.facts.get("forecast")).get("usd")
        return None if value is None else Decimal(str(value))


@dataclass(frozen=True)
class Unread:
    """A ledger, or a folder, that could not be read: what it holds is missing from every total."""

    path: Path
    why: str


@dataclass(frozen=True)
class Report:
    """All that ``ssmke-cost report`` shows. ``root``: where the runs were looked for."""

    root: Path
    runs: tuple[RunReport, ...]
    baselines: tuple[Baseline, ...]
    lines: tuple[Line, ...] = ()
    unread: tuple[Unread, ...] = ()

    @property
    def project(self) -> Usage:
        """All runs together, waste included."""
        return sum((run.usage for run in self.runs), Usage())

    @property
    def project_usd(self) -> Decimal | None:
        """Dollars of all runs, with storage and transfer; a lower bound where a run's price is not known."""
        known = [self.project.usd, *(line.usd for line in self.lines)]
        return sum((usd for usd in known if usd is not None), Decimal(0)) if any(known) else None


def report(root: Path, *, catalogue: Catalogue | None = None, reprice: str | None = None) -> Report:
    """Runs at or below ``root`` by name, and the baselines; DataError if ``root`` is no folder.

    ``reprice``: a price as ``--cost.price`` takes it, in place of the stored ones (never written back).
    """
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; name a run folder or the workspace that holds the run folders"
        )
    known = catalogue or shipped()
    lineages: dict[str, list[tuple[Path, list[Segment]]]] = {}
    problems: Problems = []
    for folder in find_runs(root, problems):
        found: dict[str, list[Segment]] = {}
        for segment in read_run(folder, problems=problems):
            found.setdefault(segment.lineage, []).append(segment)
        for lineage, members in found.items():
            lineages.setdefault(lineage, []).append((folder, members))
    runs = []
    for lineage, copies in lineages.items():
        members = [s for _, group in copies for s in group]
        if reprice is not None:
            members = [repriced(s, reprice, known) for s in members]
        runs.append(_run(lineage, copies[0][0], root, members))
    return Report(
        root=root,
        runs=tuple(sorted(runs, key=lambda r: (r.name, r.lineage))),
        baselines=tuple(load(catalogue=known)),
        lines=known.lines,
        unread=tuple(Unread(path, why) for path, why in sorted(set(problems))),
    )


def find_runs(root: Path, problems: Problems | None = None) -> Iterator[Path]:
    """Folders with a ledger, at most four levels below ``root``; nothing below a run is searched.

    ``problems`` is told of folders that cannot be opened. Links are not followed.
    """

    def tell(error: OSError) -> None:
        if problems is not None:
            problems.append((Path(error.filename), error.strerror or str(error)))

    for folder, names, _ in os.walk(root, onerror=tell):
        here = Path(folder)
        if FOLDER in names and ledger_files(here, problems):
            names.clear()
            yield here
            continue
        if len(here.relative_to(root).parts) >= _DEPTH:
            names.clear()
        names[:] = sorted(n for n in names if not n.startswith(".") and n not in _SKIPPED)


def _run(lineage: str, folder: Path, root: Path, members: list[Segment]) -> RunReport:
    groups = attempts_of(members)
    outcomes = outcomes_by_attempt(members)
    attempts = tuple(_attempt(name, group, outcomes[name]) for name, group in groups.items())
    ordered = [s for group in groups.values() for s in group]
    facts: dict[str, Any] = {}
    for segment in ordered:
        facts |= _sound(segment.facts)
    # Where the last attempt that trained stood: what an earlier one reached beyond it was lost.
    pairs = next(
        (kept for a in reversed(attempts) if (kept := _kept_pairs(groups[a.name])) is not None), None
    )
    first = next((a.resumed_pairs for a in attempts if a.resumed_pairs is not None), 0)
    processed = sum(a.pairs - (a.resumed_pairs or 0) for a in attempts if a.pairs is not None)
    parameters = facts.get("parameters")
    name = "." if folder == root else folder.relative_to(root).as_posix()
    snapshots = {str(sorted((s.price or {}).items(), key=str)): dict(s.price or {}) for s in ordered}
    return RunReport(
        name=folder.resolve().name if name == "." else name,
        path=folder,
        lineage=lineage,
        parameters=parameters if isinstance(parameters, int) else None,
        pairs=pairs,
        pairs_redone=0 if pairs is None else max(0, processed - (pairs - first)),
        usage=sum((a.usage for a in attempts), Usage()),
        outcomes={o: sum((a.outcomes[o] for a in attempts), Usage()) for o in OUTCOMES},
        attempts=attempts,
        prices=tuple(dict.fromkeys(label_of(s.price) for s in ordered)),
        snapshots=tuple(snapshots.values()),
        devices=tuple(sorted({name for s in ordered for _, name in s.devices})),
        nodes=max(len({s.host for s in group}) for group in groups.values()),
        energy_methods=tuple(sorted({e.method for s in ordered for e in s.energy.values() if e.method})),
        clock_jumps=sum(s.jumps for s in ordered),
        began_wall_ns=min(s.begin_wall_ns for s in ordered),
        ended_wall_ns=max(s.end_wall_ns for s in ordered),
        facts=facts,
    )


def _attempt(name: str, members: list[Segment], outcomes: Mapping[str, Usage]) -> Attempt:
    # Every node reports the same progress of the whole run, so the furthest counts, not the sum.
    furthest = max(members, key=lambda s: (s.pairs or 0, s.records))
    reasons = {s.reason for s in members}
    return Attempt(
        name=name,
        usage=usage_of(members),
        outcomes=outcomes,
        outcome="no end" if None in reasons else " and ".join(sorted(r for r in reasons if r)),
        resumed_step=furthest.resumed_step,
        step=furthest.step,
        resumed_pairs=furthest.resumed_pairs,
        pairs=furthest.pairs,
        began_wall_ns=min(s.begin_wall_ns for s in members),
        ended_wall_ns=max(s.end_wall_ns for s in members),
    )


def _kept_pairs(members: list[Segment]) -> int | None:
    """Pairs of the whole run that an attempt left in its last checkpoint; all of them if it finished or goes on."""
    segment = max(members, key=lambda s: (s.pairs or 0, s.records))
    first, last = (segment.resumed_step, segment.resumed_pairs), (segment.step, segment.pairs)
    if (
        segment.pairs is None
        or segment.reason in (None, "finished")
        or (not segment.saves and is_stop(segment))
    ):
        return segment.pairs
    if first[0] is None or first[1] is None or last[0] is None or last[0] <= first[0]:
        return first[1] or 0
    saved = segment.saves[-1].step if segment.saves else first[0]
    return first[1] + (segment.pairs - first[1]) * (saved - first[0]) // (last[0] - first[0])


def _sound(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as training leaves them; what has another type (a ledger that was edited) is left out."""
    kept: dict[str, Any] = {}
    for name, value in facts.items():
        if name in _GROUPS:
            if isinstance(value, dict):
                words = _GROUPS[name]
                kept[name] = {
                    key: each
                    for key, each in value.items()
                    if each is None or (isinstance(each, str) if key in words else _is_number(each))
                }
        elif name in _COUNTS:
            if _is_number(value) and value == int(value):
                kept[name] = int(value)
        elif isinstance(value, (str, int, float)):
            kept[name] = value
    return kept


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LARGEST


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
