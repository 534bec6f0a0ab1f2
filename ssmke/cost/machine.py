"""What a node is: its clock, its identity, and its processor, as far as the operating system tells.

Durations come from CLOCK_BOOTTIME: it never jumps with the wall clock and keeps counting while the machine
sleeps, as the bill does. It starts anew at each boot, so it is only compared within one boot id. Host name
and machine id are hashed: a ledger that is copied or published does not name the machine.

Unknown is None. Cost: a few small reads of /proc, once per attempt.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

_BOOTTIME: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_VENDORS = {"GenuineIntel": "intel", "AuthenticAMD": "amd"}


def boottime_ns() -> int:
    """Nanoseconds since boot, sleep included (where the system lacks BOOTTIME: monotonic, sleep excluded)."""
    return time.clock_gettime_ns(_BOOTTIME)


@dataclass(frozen=True)
class Machine:
    """One node. ``host`` and ``boot`` are hashes; ``memory_bytes`` is the smaller of RAM and cgroup limit."""

    host: str
    boot: str
    cpu_vendor: str | None = None
    cpu_name: str | None = None
    cpus: int | None = None
    memory_bytes: int | None = None

    @property
    def cpu_device(self) -> str:
        """Id of the one device of a node without GPU: its device-hours are node-hours."""
        return f"cpu:{self.host}"

    @classmethod
    def this(cls) -> Machine:
        """The node that this process runs on."""
        machine_id = _text("/etc/machine-id") or ""
        boot_id = _text("/proc/sys/kernel/random/boot_id") or "unknown"
        vendor, name = _processor()
        # CPUs this process may run on, not those of the host: a container is billed by its share.
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        quota = _cgroup_cpus()
        if cpus is not None and quota is not None:
            cpus = min(cpus, max(1, round(quota)))
        return cls(
            host=_hash(machine_id + "|" + platform.node()),
            boot=_hash(boot_id),
            cpu_vendor=vendor,
            cpu_name=name,
            cpus=cpus,
            memory_bytes=_memory(),
        )


def process_start(pid: int) -> int | None:
    """When a process of this machine began, in clock ticks since boot; None if there is none (any more).

    With the number of the process it tells one from a later one that got the same number.
    """
    stat = _text(f"/proc/{pid}/stat")
    if stat is None:
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state == "Z" else int(fields[18])


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _processor() -> tuple[str | None, str | None]:
    fields: dict[str, str] = {}
    for line in (_text("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    if platform.machine().lower() in ("aarch64", "arm64"):
        return "arm", fields.get("model name") or platform.machine()
    return _VENDORS.get(fields.get("vendor_id", "")), fields.get("model name") or platform.processor() or None


def _cgroup_cpus() -> float | None:
    limit = (_text("/sys/fs/cgroup/cpu.max") or "").split()
    if len(limit) == 2 and limit[0].isdigit() and limit[1].isdigit() and int(limit[1]) > 0:
        return int(limit[0]) / int(limit[1])
    return None


def _memory() -> int | None:
    total: int | None = None
    for line in (_text("/proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            total = int(line.split()[1]) * 1024
    limits = [_text("/sys/fs/cgroup/memory.max"), _text("/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    # Without a limit, cgroup v1 says a number near 2**63 and v2 says "max".
    known = [int(x) for x in limits if x is not None and x.isdigit() and int(x) < 1 << 60]
    if total is not None:
        known.append(total)
    return min(known) if known else None
