"""What a node costs per hour: from what the user said, or guessed from what the machine is.

``--cost.price`` takes ``auto``, ``none``, US dollars per hour of a whole node (``0.69``), a catalogue entry
(``aws/p5.48xlarge``, ``runpod/1x RTX4090 on-demand``, ``gcp/a2-highgpu-8g/us-central1/spot``), or hardware of
one's own (``own/lab-box``). The answer says where the number comes from; a guess says that it is one, why, and
between which prices lies what else would fit. No price known is an answer too: ``usd_per_hour`` None, shown as
unknown, and device-hours are counted all the same.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from ssmke.cost.efficiency import devices as known_devices
from ssmke.cost.machine import Machine
from ssmke.cost.prices.catalogue import ON_DEMAND, Catalogue, Price, PriceError
from ssmke.cost.prices.own import OwnHardware
from ssmke.cost.prices.rates import micro, plausible
from ssmke.cost.probes.probe import Device
from ssmke.words import counted

FLAG = "--cost.price"
"""Where a price is chosen, unless the caller says otherwise: messages name it."""


@dataclass(frozen=True)
class Quote:
    """The hourly price of one node. ``usd_per_hour`` None: unknown, ``why`` says the reason.

    ``quantity`` instances of ``price`` (or machines like ``own``) make up the node: 2 for two one-GPU instances
    side by side. ``usd_per_kwh``: electricity to be added for measured energy; None where it is in the hourly
    price. ``low`` and ``high``: between what the hour lies if the price is a guess (all on-demand entries that
    fit the machine) or an amortisation (linear and by market value). ``assumptions``: what the number rests on.
    ``flag``: where the user said it.
    """

    usd_per_hour: Decimal | None
    why: str
    guessed: bool = False
    quantity: int = 1
    price: Price | None = None
    usd_per_kwh: Decimal | None = None
    low: Decimal | None = None
    high: Decimal | None = None
    own: OwnHardware | None = None
    assumptions: Mapping[str, str] = field(default_factory=dict)
    flag: str = FLAG

    @property
    def label(self) -> str:
        """One line for tables and progress: what, how much, and whether it is a guess."""
        if self.usd_per_hour is None:
            return f"unknown ({self.why})"
        times = f"{self.quantity} x " if self.quantity > 1 else ""
        if self.price is not None:
            what = f"{times}{self.price.name}, {self.price.as_of_text[:10]}"
        elif self.own is not None:
            what = f"{times}own/{self.own.name}, {self.own.amortisation}, bought {self.own.bought}"
        else:
            what = f"given by {self.flag}"
        if self.guessed:
            what += ", guessed"
            if self.low != self.high:
                what += f"; {_usd(self.low)} to {_usd(self.high)} would fit"
        power = "" if self.usd_per_kwh is None else f" + {_usd(self.usd_per_kwh)}/kWh"
        return f"{_usd(self.usd_per_hour)}/h{power} ({what})"

    def snapshot(self) -> dict[str, Any]:
        """What the ledger keeps, so that the report never depends on a later catalogue."""
        kept: dict[str, Any] = {
            "usd_per_hour": _text(self.usd_per_hour),
            "usd_per_kwh": _text(self.usd_per_kwh),
            "usd_per_hour_low": _text(self.low),
            "usd_per_hour_high": _text(self.high),
            "currency": "USD",
            "guessed": self.guessed,
            "why": self.why,
            "quantity": self.quantity,
            "label": self.label,
            "assumptions": dict(self.assumptions),
        }
        if self.price is not None:
            kept |= {
                "provider": self.price.provider,
                "instance": self.price.instance,
                "accelerator": self.price.accelerator,
                "gpus": self.price.gpus,
                "region": self.price.region,
                "tier": self.price.tier,
                "as_of": self.price.as_of_text,
                "source": self.price.source,
                "source_ref": self.price.source_ref,
                "confidence": self.price.confidence,
            }
        elif self.own is not None:
            kept |= {
                "provider": "own",
                "instance": self.own.name,
                "accelerator": self.own.accelerator,
                "gpus": self.own.gpus,
                "region": "-",
                "tier": "own",
                "as_of": str(self.own.as_of or self.own.bought),
                "source": self.own.source,
            }
        return kept


def check_spec(spec: str, catalogue: Catalogue, *, flag: str = FLAG) -> None:
    """PriceError for a price that cannot work, before anything is paid for."""
    if spec.strip() != "auto":
        quote(spec, catalogue, devices=(), machine=None, flag=flag)


def quote(
    spec: str,
    catalogue: Catalogue,
    *,
    devices: Sequence[Device],
    machine: Machine | None,
    on: dt.date | None = None,
    flag: str = FLAG,
) -> Quote:
    """The price of a node with these devices at date ``on``; PriceError for a spec that fits nothing.

    ``flag``: which flag the spec was given with, for messages.
    """
    spec = spec.strip()
    if spec == "none":
        return Quote(None, f"{flag} none", flag=flag)
    if spec == "auto":
        return _guess(catalogue, devices, machine, on, flag)
    given = _amount(spec, flag)
    if given is not None:
        why = f"US dollars per hour and node, given by {flag}"
        return Quote(given, why, assumptions={"basis": why}, flag=flag)
    parts = [part.strip() for part in spec.split("/")]
    if parts[0].casefold() == "own":
        return _own(spec, parts, catalogue, devices, on, flag)
    if not 2 <= len(parts) <= 4 or not all(parts):
        raise PriceError(
            f"{flag} {spec!r}: expected auto, none, US dollars per hour (0.69), own/NAME, or "
            "provider/instance[/region[/tier]] as in `ssmke-cost prices list`"
        )
    region = parts[2] if len(parts) > 2 else None
    tier = parts[3] if len(parts) > 3 else None
    try:
        price = catalogue.lookup(parts[0], parts[1], region=region, tier=tier, on=on)
    except PriceError as error:
        raise PriceError(f"{flag}: {error}") from None
    gpus = sum(d.kind == "gpu" for d in devices)
    quantity = max(1, math.ceil(gpus / price.gpus)) if price.gpus else 1
    return _instances(price, quantity, f"chosen by {flag} {spec}")


def accelerator(name: str) -> str | None:
    """The catalogue's name of a GPU from NVML's product name; None where we do not know it."""
    found = known_devices.find(name)
    return None if found is None else found.accelerator


def _amount(spec: str, flag: str) -> Decimal | None:
    try:
        value = Decimal(spec)
    except InvalidOperation:
        return None
    if not plausible(value) or value < 0:
        raise PriceError(f"{flag} {spec}: US dollars per hour must be 0 or more, and of a size that occurs")
    return value


def _guess(
    catalogue: Catalogue, devices: Sequence[Device], machine: Machine | None, on: dt.date | None, flag: str
) -> Quote:
    gpus = [d for d in devices if d.kind == "gpu"]
    if gpus:
        return _guess_gpu(catalogue, gpus, on, flag)
    return _guess_cpu(catalogue, machine, on, flag)


def _guess_gpu(catalogue: Catalogue, gpus: Sequence[Device], on: dt.date | None, flag: str) -> Quote:
    names = sorted({d.name for d in gpus})
    known = known_devices.find(names[0])
    if len(names) > 1 or known is None:
        return Quote(None, f"no price is known for {len(gpus)} x {' + '.join(names)}; set {flag}")
    # NVML reports a little less than the nominal memory, never more than a tenth less.
    memory = Decimal(known.memory_gb if gpus[0].memory_mib is None else gpus[0].memory_mib / Decimal(1024))
    candidates = [
        p
        for p in catalogue.find(accelerator=known.accelerator, tiers=ON_DEMAND, on=on)
        if p.gpu_mem_gib is not None and abs(memory / p.gpu_mem_gib - 1) < Decimal("0.15")
    ]
    alike = [p for p in candidates if p.form[:3].casefold() in ("", known.form[:3].casefold())]
    candidates = alike or candidates
    if not candidates:
        return Quote(None, f"no price is known for {len(gpus)} x {names[0]}; set {flag}")
    number = len(gpus)
    exact = [p for p in candidates if p.gpus == number]
    whole = [p for p in candidates if number % p.gpus == 0] or candidates
    # What the user pays before what others ask, facts before rumours (confidence A, B, C), then one of as few
    # pieces as possible, then the cheapest.
    best = min(
        [p for p in whole if p.stated] or exact or whole,
        key=lambda p: (p.confidence, -min(p.gpus, number), p.usd_per_hour, p.name),
    )
    chosen = "your own price" if best.stated else "cheapest on-demand entry of the best confidence"
    why = f"the node has {number} x {names[0]}; {chosen}"
    if not alike:
        why += f" for this GPU in another form: none is known for {known.form}"
    return _guessed(
        best, math.ceil(number / best.gpus), why, [(p, math.ceil(number / p.gpus)) for p in whole]
    )


def _guess_cpu(catalogue: Catalogue, machine: Machine | None, on: dt.date | None, flag: str) -> Quote:
    if machine is None or machine.cpus is None:
        return Quote(None, f"the node's CPUs could not be read; set {flag}")
    cpus = machine.cpus
    fitting = [
        p
        for p in catalogue.find(accelerator="CPU", tiers=ON_DEMAND, on=on)
        if p.vcpus is not None and p.vcpus >= cpus and machine.cpu_vendor in (None, p.cpu_vendor)
    ]
    if not fitting:
        vendor = machine.cpu_vendor or "unknown vendor"
        return Quote(None, f"no price is known for a node of {counted(cpus, 'CPU')} ({vendor}); set {flag}")
    memory = None if machine.memory_bytes is None else machine.memory_bytes / 2**30

    def distance(price: Price) -> tuple[int, float, Decimal]:
        gap = 0.0 if memory is None else abs(math.log(float(price.host_mem_gib or 1) / memory))
        return (price.vcpus or 0, gap, price.usd_per_hour)

    best = min(fitting, key=lambda p: (not p.stated, *distance(p)))
    has = counted(cpus, f"{machine.cpu_vendor or ''} CPU".strip()) + (f", {memory:.1f} GiB" if memory else "")
    why = f"the node has {has}; nearest entry has {best.vcpus} vCPUs, {best.host_mem_gib} GiB"
    alike = [(p, 1) for p in fitting if p.vcpus == best.vcpus]
    return _guessed(best, 1, why, alike)


def _own(
    spec: str,
    parts: Sequence[str],
    catalogue: Catalogue,
    devices: Sequence[Device],
    on: dt.date | None,
    flag: str,
) -> Quote:
    if len(parts) != 2 or not parts[1]:
        raise PriceError(f"{flag} {spec!r}: own hardware is own/NAME, without region or tier")
    try:
        own = catalogue.own_hardware(parts[1])
    except PriceError as error:
        raise PriceError(f"{flag}: {error}") from None
    used = sum(d.kind == "gpu" for d in devices)
    quantity = max(1, math.ceil(used / own.gpus)) if own.gpus else 1
    share = Decimal(quantity)
    if own.share == "gpus" and used:
        share = Decimal(used) / own.gpus
    hourly, (low, high) = own.usd_per_hour(on), own.interval(on)
    return Quote(
        micro(hourly * share),
        f"chosen by {flag} {spec}: {own.amortisation} amortisation, staff and hosting",
        quantity=quantity,
        own=own,
        flag=flag,
        usd_per_kwh=own.usd_per_kwh,
        low=micro(low * share),
        high=micro(high * share),
        assumptions=own.assumptions(on) | {"charged": f"{share.normalize():f} x the machine"},
    )


def _guessed(best: Price, quantity: int, why: str, fitting: Sequence[tuple[Price, int]]) -> Quote:
    asked = [price.usd_per_hour * number for price, number in fitting]
    return _instances(best, quantity, why, guessed=True, low=min(asked), high=max(asked), fitting=len(asked))


def _instances(
    price: Price,
    quantity: int,
    why: str,
    *,
    guessed: bool = False,
    low: Decimal | None = None,
    high: Decimal | None = None,
    fitting: int = 0,
) -> Quote:
    assumptions = {
        "basis": f"{quantity} whole instance{'s' if quantity > 1 else ''}, {price.tier}, energy included",
        "observed": f"{price.as_of_text} ({price.source})",
        "confidence": price.confidence,
    }
    if guessed:
        among = "the only on-demand entry that fits"
        if fitting > 1:
            among = f"one of {fitting} on-demand entries that fit"
        assumptions["guess"] = f"{why}; {among}, {low} to {high} USD/h"
    if price.rate is not None:
        assumptions["listed"] = f"{price.amount} {price.currency}/h"
        assumptions["rate"] = str(price.rate)
    return Quote(
        price.usd_per_hour * quantity,
        why,
        guessed=guessed,
        quantity=quantity,
        price=price,
        low=low,
        high=high,
        assumptions=assumptions,
    )


def label_of(snapshot: Mapping[str, Any] | None) -> str:
    """The label that a ledger's price snapshot was stored with."""
    if snapshot is None:
        return "unknown (no price was stored)"
    return str(snapshot.get("label") or "unknown")


def _usd(amount: Decimal | None) -> str:
    return "unknown" if amount is None else f"${amount.normalize():f}"


def _text(amount: Decimal | None) -> str | None:
    return None if amount is None else str(amount)
