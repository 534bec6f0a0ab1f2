"""The meter: measures a run from inside the training process and never disturbs it.

On local rank 0 of each node it opens one ledger file, then a daemon thread reads the probe every second and
writes a beat every few seconds. The training thread only adds nanoseconds to a few integers: a phase costs
about 4 us, ``totals`` about 10 us, and no disk or driver call is ever made from
it after ``start``. Whatever fails (disk, probe, price list) is logged once and training goes on; what could
not be written is written later.

Time outside any phase is ``idle``; nested phases count for the innermost, so phases add up to the paid time.
"""

from __future__ import annotations

import atexit
import datetime as dt
import functools
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from ssmke.cost.config import CostConfig
from ssmke.cost.ledger.outcomes import by_outcome, wasted
from ssmke.cost.ledger.reader import Segment, read_file, read_run
from ssmke.cost.ledger.tally import Tally
from ssmke.cost.ledger.usage import Usage, dollars, total
from ssmke.cost.ledger.writer import FOLDER, FORMAT, LedgerWriter
from ssmke.cost.machine import Machine, boottime_ns, process_start
from ssmke.cost.phases import PhaseClock, Token
from ssmke.cost.prices.catalogue import Catalogue
from ssmke.cost.prices.file import load_prices
from ssmke.cost.prices.quote import Quote, quote
from ssmke.cost.probes.probe import Averager, Device, DeviceProbe, open_probe
from ssmke.cost.totals import Totals

_SAMPLE_S = 1.0
_SUMMARY_EVERY = 60
"""Beats; five minutes of them are read back where a run is still going on."""
_LONG_PHASE_NS = 1_000_000_000
_CLOSE_TIMEOUT_S = 10.0

_log = logging.getLogger(__name__)
_F = TypeVar("_F", bound=Callable[..., Any])


