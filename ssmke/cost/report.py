"""The report's numbers: every run below a folder, and the published baselines beside them.

A run is a folder that holds ``cost/<attempt>/<node>.jsonl``. Its numbers are derived from those files alone,
with the prices stored in them: the same ledger gives the same report for ever, whatever the catalogue says
later. ``text`` renders it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssmke.cost.baselines import Baseline, load
from ssmke.cost.ledger import FOLDER, Segment, read_run
from ssmke.cost.quote import label_of
from ssmke.cost.usage import Usage, by_attempt, distinct
from ssmke.errors import DataError

_DEPTH = 4
_SKIPPED = {"checkpoints", "artifacts", "mlartifacts", "__pycache__", "node_modules"}


@dataclass(frozen=True)
class Attempt:
    """One launch of a run. ``outcome``: how it ended, "no end" if the process was killed or still runs."""

    name: str
    usage: Usage
    outcome: str
    resumed_step: int | None
    step: int | None
    resumed_pairs: int | None
    pairs: int | None


@dataclass(frozen=True)
class RunReport:
    """A run over all its attempts (its lineage).

    ``pairs``: image-text pairs that made it into the result; ``pairs_redone``: processed again after a resume,
    because they came after the last checkpoint. ``prices``: the distinct price labels of its nodes.
    """

    name: str
    path: Path
    parameters: int | None
    pairs: int | None
    pairs_redone: int
    usage: Usage
    attempts: tuple[Attempt, ...]
    prices: tuple[str, ...]
    devices: tuple[str, ...]
    facts: dict[str, Any]

    @property
    def price(self) -> str:
        """The price basis in one line."""
        return "; ".join(self.prices) or "unknown"


@dataclass(frozen=True)
class Report:
    """All that ``ssmke-cost report`` shows. ``root``: where the runs were looked for."""

    root: Path
    runs: tuple[RunReport, ...]
    baselines: tuple[Baseline, ...]


def report(root: Path) -> Report:
    """Runs at or below ``root`` by name, and the baselines; DataError if ``root`` is no folder."""
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; name a run folder or the workspace that holds the run folders"
        )
    runs = [run for folder in find_runs(root) if (run := read_report(folder, root)) is not None]
    return Report(root=root, runs=tuple(sorted(runs, key=lambda r: r.name)), baselines=tuple(load()))


def find_runs(root: Path) -> Iterator[Path]:
    """Folders with a ledger, at most four levels below ``root``; nothing below a run is searched."""
    for folder, names, _ in os.walk(root):
        here = Path(folder)
        if FOLDER in names and next((here / FOLDER).glob("*/*.jsonl"), None) is not None:
            names.clear()
            yield here
            continue
        if len(here.relative_to(root).parts) >= _DEPTH:
            names.clear()
        names[:] = sorted(n for n in names if not n.startswith(".") and n not in _SKIPPED)


def read_report(folder: Path, root: Path) -> RunReport | None:
    """One run's numbers; None when no file of its ledger has a readable start."""
    found = distinct(read_run(folder))
    if not found:
        return None
    usage = by_attempt(found)
    attempts = tuple(_attempt(name, u, [s for s in found if s.attempt == name]) for name, u in usage.items())
    facts: dict[str, Any] = {}
    for segment in sorted(found, key=lambda s: (s.begin_wall_ns, s.identity)):
        facts |= segment.facts
    # Where the last attempt that said anything stood: what an earlier one reached beyond it was lost.
    pairs = next((a.pairs for a in reversed(attempts) if a.pairs is not None), None)
    first = next((a.resumed_pairs for a in attempts if a.resumed_pairs is not None), 0)
    processed = sum(a.pairs - (a.resumed_pairs or 0) for a in attempts if a.pairs is not None)
    parameters = facts.get("parameters")
    name = "." if folder == root else folder.relative_to(root).as_posix()
    return RunReport(
        name=folder.resolve().name if name == "." else name,
        path=folder,
        parameters=parameters if isinstance(parameters, int) else None,
        pairs=pairs,
        pairs_redone=0 if pairs is None else max(0, processed - (pairs - first)),
        usage=sum(usage.values(), Usage()),
        attempts=attempts,
        prices=tuple(dict.fromkeys(label_of(s.price) for s in found)),
        devices=tuple(sorted({name for s in found for _, name in s.devices})),
        facts=facts,
    )


def _attempt(name: str, usage: Usage, members: list[Segment]) -> Attempt:
    # Every node reports the same progress of the whole run, so the furthest counts, not the sum.
    furthest = max(members, key=lambda s: (s.pairs or 0, s.records))
    reasons = {s.reason for s in members}
    open_ended = None in reasons
    return Attempt(
        name=name,
        usage=usage,
        outcome="no end" if open_ended else " and ".join(sorted(r for r in reasons if r)),
        resumed_step=furthest.resumed_step,
        step=furthest.step,
        resumed_pairs=furthest.resumed_pairs,
        pairs=furthest.pairs,
    )
