"""What the devices of a node report: energy, power, utilisation, memory.

A probe answers two questions: which devices does this run hold (``open``), and what do they read now
(``sample``). Energy is read in the best way there is, and says which: the device's own counter, else power
for the ledger to integrate, else the power limit as an estimate, else nothing. Unknown is None, never 0. A
probe may raise; the meter reports it once and goes on without.

``open_probe`` picks NVML where there are GPUs and the processor otherwise. A GPU run whose driver library is
missing keeps its devices (they are paid for); their power limit is known where their name is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from ssmke.cost.efficiency.devices import find
from ssmke.cost.machine import Machine

RAPL_ROOT = Path("/sys/class/powercap")
UNKNOWN_GPU = "GPU of unknown make"


@dataclass(frozen=True)
class Device:
    """One device of the node. ``id`` is stable over reboots: the GPU's UUID, or ``cpu:<hash of the
    machine>``.

    ``energy``: "counter" (the device counts joules), "power" (watts, integrated when read), "tdp" (its power
    limit, as if drawn all the time), "mig" (the share of a slice in its GPU's reading), or None (unknown).
    ``scope`` is "run" when the device was named by the trainer or the visible-devices string, "node" when all
    of the machine's were taken for want of a better answer.
    """

    id: str
    name: str
    kind: str = "gpu"
    memory_mib: int | None = None
    energy: str | None = None
    scope: str = "run"


@dataclass(frozen=True)
class Sample:
    """One reading: energy counter (mJ), power (mW), utilisation (%), used memory (MiB)."""

    mj: int | None = None
    mw: int | None = None
    util: float | None = None
    mem_mib: int | None = None


class DeviceProbe(Protocol):
    """Devices of one node. ``note`` says what could not be had, or is empty; ``driver`` is its version."""

    note: str
    driver: str | None

    def open(self) -> tuple[Device, ...]:
        """Finds the devices; called once, before ``sample``."""

    def sample(self) -> Mapping[str, Sample]:
        """What each device reads now, by device id; a device without reading may be absent."""

    def close(self) -> None:
        """Releases what ``open`` took."""


class ProbeUnavailable(Exception):
    """There is nothing for this probe to read on this node."""


class CpuProbe:
    """A node without GPU as one device; energy from RAPL where the kernel lets us read it."""

    def __init__(self, machine: Machine, *, rapl_root: Path = RAPL_ROOT) -> None:
        self.note = ""
        self.driver: str | None = None
        self._machine = machine
        self._rapl_root = rapl_root
        self._packages: list[_RaplPackage] = []

    def open(self) -> tuple[Device, ...]:
        for folder in sorted(self._rapl_root.glob("intel-rapl:*")):
            if folder.name.count(":") == 1:  # a package; its sub-domains are part of it
                try:
                    self._packages.append(_RaplPackage(folder))
                except (OSError, ValueError):
                    self._packages = []
                    self.note = f"{folder}/energy_uj cannot be read (needs root): CPU energy is unknown"
                    break
        psutil.cpu_percent(interval=None)  # the first answer is meaningless
        memory = self._machine.memory_bytes
        return (
            Device(
                id=self._machine.cpu_device,
                name=f"{self._machine.cpu_name or 'CPU'} x {self._machine.cpus or '?'}",
                kind="cpu",
                memory_mib=None if memory is None else memory >> 20,
                energy="counter" if self._packages else None,
            ),
        )

    def sample(self) -> Mapping[str, Sample]:
        return {
            self._machine.cpu_device: Sample(
                mj=sum(p.read_uj() for p in self._packages) // 1000 if self._packages else None,
                util=psutil.cpu_percent(interval=None),
                mem_mib=psutil.virtual_memory().used >> 20,
            )
        }

    def close(self) -> None:
        self._packages = []


class _RaplPackage:
    """One processor package's energy, unwrapped: the counter starts over at ``max_energy_range_uj``."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "energy_uj"
        self._range = int((folder / "max_energy_range_uj").read_text())
        self._wraps = 0
        self._last = int(self._file.read_text())

    def read_uj(self) -> int:
        raw = int(self._file.read_text())
        if raw < self._last:
            self._wraps += 1
        self._last = raw
        return raw + self._wraps * self._range


class BlindProbe:
    """GPUs that are known by UUID but cannot be read: counted; their power is their limit, or unknown."""

    def __init__(self, ids: Sequence[str], note: str, names: Mapping[str, str] | None = None) -> None:
        self.note = note
        self.driver: str | None = None
        known = {gpu_uuid(i): name for i, name in (names or {}).items()}
        self._names = {gpu_uuid(i): known.get(gpu_uuid(i), UNKNOWN_GPU) for i in ids}
        self._limits = {i: power_limit_mw(name) for i, name in self._names.items()}

    def open(self) -> tuple[Device, ...]:
        return tuple(
            Device(id=i, name=name, energy=None if self._limits[i] is None else "tdp")
            for i, name in self._names.items()
        )

    def sample(self) -> Mapping[str, Sample]:
        return {i: Sample(mw=limit) for i, limit in self._limits.items() if limit is not None}

    def close(self) -> None:
        return None


def open_probe(
    machine: Machine,
    device_ids: Sequence[str],
    visible: str | None,
    names: Mapping[str, str] | None = None,
) -> tuple[DeviceProbe, tuple[Device, ...]]:
    """The probe for this node, opened, and its devices (at least one).

    ``device_ids``: UUIDs of the GPUs in use on this node, as torch gives them. Without them ``visible`` (the
    value of CUDA_VISIBLE_DEVICES; "" means no GPU, None means not set) is resolved. ``names``: product names
    by UUID, as torch gives them, for a node whose driver library is missing.
    """
    from ssmke.cost.probes.nvml import NvmlProbe

    if device_ids or visible is None or visible.strip() not in ("", "-1"):
        probe: DeviceProbe = NvmlProbe(device_ids, visible)
        try:
            return probe, probe.open()
        except ProbeUnavailable as error:
            if device_ids:
                probe = BlindProbe(device_ids, f"GPU telemetry is missing: {error}", names)
                return probe, probe.open()
    probe = CpuProbe(machine)
    return probe, probe.open()


def power_limit_mw(name: str) -> int | None:
    """The power limit that is published for a product, milliwatts; None for a product we do not know."""
    spec = find(name)
    return None if spec is None or spec.tdp_w is None else spec.tdp_w * 1000


def gpu_uuid(text: str) -> str:
    """A UUID as NVML writes it; torch leaves out the prefix."""
    return text if text.startswith(("GPU-", "MIG-")) else f"GPU-{text}"


class Averager:
    """Collects samples between two beats: mean power and utilisation over time, peak memory, last counter."""

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._last_ns: int | None = None
        self._sums: dict[str, dict[str, list[float]]] = {}
        self._latest: dict[str, Sample] = {}
        self._peaks: dict[str, int] = {}

    def add(self, samples: Mapping[str, Sample]) -> None:
        now = self._clock()
        weight = 1.0 if self._last_ns is None else max(float(now - self._last_ns), 1.0)
        self._last_ns = now
        for device, sample in samples.items():
            self._latest[device] = sample
            sums = self._sums.setdefault(device, {})
            for name, value in (("mw", sample.mw), ("util", sample.util)):
                if value is not None:
                    pair = sums.setdefault(name, [0.0, 0.0])
                    pair[0] += value * weight
                    pair[1] += weight
            if sample.mem_mib is not None:
                self._peaks[device] = max(sample.mem_mib, self._peaks.get(device, 0))

    def take(self) -> dict[str, dict[str, int | float | None]]:
        """The ledger's ``d`` of a beat, and a fresh start; devices without any reading are absent."""
        rows: dict[str, dict[str, int | float | None]] = {}
        for device, sample in self._latest.items():
            means = {name: total / weight for name, (total, weight) in self._sums.get(device, {}).items()}
            rows[device] = {
                "mj": sample.mj,
                "mw": round(means["mw"]) if "mw" in means else None,
                "util": round(means["util"], 1) if "util" in means else None,
                "mem": self._peaks.get(device),
            }
        self._sums, self._latest, self._peaks = {}, {}, {}
        return rows
