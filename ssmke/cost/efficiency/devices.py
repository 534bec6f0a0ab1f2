"""What a device could do at best: dense peak per number format, memory bandwidth, power limit, each with its source.

The table (``data/devices.csv``) holds NVIDIA's published dense peaks; sparse ones, which data sheets print large,
are halved, and consumer cards count with fp32 accumulation, as training uses them. A device is recognised by
the whole of its NVML name: an H100 PCIe is no H100 SXM, a laptop's RTX 4090 no RTX 4090, and a slice of a GPU
has no published peak. What is not in the table is unknown: no MFU, never that of a similar device.
"""

from __future__ import annotations

import csv
import functools
import math
import re
from dataclasses import dataclass
from pathlib import Path

from ssmke.errors import ConfigError

DEVICES = Path(__file__).parents[1] / "data" / "devices.csv"
DTYPES = ("fp32", "tf32", "fp16", "bf16")
_MAKERS = re.compile(r"^(NVIDIA|Tesla)\s+", re.IGNORECASE)
_SLICE = re.compile(r"\bMIG\b")


@dataclass(frozen=True)
class DeviceSpec:
    """One device. None: the maker does not publish it, or the device cannot (bf16 on a V100).

    ``accelerator``, ``form`` and ``memory_gb`` are those of the price catalogue; peaks are dense TFLOP/s.
    """

    key: str
    nvml: str
    accelerator: str
    form: str
    memory_gb: int
    tdp_w: int | None
    fp32: float | None
    tf32: float | None
    fp16: float | None
    bf16: float | None
    bandwidth_gb_s: float | None
    source: str

    def peak(self, dtype: str) -> float | None:
        """Dense TFLOP/s in "fp32", "tf32", "fp16" or "bf16"; KeyError for another."""
        return {"fp32": self.fp32, "tf32": self.tf32, "fp16": self.fp16, "bf16": self.bf16}[dtype]

    @property
    def fp32_products(self) -> float | None:
        """Dense TFLOP/s of what is not computed in half precision, target caches too: TF32 where there is such."""
        return self.tf32 or self.fp32


@dataclass(frozen=True)
class Utilisation:
    """Model FLOPs utilisation, 0 to 1, or None and the reason why it is not known."""

    mfu: float | None
    tflops: float
    peak_tflops: float | None
    reason: str


def find(name: str) -> DeviceSpec | None:
    """The device with this NVML product name; None for one that the table does not hold, or a slice."""
    if _SLICE.search(name):
        return None
    bare = name.strip()
    while (shorter := _MAKERS.sub("", bare)) != bare:
        bare = shorter
    return next((spec for spec in table() if re.fullmatch(spec.nvml, bare, re.IGNORECASE)), None)


def named(text: str) -> tuple[DeviceSpec, str]:
    """The device that a user means, and a remark if it was one of several.

    Takes an NVML name, a key of the table ("H100-PCIe"), or an accelerator of the price catalogue; "H100" is
    then the first that the table lists. ConfigError for anything else.
    """
    found = find(text)
    if found is not None:
        return found, ""
    wanted = _plain(text)
    for spec in table():
        if _plain(spec.key) == wanted:
            return spec, ""
    several = [spec for spec in table() if _plain(spec.accelerator) == wanted]
    if several:
        others = ", ".join(spec.key for spec in several[1:])
        return several[0], f"{text} is taken as {several[0].key} (others: {others})" if others else ""
    raise ConfigError(
        f"device {text!r} is not known, so neither is its peak: name one of "
        f"{', '.join(spec.key for spec in table())}"
    )


def mfu(flops_per_second: float, device: str, dtype: str) -> Utilisation:
    """Utilisation of one ``device`` (NVML name) that does ``flops_per_second`` of model work in ``dtype``.

    A share above 1 is an error of the count, the clock or the dtype, and not passed on.
    """
    tflops = flops_per_second / 1e12
    if dtype not in DTYPES:
        return Utilisation(None, tflops, None, f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
    spec = find(device)
    if spec is None:
        return Utilisation(None, tflops, None, f"no peak is known for {device}")
    peak = spec.peak(dtype)
    if peak is None:
        return Utilisation(None, tflops, None, f"no {dtype} peak is published for {spec.key}")
    share = tflops / peak
    if not math.isfinite(share) or share < 0:
        return Utilisation(None, tflops, peak, f"{flops_per_second} operations a second is no rate")
    if share > 1:
        return Utilisation(
            None,
            tflops,
            peak,
            f"{tflops:.1f} TFLOP/s is above the {dtype} peak of {spec.key} ({peak:g}): miscounted",
        )
    return Utilisation(share, tflops, peak, f"{spec.key}, dense {dtype} peak {peak:g} TFLOP/s: {spec.source}")


@functools.lru_cache(maxsize=1)
def table() -> tuple[DeviceSpec, ...]:
    """All known devices, read once per process."""
    return read(DEVICES)


def read(path: Path) -> tuple[DeviceSpec, ...]:
    """The devices in a CSV file; ConfigError names the row that is wrong."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found: list[DeviceSpec] = []
    for row in rows:
        try:
            found.append(_spec(row))
        except (KeyError, TypeError, ValueError, re.error) as error:
            raise ConfigError(f"{path}: device {row.get('key')!r} is wrong: {error}") from error
    return tuple(found)


def _spec(row: dict[str, str]) -> DeviceSpec:
    def number(column: str) -> float | None:
        if not row[column]:
            return None
        value = float(row[column])
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{column} {row[column]} must be above 0; leave unknown empty")
        return value

    tdp, memory = number("tdp_w"), number("memory_gb")
    if not row["source"] or not row["key"] or memory is None:
        raise ValueError("key, memory_gb and source must be there")
    re.compile(row["nvml"])
    return DeviceSpec(
        key=row["key"],
        nvml=row["nvml"],
        accelerator=row["accelerator"],
        form=row["form"],
        memory_gb=int(memory),
        tdp_w=None if tdp is None else int(tdp),
        fp32=number("fp32_tflops"),
        tf32=number("tf32_tflops"),
        fp16=number("fp16_tflops"),
        bf16=number("bf16_tflops"),
        bandwidth_gb_s=number("bandwidth_gb_s"),
        source=row["source"],
    )


def _plain(text: str) -> str:
    return re.sub(r"[\s_-]", "", text).casefold()
