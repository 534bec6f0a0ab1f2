"""Ends a run whose ranks can no longer go on together: within seconds, and with the culprit named.

When a rank dies or hangs, the others wait for it in a collective operation, on paid devices, until the backend's time
limit of ten to thirty minutes. Here every rank writes a line about itself into the process group's store each second:
its heart (a counter), its step, what it is doing, and a count of moves that changes whenever it gets on. Rank 0 reads
all lines, the others read rank 0's. Three things end a run, on all ranks:

- dead: the process is gone (seen at once on the same machine), or its heart has not moved for ``dead_seconds``;
- left: the rank has ended with an error of its own, which the others then repeat;
- hangs: the ranks that are furthest behind have not moved for as long as their phase may take.

A rank is told from those that only wait for it by its place: the earliest step, within a step data before training,
and there who is in no collective operation, as far as Python's stack shows it. Where all stand at the same place (a
deadlock, a dead link between them, or a GPU, which hosts wait for elsewhere than in the operation itself) that is said.
What every thread was doing then is in ``faults/rank-N.txt`` of the run folder.

The main thread gets a few seconds to leave by itself, since most backends report a lost peer (`explain` turns that into
`RankLost`); then the process ends here. It costs each rank two small messages a second, on connections of their own.
"""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ssmke.errors import SSMKEError
from ssmke.objectives.gather import rank, world_size
from ssmke.screen import clean
from ssmke.training.faults import FaultConfig
from ssmke.training.ranks import is_lost_peer
from ssmke.training.vitals import Line, Seen, Vitals

_PERIOD_S = 1.0
_GRACE_S = 5.0
_LAST_WORD_S = 3.0
_TELLING_S = 15.0
_SUSPENDED_S = 5.0


class RankLost(SSMKEError):
    """Another rank died, hung or failed; the run cannot go on and has ended on all ranks."""

    exit_code = 4


