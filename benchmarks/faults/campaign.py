"""Runs that take faults, one lineage after the other, at one pace of steps."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.faults.accounting import Accounts
from benchmarks.faults.attempts import VICTIMS, Attempt
from benchmarks.faults.comparison import damaged, differences, metrics
from benchmarks.faults.moments import (
    LIMIT_S,
    PLACES,
    Watch,
    complete,
    ledgers,
    newest_segment,
    target_records,
)
from ssmke.cost.ledger.outcomes import outcomes_by_attempt, wasted
from ssmke.cost.ledger.reader import read_run

SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT")
KEEP = 2
GONE_S = 90.0
"""Processes that live so long after a fault are orphans."""


@dataclass(frozen=True)
class Fault:
    """A signal to somebody in some place."""

    place: str
    signal: str
    victim: str

    def __str__(self) -> str:
        return f"{self.signal} of {self.victim} in {self.place}"


@dataclass
class Injury:
    """A fault that was injected, and what came of it."""

    fault: Fault
    gone_s: float
    """From the signal to the end of the last process."""
    orphans: list[str]
    """Processes that had to be killed."""
    said: str
    """The line that explains the end."""
    tracebacks: list[str]
    """Of the ranks and their workers."""
    reached: int
    """The last step in metrics.jsonl when all was gone."""
    ledger: str | None
    """The attempt's name in the ledger, None if it had not got so far."""
    lost_steps: int = 0
    lost_s: float = 0.0
    """Work (not set-up) of this attempt that the ledger calls redone, failed or preempted."""


@dataclass(frozen=True)
class Unbroken:
    """The run that nobody disturbed, and how long its stretches took."""

    folder: Path
    steps: int
    ready_s: float
    ending_s: float


