"""The machine under a benchmark: its name for the table, the ceilings that a roofline is drawn with; the table's end.

Ceilings are measured, not read off a data sheet: the matrix product is one that the model's own layers have (tokens x
width times width x hidden), the copy is larger than any cache. Both take the best of several tries.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

_TRIES = 5


def describe() -> str:
    """Device, cores and torch, as every table of results names them, and the day."""
    what = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    cores = len(os.sched_getaffinity(0))
    return f"{what}, {cores} cores, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"


def processor() -> str:
    """The processor's model name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def product_ceiling(
    dtype: torch.dtype, device: torch.device, rows: int = 1576, inner: int = 768, columns: int = 3072
) -> float:
    """FLOP/s of one [rows, inner] x [inner, columns] product."""
    left = torch.randn(rows, inner, device=device).to(dtype)
    right = torch.randn(columns, inner, device=device).to(dtype)
    seconds = best_seconds(lambda: left @ right.T, device)
    return 2 * rows * inner * columns / seconds


def copy_ceiling(device: torch.device, megabytes: int = 512) -> float:
    """Bytes per second of a copy in device memory, read and write counted."""
    source = torch.ones(megabytes * 1_000_000 // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_seconds(lambda: target.copy_(source), device)


def best_seconds(run: Callable[[], object], device: torch.device, inner: int = 5) -> float:
    """Least mean of ``inner`` calls over several tries, after a warm-up."""
    run()
    found = float("inf")
    for _ in range(_TRIES):
        synchronise(device)
        begin = time.perf_counter()
        for _ in range(inner):
            run()
        synchronise(device)
        found = min(found, (time.perf_counter() - begin) / inner)
    return found


def synchronise(device: torch.device) -> None:
    """Waits for the device; on a CPU there is nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def publish(text: str, out: Path | None) -> None:
    """Prints a table and, where ``out`` names a file, writes it there too."""
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
