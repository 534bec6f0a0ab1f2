"""The cost settings of a recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ssmke.cost.prices.file import load_prices
from ssmke.cost.prices.quote import check_spec
from ssmke.errors import ConfigError


@dataclass(frozen=True)
class CostConfig:
    """What a run's time costs, how often it is written down, and how much it may be."""

    price: str = "auto"
    """Price of one node: ``auto`` (guessed from the machine, and said so), ``none``, US dollars per hour of
    the whole node (``0.69``), or a catalogue entry ``provider/instance[/region[/tier]]``
    (``aws/p5.48xlarge``; see ``ssmke-cost prices list``), or hardware of your own (``own/NAME``)."""

    prices: str | None = None
    """A TOML file with prices, hardware and exchange rates of your own (or a CSV price list), beside the shipped
    catalogue: docs/prices.md."""

    heartbeat_seconds: float = 5.0
    """Seconds between two beats of the ledger: what a run that is killed can lose."""

    max_usd: float | None = None
    """Dollars that the run may cost, all its attempts together: warned at 50, 80 and 95 %; at 100 % it saves a
    checkpoint and stops with exit code 3. Raise it and resume to go on."""

    max_device_hours: float | None = None
    """Device-hours that the run may take, likewise."""

    max_kwh: float | None = None
    """Kilowatt-hours that the run's devices may use, likewise; only where energy is measured."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.heartbeat_seconds) and 0.1 <= self.heartbeat_seconds <= 600):
            raise ConfigError(f"--cost.heartbeat_seconds {self.heartbeat_seconds} must be 0.1 to 600 seconds")
        for name in ("max_usd", "max_device_hours", "max_kwh"):
            limit = getattr(self, name)
            if limit is not None and not (math.isfinite(limit) and limit > 0):
                raise ConfigError(f"--cost.{name} {limit} must be above 0")
        if self.max_usd is not None and self.price == "none":
            raise ConfigError("--cost.max_usd needs a price, but --cost.price is none")
        check_spec(self.price, load_prices(None if self.prices is None else Path(self.prices)))