@dataclass
class Lineage:
    """One run over all its attempts."""

    folder: Path
    injuries: list[Injury] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Differences from the unbroken run, attempts that failed by themselves, moments that did not come."""
    left: Counter[str] = field(default_factory=Counter)
    """Files that nobody needs any more, by kind."""
    accounts: Accounts | None = None

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.folder / "run"


class Campaign:
    """Trainings of one recipe in ``folder``."""

    def __init__(
        self,
        folder: Path,
        flags: Sequence[str],
        *,
        pace_s: float,
        dwell_s: float = 0.15,
        seed: int = 0,
        say: Callable[[str], None] = print,
    ) -> None:
        keeping = ["--checkpoint.keep", str(KEEP), "--checkpoint.minutes", "0.02", "--resume", "auto"]
        self._folder, self._flags = folder, [*keeping, *flags]
        self._pace_s, self._dwell_s, self._say = pace_s, dwell_s, say
        self._chance = random.Random(seed)

    def unbroken(self) -> Unbroken:
        """Trains once without a fault; RuntimeError if that fails."""
        folder = self._folder / "unbroken"
        results, ready_s = folder / "run/results.json", 0.0
        with self._start(folder) as attempt:
            while attempt.running():
                newest = None if ready_s else newest_segment(folder / "run", frozenset())
                if newest is not None and newest.begun is not None:
                    ready_s = time.monotonic() - attempt.started
                time.sleep(0.02)
        if attempt.process.returncode != 0 or not results.exists():
            raise RuntimeError(f"the unbroken run failed:\n{attempt.tail()}")
        saved = (complete(folder / "run")[-1] / "COMPLETE.json").stat().st_mtime
        steps = json.loads(results.read_text(encoding="utf-8"))["steps"]
        self._say(f"unbroken: ready after {ready_s:.1f} s, {time.monotonic() - attempt.started:.1f} s in all")
        return Unbroken(folder, steps, ready_s, results.stat().st_mtime - saved)

    def lineage(self, name: str, faults: Iterable[Fault], unbroken: Unbroken) -> Lineage:
        """A run that takes ``faults`` one after the other, goes on to its end, and is compared with ``unbroken``."""
        lineage = Lineage(self._folder / name)
        for fault in faults:
            self._hurt(lineage, fault, unbroken)
        if not (lineage.run / "results.json").exists():
            with self._start(lineage.folder) as attempt:
                orphans = attempt.gone(LIMIT_S)
            if attempt.process.returncode != 0 or orphans:
                lineage.problems.append(f"the last attempt failed: {orphans}\n{attempt.tail()}")
            lineage.left += attempt.leftovers()
        lineage.left["hidden partial files"] = len(list(lineage.folder.rglob("*.partial")))
        lineage.problems += differences(lineage.folder, unbroken.folder, KEEP)
        lineage.accounts = Accounts.of(lineage.run, unbroken.folder / "run", len(lineage.injuries))
        lineage.problems += lineage.accounts.problems()
        _work_lost(lineage)
        return lineage

    def _start(self, folder: Path) -> Attempt:
        folder.mkdir(exist_ok=True)
        places = ["--run-dir", str(folder / "run"), "--targets.dir", str(folder / "targets")]
        return Attempt([*self._flags, *places], folder, self._pace_s, self._dwell_s)

    def _hurt(self, lineage: Lineage, fault: Fault, unbroken: Unbroken) -> None:
        """One attempt with one fault, to the end of its last process."""
        known = ledgers(lineage.run)
        with self._start(lineage.folder) as attempt:
            watch = Watch(
                attempt=attempt,
                victim=fault.victim,
                run=lineage.run,
                targets=lineage.folder / "targets",
                known=known,
                shards=len(target_records(unbroken.folder / "targets")),
                steps=unbroken.steps,
                ready_s=unbroken.ready_s,
                ending_s=unbroken.ending_s,
                pace_s=self._pace_s,
                dwell_s=self._dwell_s,
                keep=KEEP,
                chance=self._chance,
            )
            came = PLACES[fault.place](watch) and attempt.send(getattr(signal, fault.signal), fault.victim)
            fired = time.monotonic()
            if not came:
                lineage.problems.append(f"{fault}: the moment did not come\n{attempt.tail()}")
            orphans = attempt.gone(GONE_S if came else 0.0)
            gone_s = time.monotonic() - fired
        lineage.left += attempt.leftovers()
        lineage.problems += [f"after {fault}: {problem}" for problem in damaged(lineage.run)]
        if not came:
            return
        steps = metrics(lineage.run)
        injury = Injury(
            fault,
            gone_s,
            orphans,
            attempt.said(),
            attempt.tracebacks(),
            reached=steps[-1]["step"] if steps else 0,
            ledger=next(iter(ledgers(lineage.run) - known), None),
        )
        lineage.injuries.append(injury)
        if orphans:
            lineage.problems.append(f"{fault}: outlived by {'; '.join(orphans)}")
        self._say(
            f"{fault}: after {fired - attempt.started:.1f} s at step {injury.reached}, all gone in {gone_s:.1f} s: "
            f"{injury.said}{' ' + str(injury.tracebacks) if injury.tracebacks else ''}"
        )


def deal(count: int, seed: int) -> list[list[Fault]]:
    """``count`` faults by lineage: every place in turn, signals and victims shuffled so that each pair comes up."""
    chance = random.Random(seed)
    pairs = [(name, victim) for name in SIGNALS for victim in VICTIMS]
    decks: dict[str, list[tuple[str, str]]] = {place: [] for place in PLACES}
    lineages: list[list[Fault]] = []
    for number in range(count):
        place = list(PLACES)[number % len(PLACES)]
        if number % len(PLACES) == 0:
            lineages.append([])
        if not decks[place]:
            decks[place] = chance.sample(pairs, len(pairs))
        lineages[-1].append(Fault(place, *decks[place].pop()))
    return lineages


def _work_lost(lineage: Lineage) -> None:
    """Fills in what each fault cost, from the ledgers."""
    found = read_run(lineage.run)
    outcomes = outcomes_by_attempt(found)
    order = list(outcomes)
    began = {s.attempt: s.resumed_step for s in found}
    for injury in lineage.injuries:
        if injury.ledger not in outcomes:
            continue
        later = order[order.index(injury.ledger) + 1 :]
        resumed = next((step for name in later if (step := began[name]) is not None), None)
        if began[injury.ledger] is not None and resumed is not None:
            injury.lost_steps = max(0, injury.reached - resumed)
        lost = wasted(outcomes[injury.ledger])
        injury.lost_s = sum(ns for phase, ns in lost.phases.items() if phase not in ("setup", "idle")) / 1e9
