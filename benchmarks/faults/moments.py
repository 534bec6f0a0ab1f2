"""The moments at which a fault hits, found from outside by what the run leaves in its folders.

Each place is a function that returns when the moment is there, or says that the attempt ended before. Between the
look and the signal a few milliseconds pass; `benchmarks.paced_pretrain` draws the short moments out so far that
this does not matter.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.attempts import Attempt
from ssmke.cost.ledger.reader import Segment, read_run
from ssmke.training.checkpoint import COMPLETE

LIMIT_S = 180.0
"""Longest wait for a moment."""


@dataclass(frozen=True)
class Watch:
    """An attempt that is watched."""

    attempt: Attempt
    victim: str
    run: Path
    targets: Path
    known: frozenset[str]
    """Ledgers of earlier attempts."""
    shards: int
    """Shards that the target cache will have."""
    steps: int
    """Steps of the whole run."""
    ready_s: float
    """From the start of the command to the first step, usually."""
    ending_s: float
    """From the last checkpoint to the results, usually."""
    pace_s: float
    dwell_s: float
    keep: int
    chance: random.Random

    def until(self, condition: Callable[[], object], pause_s: float = 0.002) -> bool:
        """Waits for ``condition``; False if the attempt ends first."""
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            if not self.attempt.running() or time.monotonic() > deadline:
                return False
            time.sleep(pause_s)
        return True

    def sleep(self, at_most_s: float) -> None:
        """A random part of ``at_most_s``."""
        time.sleep(self.chance.uniform(0.0, at_most_s))

    def begun(self) -> bool:
        """Whether this attempt is training."""
        newest = newest_segment(self.run, self.known)
        return newest is not None and newest.begun is not None


def in_targets(watch: Watch) -> bool:
    """While the target cache is built, after a random number of shards."""
    enough = watch.chance.randint(1, watch.shards - 3)
    return watch.until(lambda: len(target_records(watch.targets)) >= enough)


def in_setup(watch: Watch) -> bool:
    """At a random moment between the victim's birth and the first step, imports included."""
    rank = watch.victim.removeprefix("rank ")
    alive = watch.until(
        lambda: rank == watch.victim or watch.attempt.rank(int(rank)) is not None, pause_s=0.05
    )
    born = time.monotonic() - watch.attempt.started
    due = watch.attempt.started + watch.chance.uniform(min(born, 0.9 * watch.ready_s), 0.95 * watch.ready_s)
    return alive and watch.until(lambda: time.monotonic() >= due or watch.begun(), pause_s=0.02)


def in_training(watch: Watch) -> bool:
    """At a random one of the first ten steps."""
    begun = watch.until(watch.begun, pause_s=0.02)
    watch.sleep(10 * watch.pace_s)
    return begun and watch.attempt.running()


def in_writing(watch: Watch) -> bool:
    """Between the first file of a checkpoint and its COMPLETE.json."""
    old = _half(watch.run)
    while watch.until(lambda: _half(watch.run) - old):
        watch.sleep(0.8 * watch.dwell_s)
        if _half(watch.run) - old:
            return True
    return False


def in_pruning(watch: Watch) -> bool:
    """Between COMPLETE.json of a new checkpoint and the end of the pruning."""
    old = set(complete(watch.run))

    def crowded() -> bool:
        now = complete(watch.run)
        return len(now) > watch.keep and now[-1] not in old

    while watch.until(crowded):
        watch.sleep(0.5 * watch.dwell_s)
        if crowded():
            return True
    return False


def in_ending(watch: Watch) -> bool:
    """After the last checkpoint: in export, evaluation or what follows."""
    last = watch.run / "checkpoints" / f"step-{watch.steps:08d}" / COMPLETE
    there = watch.until(lambda: last.exists() and watch.begun())
    watch.sleep(0.9 * watch.ending_s)
    return there and watch.attempt.running()


PLACES: dict[str, Callable[[Watch], bool]] = {
    "targets": in_targets,
    "set-up": in_setup,
    "training": in_training,
    "writing": in_writing,
    "pruning": in_pruning,
    "ending": in_ending,
}
"""In the order of a lineage."""


def complete(run: Path) -> list[Path]:
    """Folders of checkpoints that say that they are complete."""
    return sorted(path.parent for path in (run / "checkpoints").glob(f"step-*/{COMPLETE}"))


def _half(run: Path) -> set[tuple[Path, int]]:
    """Checkpoints without COMPLETE.json, with the inode: an attempt writes the one of the same step anew."""
    found = set()
    for folder in {path.parent for path in (run / "checkpoints").glob("step-*/*.pt")}:
        try:
            number = folder.stat().st_ino
        except OSError:
            continue
        if not (folder / COMPLETE).exists():
            found.add((folder, number))
    return found


def target_records(targets: Path) -> list[Path]:
    """Records of the shards that the target cache holds."""
    return sorted(targets.glob("*/*/train-*.json"))


def ledgers(run: Path) -> frozenset[str]:
    """Names of the attempts that have a ledger."""
    return frozenset(path.name for path in (run / "cost").glob("*"))


def newest_segment(run: Path, known: frozenset[str]) -> Segment | None:
    """The ledger of the attempt that is not in ``known``."""
    if not ledgers(run) - known:
        return None
    found = [segment for segment in read_run(run) if segment.attempt not in known]
    return max(found, key=lambda segment: segment.begin_ns, default=None)