class Watchdog:
    """One rank's part of the watch."""

    def __init__(self, config: FaultConfig, run_dir: Path, attempt: str) -> None:
        self._config = config
        self._stacks = run_dir / "faults" / f"rank-{rank()}.txt"
        self._prefix = f"ssmke/watch/{attempt}"
        self.vitals = Vitals(config.hang_seconds)
        self._seen: dict[int, Seen] = {}
        self._gone: dict[int, float] = {}
        self._asked_at = time.monotonic()
        """When the newest answer of the store was asked for."""
        self._verdict: str | None = None
        self._judged, self._stopping = threading.Event(), threading.Event()
        self._writing = threading.Lock()
        self._last_words: Callable[[], None] = lambda: None

    def start(self, last_words: Callable[[], None]) -> None:
        """Begins the watch (collective). ``last_words``: what to close before the process is ended from here."""
        self._last_words = last_words
        if world_size() > 1:
            store = self._store()
            self._write(store)
            dist.barrier()  # from here on every rank's line exists
            self._read(store)
            threading.Thread(target=self._exchange, args=(store,), name="ssmke-watch", daemon=True).start()
        threading.Thread(target=self._judge, name="ssmke-judge", daemon=True).start()

    def stop(self, left: str = "") -> None:
        """Ends the watch on this rank and tells the others why: ``left`` is its error, "" for a good end.

        After an error rank 0 stays until the others know, for some seconds: it keeps the store.
        """
        self.vitals.left = left
        self._stopping.set()
        if world_size() > 1:
            # In a thread of its own: where rank 0 or the network is gone, the attempt to reach it lasts for minutes.
            telling = threading.Thread(target=self._tell, args=(left,), daemon=True)
            telling.start()
            keeper = self._seen.get(0)
            telling.join(_LAST_WORD_S + _PERIOD_S if keeper and keeper.line.is_gone() else _TELLING_S)

    def _tell(self, left: str) -> None:
        try:
            store = self._store()
            self._write(store)
            if rank() != 0 or not left:
                return
            store.set(self._key("verdict"), self._verdict or self.vitals.line().ended(0))
            deadline = time.monotonic() + _LAST_WORD_S
            while time.monotonic() < deadline:
                self._read(store)
                if all(s.line.left is not None or s.line.is_gone() for s in self._seen.values()):
                    return
                time.sleep(0.1)
        except RuntimeError:
            return  # rank 0 has gone already

    def explain(self, failure: BaseException) -> RankLost | None:
        """What ``failure`` of a collective operation comes from, or None if it is about something else."""
        if world_size() == 1 or isinstance(failure, SSMKEError):
            return None
        if self._verdict is None and not is_lost_peer(failure):
            return None
        self._judged.wait(self._config.dead_seconds + _GRACE_S)
        lost = RankLost(self._verdict or f"another rank cannot be reached ({failure}): {_REMEDY}")
        lost.told = not self._speaks()
        return lost

    def _store(self) -> Any:
        return dist.distributed_c10d._get_default_store().clone()

    def _key(self, name: int | str) -> str:
        return f"{self._prefix}/{name}"

    def _write(self, store: Any) -> None:
        with self._writing:  # no older line may come after one that says why this rank has left
            store.set(self._key(rank()), self.vitals.line().encode())
            # `set` does not wait for the server: without an answer an older line of another connection may come later,
            # and a process that ends now may take its line along.
            store.check([self._key(rank())])

    def _read(self, store: Any) -> None:
        others = range(1, world_size()) if rank() == 0 else range(1)
        asked = time.monotonic()
        lines = store.multi_get([self._key(number) for number in others])
        now = time.monotonic()
        for number, text in zip(others, lines, strict=True):
            line = Line.decode(text)
            self._seen.setdefault(number, Seen(line, now, now)).update(line, now)
        self._asked_at = asked

    def _exchange(self, store: Any) -> None:
        """Writes the own line and reads the others'; may block for as long as the network is gone."""
        verdict = self._key("verdict")
        while not self._stopping.is_set():
            try:
                store = store or self._store()
                self._write(store)
                self._read(store)
                if rank() == 0 and self._verdict is not None:
                    store.set(verdict, self._verdict)
                elif rank() != 0 and store.check([verdict]):
                    self._decide(store.get(verdict).decode())
                    self.vitals.left = "another rank was lost"
                    self._write(store)
                    return
            except RuntimeError:  # torch's store errors are children of it
                store = None
            self._stopping.wait(_PERIOD_S)

    def _judge(self) -> None:
        """Decides on what is known; never blocks."""
        woke = time.monotonic()
        while not self._stopping.wait(_PERIOD_S):
            slept, woke = time.monotonic() - woke, time.monotonic()
            now = woke
            if slept > _SUSPENDED_S:  # this whole process stood still: nobody else is to blame for that time
                self._forgive(slept)
                continue
            found = self._verdict or self._dead(now) or self._hangs(now)
            if found is not None:
                self._decide(found)
                self._end()
                return

    def _forgive(self, seconds: float) -> None:
        self.vitals.moved_at += seconds
        for seen in self._seen.values():
            seen.heart_at += seconds
            seen.moves_at += seconds

    def _decide(self, verdict: str) -> None:
        if self._verdict is None:
            self._verdict = clean(verdict)  # it may quote another rank's error
            self._judged.set()

    def _dead(self, now: float) -> str | None:
        for number, seen in self._seen.items():
            who = seen.line.who(number)
            where = seen.line.where
            if seen.line.left == "":
                continue
            if seen.line.left is not None:
                return seen.line.ended(number)
            if seen.line.is_gone():
                # It may have said why; that is read once more if the store can still be reached.
                noticed = self._gone.setdefault(number, now)
                # Rank 0 keeps the store, unless torchrun does: there only a busy machine delays the next reading.
                patience = 4 if rank() == 0 else 1
                if self._asked_at > noticed or now - noticed > patience * _LAST_WORD_S:
                    return f"{who} died, last heard of {where}: {_REMEDY}"
                continue
            silent = now - seen.heart_at
            # One call that keeps Python's lock, the loading of a library from a slow disk, silences a healthy process.
            patience = 10 if seen.line.is_here() else 3 if seen.line.doing == "setup" else 1
            if silent > patience * self._config.dead_seconds:
                return f"{who} has not been heard of for {silent:.0f} s, since it was {where}: {_REMEDY}"
        return None

    def _hangs(self, now: float) -> str | None:
        if rank() != 0:
            return None  # rank 0 sees all and says so
        own = Seen(self.vitals.line(), now, self.vitals.moved_at)
        ranks = {0: own, **self._seen}
        if any(seen.line.left is not None for seen in ranks.values()):
            return None
        place = {n: (s.line.step, s.line.doing != "data_wait", s.line.waits) for n, s in ranks.items()}
        behind = {n: ranks[n] for n in ranks if place[n] == min(place.values())}
        if any(s.line.limit == 0 or now - s.moves_at <= s.line.limit for s in behind.values()):
            return None
        still = min(now - seen.moves_at for seen in behind.values())
        first = next(iter(behind.values()))
        if len(behind) < len(ranks) or len(ranks) == 1:
            names = ", ".join(f"rank {n} ({seen.line.host})" for n, seen in behind.items())
            return f"{names} has stood still for {still:.0f} s {first.line.where}: {_REMEDY}"
        return (
            f"all {len(ranks)} ranks have stood still for {still:.0f} s {first.line.where}; what they wait for is in "
            f"{self._stacks.parent}: {_REMEDY}"
        )

    def _speaks(self) -> bool:
        verdict = self._verdict or ""
        return rank() == 0 or (verdict.startswith("rank 0 ") and "stood still" not in verdict)

    def _end(self) -> None:
        """Waits for the main thread to leave by itself, then ends the process, whatever else hangs or fails."""
        self._within(_GRACE_S, self._write_stacks)
        if self._stopping.wait(_PERIOD_S + _GRACE_S):
            return
        if self._speaks():
            self._within(_GRACE_S, lambda: print(f"error: {self._verdict}", flush=True))
        self._within(2 * _GRACE_S, self._last_words)
        os._exit(RankLost.exit_code)

    @staticmethod
    def _within(seconds: float, act: Callable[[], None]) -> None:
        """Does ``act`` in a thread of its own: a dead file system or a full pipe blocks or fails only that."""
        thread = threading.Thread(target=act, daemon=True)
        thread.start()
        thread.join(seconds)

    def _write_stacks(self) -> None:
        own = self.vitals.line()
        with suppress(OSError):
            self._stacks.parent.mkdir(parents=True, exist_ok=True)
            with self._stacks.open("w", encoding="utf-8") as file:
                file.write(f"{self._verdict}\n\n{own.who(rank())}, {own.where}\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)


_REMEDY = "the last checkpoint is kept, the same command with --resume auto goes on from there"
