"""What a node costs per hour: from what the user said, or guessed from what the machine is.

``--cost.price`` takes ``auto``, ``none``, US dollars per hour of a whole node (``0.69``), or a catalogue
entry (``aws/p5.48xlarge``, ``runpod/1x RTX4090 on-demand``, ``gcp/a2-highgpu-8g/us-central1/spot``). The
answer says where the number comes from; a guess says that it is one, and why. No price known is an answer
too: ``usd_per_hour`` None, shown as unknown, and device-hours are counted all the same.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from ssmke.cost.machine import Machine
from ssmke.cost.prices import ON_DEMAND, Catalogue, Price, PriceError
from ssmke.cost.probe import Device

# NVML product names -> the catalogue's accelerator names; the first pattern that fits wins.
_ACCELERATORS = (
    (r"\bGH200\b", "GH200"),
    (r"\bB200\b", "B200"),
    (r"\bH200\b", "H200"),
    (r"\bH100 NVL\b", "H100-NVL"),
    (r"\bH100\b", "H100"),
    (r"\bA100\b", "A100"),
    (r"\bA10G\b", "A10G"),
    (r"\bL40S\b", "L40S"),
    (r"\bL4\b", "L4"),
    (r"\bV100\b", "V100"),
    (r"\bT4\b", "T4"),
    (r"RTX 4090(?! (D|Laptop))", "RTX4090"),
    (r"RTX 6000 Ada", "RTX6000-Ada"),
)


@dataclass(frozen=True)
class Quote:
    """The hourly price of one node. ``usd_per_hour`` None: unknown, ``why`` says the reason.

    ``quantity`` instances of ``price`` make up the node (2 for two one-GPU instances side by side).
    """

    usd_per_hour: Decimal | None
    why: str
    guessed: bool = False
    quantity: int = 1
    price: Price | None = None

    @property
    def label(self) -> str:
        """One line for tables and progress: what, how much, and whether it is a guess."""
        if self.usd_per_hour is None:
            return f"unknown ({self.why})"
        times = f"{self.quantity} x " if self.quantity > 1 else ""
        what = (
            f"{times}{self.price.name}, {self.price.as_of_text[:10]}"
            if self.price
            else "given by --cost.price"
        )
        return f"${self.usd_per_hour.normalize():f}/h ({what}{', guessed' if self.guessed else ''})"

    def snapshot(self) -> dict[str, Any]:
        """What the ledger keeps, so that the report never depends on a later catalogue."""
        kept: dict[str, Any] = {
            "usd_per_hour": None if self.usd_per_hour is None else str(self.usd_per_hour),
            "currency": "USD",
            "guessed": self.guessed,
            "why": self.why,
            "quantity": self.quantity,
            "label": self.label,
        }
        if self.price is not None:
            kept |= {
                "provider": self.price.provider,
                "instance": self.price.instance,
                "region": self.price.region,
                "tier": self.price.tier,
                "as_of": self.price.as_of_text,
                "source": self.price.source,
                "source_ref": self.price.source_ref,
                "confidence": self.price.confidence,
            }
        return kept


def check_spec(spec: str, catalogue: Catalogue) -> None:
    """PriceError for a ``--cost.price`` that cannot work, before anything is paid for."""
    if spec != "auto":
        quote(spec, catalogue, devices=(), machine=None)


def quote(
    spec: str,
    catalogue: Catalogue,
    *,
    devices: Sequence[Device],
    machine: Machine | None,
    on: dt.date | None = None,
) -> Quote:
    """The price of a node with these devices at date ``on``; PriceError for a spec that fits nothing."""
    spec = spec.strip()
    if spec == "none":
        return Quote(None, "--cost.price none")
    if spec == "auto":
        return _guess(catalogue, devices, machine, on)
    given = _amount(spec)
    if given is not None:
        return Quote(given, "US dollars per hour and node, given by --cost.price")
    parts = [part.strip() for part in spec.split("/")]
    if not 2 <= len(parts) <= 4 or not all(parts):
        raise PriceError(
            f"--cost.price {spec!r}: expected auto, none, US dollars per hour (0.69), or "
            "provider/instance[/region[/tier]] as in `ssmke-cost prices list`"
        )
    region = parts[2] if len(parts) > 2 else None
    tier = parts[3] if len(parts) > 3 else None
    try:
        price = catalogue.lookup(parts[0], parts[1], region=region, tier=tier, on=on)
    except PriceError as error:
        raise PriceError(f"--cost.price: {error}") from None
    gpus = sum(d.kind == "gpu" for d in devices)
    quantity = max(1, math.ceil(gpus / price.gpus)) if price.gpus else 1
    return _instances(price, quantity, f"chosen by --cost.price {spec}", guessed=False)


def accelerator(name: str) -> str | None:
    """The catalogue's name of a GPU from NVML's product name; None where we do not know it."""
    for pattern, known in _ACCELERATORS:
        if re.search(pattern, name.replace("-", " ")):
            return known
    return None


def _amount(spec: str) -> Decimal | None:
    try:
        value = Decimal(spec)
    except InvalidOperation:
        return None
    if not value.is_finite() or value < 0:
        raise PriceError(f"--cost.price {spec}: US dollars per hour must be 0 or more")
    return value


def _guess(
    catalogue: Catalogue, devices: Sequence[Device], machine: Machine | None, on: dt.date | None
) -> Quote:
    gpus = [d for d in devices if d.kind == "gpu"]
    if gpus:
        return _guess_gpu(catalogue, gpus, on)
    return _guess_cpu(catalogue, machine, on)


def _guess_gpu(catalogue: Catalogue, gpus: Sequence[Device], on: dt.date | None) -> Quote:
    names = sorted({d.name for d in gpus})
    known = accelerator(names[0])
    if len(names) > 1 or known is None:
        return Quote(None, f"no price is known for {len(gpus)} x {' + '.join(names)}; set --cost.price")
    candidates = [
        p
        for p in catalogue.find(accelerator=known, tiers=ON_DEMAND, on=on)
        # NVML reports a little less than the nominal memory, never more than a tenth less.
        if gpus[0].memory_mib is None
        or (
            p.gpu_mem_gib is not None
            and abs(Decimal(gpus[0].memory_mib) / 1024 / p.gpu_mem_gib - 1) < Decimal("0.15")
        )
    ]
    form = next((f for f in ("SXM", "PCIe") if f.casefold() in names[0].casefold()), None)
    candidates = [p for p in candidates if form and p.form.startswith(form)] or candidates
    if not candidates:
        return Quote(None, f"no price is known for {len(gpus)} x {names[0]}; set --cost.price")
    exact = [p for p in candidates if p.gpus == len(gpus)]
    fitting = exact or [p for p in candidates if len(gpus) % p.gpus == 0] or candidates
    # Facts before rumours (confidence A, B, C), then one of as few pieces as possible, then the cheapest.
    best = min(fitting, key=lambda p: (p.confidence, -min(p.gpus, len(gpus)), p.usd_per_hour, p.name))
    why = f"the node has {len(gpus)} x {names[0]}; cheapest on-demand entry of the best confidence"
    return _instances(best, math.ceil(len(gpus) / best.gpus), why, guessed=True)


def _guess_cpu(catalogue: Catalogue, machine: Machine | None, on: dt.date | None) -> Quote:
    if machine is None or machine.cpus is None:
        return Quote(None, "the node's CPUs could not be read; set --cost.price")
    cpus = machine.cpus
    fitting = [
        p
        for p in catalogue.find(accelerator="CPU", tiers=ON_DEMAND, on=on)
        if p.vcpus is not None and p.vcpus >= cpus and machine.cpu_vendor in (None, p.cpu_vendor)
    ]
    if not fitting:
        vendor = machine.cpu_vendor or "unknown vendor"
        return Quote(None, f"no price is known for a node of {cpus} CPUs ({vendor}); set --cost.price")
    memory = None if machine.memory_bytes is None else machine.memory_bytes / 2**30

    def distance(price: Price) -> tuple[int, float, Decimal]:
        gap = 0.0 if memory is None else abs(math.log(float(price.host_mem_gib or 1) / memory))
        return (price.vcpus or 0, gap, price.usd_per_hour)

    best = min(fitting, key=distance)
    has = f"{cpus} {machine.cpu_vendor or ''} CPUs".replace("  ", " ") + (
        f", {memory:.1f} GiB" if memory else ""
    )
    why = f"the node has {has}; nearest entry has {best.vcpus} vCPUs, {best.host_mem_gib} GiB"
    return _instances(best, 1, why, guessed=True)


def _instances(price: Price, quantity: int, why: str, *, guessed: bool) -> Quote:
    return Quote(price.usd_per_hour * quantity, why, guessed=guessed, quantity=quantity, price=price)


def label_of(snapshot: Mapping[str, Any] | None) -> str:
    """The label that a ledger's price snapshot was stored with."""
    if snapshot is None:
        return "unknown (no price was stored)"
    return str(snapshot.get("label") or "unknown")
