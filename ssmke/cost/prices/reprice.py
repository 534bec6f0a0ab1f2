"""Another price for time that was already paid: only when asked for, and never written into a ledger."""

from __future__ import annotations

import dataclasses
import datetime as dt

from ssmke.cost.ledger.reader import Segment
from ssmke.cost.prices.catalogue import Catalogue
from ssmke.cost.prices.quote import quote
from ssmke.cost.probes.probe import Device
from ssmke.errors import ConfigError


def repriced(segment: Segment, spec: str, catalogue: Catalogue) -> Segment:
    """The segment with the price that ``spec`` had on the day that it began; PriceError if it fits nothing.

    ``spec`` is what ``--cost.price`` takes.
    """
    if spec.strip() == "auto":
        raise ConfigError("--reprice auto: the stored price is that guess already; say another one")
    day = dt.datetime.fromtimestamp(segment.begin_wall_ns / 1e9, tz=dt.timezone.utc).date()
    devices = [
        Device(id=identity, name=name, kind="cpu" if identity.startswith("cpu:") else "gpu")
        for identity, name in segment.devices
    ]
    found = quote(spec, catalogue, devices=devices, machine=None, on=day, flag="--reprice")
    return dataclasses.replace(segment, price=found.snapshot())