def _harmless(method: _F) -> _F:
    """Accounting must not stop training: what goes wrong is logged once per method, and None returned."""

    @functools.wraps(method)
    def guarded(self: CostMeter, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            self._report(f"meter.{method.__name__}", error)
            return None

    return guarded  # type: ignore[return-value]


class CostMeter:
    """Accounts one attempt of a run on one node. Only local rank 0 measures; elsewhere all calls do nothing.

    ``lineage`` names the run over all its attempts, ``attempt`` this launch (the same on every node, never
    used before). ``device_ids``: UUIDs of all GPUs that the run uses on this node (``torch.cuda.
    get_device_properties(i).uuid``); without them ``visible``, the value of CUDA_VISIBLE_DEVICES, is resolved
    ("" for a run on the CPU, None if unset). ``device_names``: product names by UUID, for a node whose driver
    library cannot be read. ``nodes``: how many nodes like this one ``totals`` stands for;
    the report counts each node's own ledger instead.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        lineage: str,
        attempt: str,
        config: CostConfig | None = None,
        node_rank: int = 0,
        local_rank: int = 0,
        nodes: int = 1,
        device_ids: Sequence[str] = (),
        device_names: Mapping[str, str] | None = None,
        visible: str | None = None,
        facts: Mapping[str, Any] | None = None,
        probe: DeviceProbe | None = None,
        catalogue: Catalogue | None = None,
        machine: Machine | None = None,
        clock: Callable[[], int] = boottime_ns,
        wall: Callable[[], int] = time.time_ns,
        heartbeat: bool = True,
    ) -> None:
        if not attempt or attempt != Path(attempt).name:
            raise ValueError(f"attempt {attempt!r} names a folder and must be free of path separators")
        self.active = local_rank == 0
        self._run_dir = Path(run_dir)
        self._lineage, self._attempt = lineage, attempt
        self._config = config or CostConfig()
        self._node = f"node{node_rank:04d}"
        self._nodes = nodes
        self._device_ids, self._device_names, self._visible = tuple(device_ids), device_names, visible
        self._facts = dict(facts or {})
        self._probe, self._catalogue, self._machine = probe, catalogue, machine
        self._clock, self._wall = clock, wall
        self._period_ns = round(self._config.heartbeat_seconds * 1e9)

        self._ledger = LedgerWriter(self._run_dir / FOLDER / attempt, self._node, clock=clock)
        self._averager = Averager(clock)
        self._quote = Quote(None, "the meter was not started")
        self._devices: tuple[Device, ...] = ()
        self._earlier: list[Segment] = []
        self._earlier_usage, self._earlier_attempts = Usage(), 0
        self._wasted: Usage | None = None
        self._tally: Tally | None = None

        self._lock = threading.RLock()  # re-entrant: a signal handler may ask for totals
        self._pid = os.getpid()
        self._reported: set[str] = set()
        self._running = False
        self._phases = PhaseClock(clock)
        self._final: tuple[int, str, dict[str, int]] | None = None
        self._pending: list[dict[str, Any]] = []
        self._step: int | None = None
        self._pairs: int | None = None
        self._from: tuple[int, int] | None = None
        self._sequence = 0

        self._heartbeat = heartbeat
        self._wake, self._stopping, self._closed = threading.Event(), threading.Event(), threading.Event()
        self._reason = "exited"
        self._thread: threading.Thread | None = None

    @property
    def devices(self) -> tuple[Device, ...]:
        """The devices that are accounted, known after ``start``."""
        return self._devices

    @property
    def quote(self) -> Quote:
        """The hourly price in use and where it comes from, known after ``start``."""
        return self._quote

    @_harmless
    def start(self) -> None:
        """Opens the ledger and starts counting; reads the earlier attempts of this run folder once."""
        if not self.active or self._running or self._closed.is_set():
            return
        self._phases.begin()
        self._running = True
        with self.phase("setup"):
            self._open_probe()
            self._choose_price()
            self._read_earlier()
            start = self._start_record()
            self._tally = Tally(start)
            self._append(start, durable=True)
            self.beat()
        if self._heartbeat:
            atexit.register(self.close, "exited")
            self._thread = threading.Thread(target=self._beat_until_closed, name="ssmke-cost", daemon=True)
            self._thread.start()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the time inside for ``name`` (see PHASES); nests, the innermost counts."""
        entered = self._enter(name)
        try:
            yield
        finally:
            self._leave(entered)

    @_harmless
    def progress(self, step: int, pairs: int) -> None:
        """Where the run is: optimiser steps and image-text pairs since its beginning, over all attempts.

        The first call of an attempt says where it resumes (0, 0 for a new run): before its first step.
        """
        if not self._live():
            return
        with self._lock:
            begins = self._from is None
            if self._from is None:
                self._from = (step, pairs)
            self._step, self._pairs = step, pairs
        if begins:
            self._put("begun", step=step)

    @_harmless
    def saved(self, step: int) -> None:
        """A checkpoint of ``step`` is complete: what was paid up to here is not lost any more."""
        if self._live():
            self._put("save", step=step)

    @_harmless
    def note(self, **facts: Any) -> None:
        """Facts for the report that are known only later (``parameters``, a metric): JSON values."""
        if self._live():
            self._put("note", facts=facts)

    def totals(self) -> Totals:
        """The lineage so far; cheap enough for every progress line."""
        try:
            return self._totals()
        except Exception as error:
            self._report("meter.totals", error)
            return Totals(price="unknown (accounting failed)")

    @_harmless
    def close(self, reason: str = "finished") -> None:
        """Writes the last beat and the end; waits at most 10 s for a disk that hangs. Later calls do nothing.

        ``reason``: finished, failed, preempted (SIGTERM), interrupted (Ctrl-C), exited (nobody said).
        """
        if not self._live():
            return
        self._reason = reason
        self._stopping.set()
        self._wake.set()
        if self._thread is None:
            self._finish()
        else:
            atexit.unregister(self.close)
            self._thread.join(_CLOSE_TIMEOUT_S)
            if self._thread.is_alive():
                self._report("the ledger", TimeoutError(f"did not close within {_CLOSE_TIMEOUT_S:.0f} s"))
        self._running = False

    @_harmless
    def beat(self) -> None:
        """Reads the devices and writes what was used so far. The heartbeat thread calls it; so may a test."""
        if not self._live():
            return
        self._sample()
        with self._lock:
            pending, self._pending = self._pending, []
        for record in pending:
            self._append(record)
        self._append(self._usage_record("beat"))
        self._find_waste()

    # What follows runs in the training thread and must stay short.

    def _live(self) -> bool:
        # A forked data worker inherits the meter but not its thread: it must not write.
        return self._running and os.getpid() == self._pid

    @_harmless
    def _enter(self, name: str) -> Token | None:
        return self._phases.enter(name) if self._live() else None

    @_harmless
    def _leave(self, token: Token | None) -> None:
        if token is None or not self._live():
            return
        entered, now = self._phases.leave(token)
        if now - entered >= _LONG_PHASE_NS:
            self._put("phase", name=token[0], begin=entered)

    def _put(self, kind: str, **content: Any) -> None:
        """Leaves a record to the heartbeat thread, with the phases of this moment if it has a ``step``."""
        now, phase, phases = self._phases.read()
        if "step" in content:
            content |= {"phase": phase, "phases": phases}
        with self._lock:
            self._pending.append({"t": kind, "b": now, "w": self._wall(), **content})
        self._wake.set()

    def _totals(self) -> Totals:
        if not self.active:
            return Totals()
        if not self._phases.begin_ns:
            return Totals(price=self._quote.label)
        now_ns, _, phases = self._final or self._phases.read()
        lived = now_ns - self._phases.begin_ns
        width = max(len(self._devices), 1) * self._nodes
        energy = [] if self._tally is None else list(self._tally.energy.values())
        known = [e.mj for e in energy if e.mj is not None]
        now = Usage(
            device_ns=lived * width,
            energy_mj=sum(known) * self._nodes if known else None,
            energy_ns=sum(e.covered_ns for e in energy) * self._nodes,
            phases={name: ns * width for name, ns in phases.items()},
        )
        snapshot = {"usd_per_hour": self._quote.usd_per_hour, "usd_per_kwh": self._quote.usd_per_kwh}
        now += dollars(snapshot, lived * self._nodes, now)
        hourly = self._quote.usd_per_hour
        return Totals.of(
            self._earlier_usage + now,
            wasted=self._wasted,
            attempts=self._earlier_attempts + 1,
            usd_per_hour=None if hourly is None else hourly * self._nodes,
            price=self._quote.label,
        )

    # What follows runs in start and in the heartbeat thread.

    @_harmless
    def _open_probe(self) -> None:
        self._machine = self._machine or Machine.this()
        if self._probe is None:
            self._probe, self._devices = open_probe(
                self._machine, self._device_ids, self._visible, self._device_names
            )
        else:
            self._devices = self._probe.open()
        if self._probe.note:
            _log.warning("cost: %s", self._probe.note)

    @_harmless
    def _choose_price(self) -> None:
        self._quote = Quote(None, "the price list could not be read")
        today = dt.datetime.fromtimestamp(self._wall() / 1e9, tz=dt.timezone.utc).date()
        self._quote = quote(
            self._config.price,
            self._catalogue
            or load_prices(None if self._config.prices is None else Path(self._config.prices)),
            devices=self._devices,
            machine=self._machine,
            on=today,
        )
        if self._quote.guessed:
            _log.info("cost: price guessed: %s; %s", self._quote.label, self._quote.why)

    @_harmless
    def _read_earlier(self) -> None:
        found = [s for s in read_run(self._run_dir, skip_attempt=self._attempt) if s.lineage == self._lineage]
        self._earlier = found
        self._earlier_usage, self._earlier_attempts = total(found), len({s.attempt for s in found})

    @_harmless
    def _find_waste(self) -> None:
        """Once training has begun, it is known how much of the earlier attempts was lost."""
        if self._wasted is None and self._ledger.path is not None and self._tally and self._tally.begun:
            found = [*self._earlier, *(s for s in read_file(self._ledger.path) if s.attempt == self._attempt)]
            self._wasted = wasted(by_outcome(found))

    def _beat_until_closed(self) -> None:
        due = self._clock() + self._period_ns
        while not self._stopping.is_set():
            woken = self._wake.wait(min(_SAMPLE_S, self._config.heartbeat_seconds))
            self._wake.clear()
            if self._stopping.is_set():
                break
            if woken or self._clock() >= due:
                self.beat()
                due = self._clock() + self._period_ns
            else:
                self._sample()
        self._finish()

    @_harmless
    def _finish(self) -> None:
        self.beat()
        self._final = self._phases.read()
        self._append(self._usage_record("end") | {"reason": self._reason}, durable=True)
        self._closed.set()
        self._ledger.close()
        if self._probe is not None:
            self._probe.close()

    @_harmless
    def _sample(self) -> None:
        if self._probe is not None and self._devices:
            self._averager.add(self._probe.sample())

    def _append(self, record: Mapping[str, Any], *, durable: bool = False) -> None:
        try:
            if record["t"] == "note":
                json.dumps(record, allow_nan=False)  # before the summary takes it over
            if self._tally is not None and record["t"] != "start":
                self._tally.add(record)
                if record["t"] == "end" or record.get("seq", 1) % _SUMMARY_EVERY == 0:
                    record = {**record, "begin": self._phases.begin_ns, **self._tally.summary()}
            self._ledger.append(record, durable=durable)
        except OSError as error:
            self._report("the ledger (kept in memory, and tried again with each beat)", error)
        except (TypeError, ValueError) as error:
            self._report(f"a {record['t']} record that JSON cannot hold is left out", error)

    def _report(self, what: str, error: Exception) -> None:
        if what not in self._reported:
            self._reported.add(what)
            _log.warning("cost: %s: %s: %s; training goes on", what, type(error).__name__, error)

    def _start_record(self) -> dict[str, Any]:
        machine = self._machine or Machine(host="unknown", boot="unknown")
        devices = self._devices or (Device(id=machine.cpu_device, name="unknown device", kind="cpu"),)
        return {
            "t": "start",
            "v": FORMAT,
            "b": self._phases.begin_ns,
            "w": self._wall(),
            "lineage": self._lineage,
            "attempt": self._attempt,
            "node": self._node,
            "host": machine.host,
            "boot": machine.boot,
            "pid": self._pid,
            "born": process_start(self._pid),
            "period": self._period_ns,
            "devices": [asdict(device) for device in devices],
            "driver": None if self._probe is None else self._probe.driver,
            "visible": self._visible,
            "price": self._quote.snapshot(),
            "facts": self._facts,
        }

    def _usage_record(self, kind: str) -> dict[str, Any]:
        readings = self._averager.take()
        now, phase, phases = self._final or self._phases.read()
        with self._lock:
            self._sequence += 1
            record: dict[str, Any] = {
                "t": kind,
                "b": now,
                "w": self._wall(),
                "seq": self._sequence,
                "phase": phase,
                "phases": phases,
                "step": self._step,
                "pairs": self._pairs,
                "from": self._from,
                "d": readings,
            }
        return record
