"""The cost settings of a recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ssmke.cost.prices import shipped
from ssmke.cost.quote import check_spec
from ssmke.errors import ConfigError


@dataclass(frozen=True)
class CostConfig:
    """What a run's time costs, and how often it is written down."""

    price: str = "auto"
    """Price of one node: ``auto`` (guessed from the machine, and said so), ``none``, US dollars per hour of
    the whole node (``0.69``), or a catalogue entry ``provider/instance[/region[/tier]]``
    (``aws/p5.48xlarge``; see ``ssmke-cost prices list``)."""

    heartbeat_seconds: float = 5.0
    """Seconds between two beats of the ledger: what a run that is killed can lose."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.heartbeat_seconds) and 0.1 <= self.heartbeat_seconds <= 600):
            raise ConfigError(f"--cost.heartbeat_seconds {self.heartbeat_seconds} must be 0.1 to 600 seconds")
        check_spec(self.price, shipped())
