"""Runs in simulated time: the real meter and ledger on a clock and probe that the test moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ssmke.cost.config import CostConfig
from ssmke.cost.machine import Machine
from ssmke.cost.meter import CostMeter
from ssmke.cost.probes.probe import Device, Sample
from ssmke.cost.probes.replay import FakeProbe

SECOND = 1_000_000_000
PERIOD = 5 * SECOND
MACHINE = Machine(
    host="h" * 16, boot="b" * 16, cpu_vendor="amd", cpu_name="EPYC", cpus=2, memory_bytes=16 << 30
)
GPU = Device(id="GPU-0", name="NVIDIA H100 80GB HBM3", memory_mib=81559, energy="counter")


@dataclass
class Clock:
    """A BOOTTIME and a wall clock; ``jump`` sets the wall clock off."""

    ns: int = 1_000 * SECOND
    wall_offset: int = 1_700_000_000 * SECOND

    def __call__(self) -> int:
        return self.ns

    def wall(self) -> int:
        return self.ns + self.wall_offset


@dataclass
class Run:
    """Attempts of one run folder, each a list of (phase or None for idle, seconds)."""

    folder: Path
    clock: Clock = field(default_factory=Clock)
    price: str = "0.69"
    pairs: int = 0

    def attempt(
        self,
        name: str,
        work: Sequence[tuple[str | None, float]],
        *,
        devices: Sequence[Device] = (GPU,),
        readings: Sequence[dict[str, Sample] | Exception] = (),
        machine: Machine = MACHINE,
        node_rank: int = 0,
        close: str | None = "finished",
        lineage: str = "lineage",
    ) -> CostMeter:
        meter = CostMeter(
            self.folder,
            lineage=lineage,
            attempt=name,
            node_rank=node_rank,
            config=CostConfig(price=self.price),
            probe=FakeProbe(devices, readings),
            machine=machine,
            clock=self.clock,
            wall=self.clock.wall,
            heartbeat=False,
        )
        meter.start()
        meter.progress(self.pairs, self.pairs)
        due = self.clock.ns + PERIOD
        for phase, seconds in work:
            left = round(seconds * SECOND)
            opened = meter.phase(phase) if phase is not None else None
            if opened is not None:
                opened.__enter__()
            while left:
                step = min(left, due - self.clock.ns)
                self.clock.ns += step
                left -= step
                if self.clock.ns == due:
                    meter.beat()
                    due += PERIOD
            if opened is not None:
                opened.__exit__(None, None, None)
            self.pairs += 1
            meter.progress(self.pairs, self.pairs)
        if close is not None:
            meter.close(close)
        return meter


class Killed(Exception):
    """The simulated process is gone."""


@dataclass
class Training:
    """A run with checkpoints that can be killed at any second and goes on from the last one.

    Set-up takes 5 s, a step 10 s, a checkpoint 1 s (after every ``every`` steps), and a killed attempt leaves its
    ledger as it is.
    """

    folder: Path
    steps: int
    every: int
    clock: Clock = field(default_factory=Clock)
    cache_seconds: float = 0.0
    price: str = "3.6"
    lineage: str = "lineage"
    saved: int = 0
    cached: float = 0.0

    def attempt(
        self,
        name: str,
        seconds: float | None,
        *,
        reason: str | None = None,
        devices: Sequence[Device] = (GPU,),
        readings: Sequence[dict[str, Sample] | Exception] = (),
    ) -> None:
        """Runs until done, or for ``seconds``: then it is killed, or with a ``reason`` stops at the next checkpoint."""
        meter = CostMeter(
            self.folder, lineage=self.lineage, attempt=name, config=CostConfig(price=self.price),
            probe=FakeProbe(devices, readings), machine=MACHINE, clock=self.clock, wall=self.clock.wall,
            heartbeat=False,
        )  # fmt: skip
        meter.start()
        self._due, self._meter = self.clock.ns + PERIOD, meter
        end = None if seconds is None else self.clock.ns + round(seconds * SECOND)
        try:
            self._work(meter, end, reason)
        except Killed:
            return

    def _work(self, meter: CostMeter, end: int | None, reason: str | None) -> None:
        limit = None if reason is not None else end
        with meter.phase("setup"):
            self._spend(5, limit)
        with meter.phase("target_cache"):
            while self.cached < self.cache_seconds:
                self._spend(1, limit)
                self.cached += 1
        step = self.saved
        meter.progress(step, step * 8)
        meter.beat()
        while step < self.steps:
            with meter.phase("train"):
                self._spend(10, limit)
            step += 1
            meter.progress(step, step * 8)
            stopping = reason is not None and end is not None and self.clock.ns >= end
            if step % self.every == 0 or stopping:
                with meter.phase("checkpoint"):
                    self._spend(1, limit)
                meter.saved(step)
                meter.beat()
                self.saved = step
            if stopping:
                self._spend(4, None)
                meter.close(reason or "")
                return
        meter.close("finished")

    def _spend(self, seconds: float, limit: int | None) -> None:
        left = round(seconds * SECOND)
        while left:
            pace = min(left, self._due - self.clock.ns)
            if limit is not None and self.clock.ns + pace > limit:
                self.clock.ns = max(limit, self.clock.ns)
                raise Killed
            self.clock.ns += pace
            left -= pace
            if self.clock.ns == self._due:
                self._meter.beat()
                self._due += PERIOD
