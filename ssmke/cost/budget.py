"""Limits in dollars, device-hours and kilowatt-hours over a run's whole lineage.

Rank 0 compares the meter's totals with them after every step (about 10 us). Crossing 50, 80 and 95 % is said
once; at 100 % the run saves a checkpoint and stops, all ranks after the same step, with `EXIT_CODE`. It
overshoots by the step in progress and that checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ssmke.cost.config import CostConfig
from ssmke.cost.totals import Totals
from ssmke.errors import ConfigError, SSMKEError

EXIT_CODE = 3
_WARN_AT = (0.95, 0.8, 0.5)


class BudgetSpent(SSMKEError):
    """A limit was reached where there was no step to finish and nothing to save."""

    exit_code = EXIT_CODE


@dataclass(frozen=True)
class _Limit:
    flag: str
    unit: str
    most: float
    used: Callable[[Totals], float | None]
    unknown: str

    def share(self, totals: Totals) -> float | None:
        used = self.used(totals)
        return None if used is None else used / self.most

    def words(self, totals: Totals) -> str:
        return f"{self.used(totals) or 0:.4g} of {self.most:g} {self.unit} ({self.flag})"


class Budget:
    """The limits of ``config``; without any, nothing is ever said."""

    def __init__(self, config: CostConfig) -> None:
        limits = (
            _Limit(
                "--cost.max_usd",
                "US dollars",
                config.max_usd or 0.0,
                lambda t: t.usd,
                "no price is known for this machine; say it with --cost.price",
            ),
            _Limit(
                "--cost.max_device_hours",
                "device-hours",
                config.max_device_hours or 0.0,
                lambda t: t.device_hours,
                "",
            ),
            _Limit(
                "--cost.max_kwh",
                "kWh",
                config.max_kwh or 0.0,
                lambda t: t.energy_kwh,
                "energy is not measured on this machine; limit --cost.max_device_hours instead",
            ),
        )
        self._limits = [limit for limit in limits if limit.most]
        self._said: dict[str, float] = {}

    @property
    def limited(self) -> bool:
        """Whether there is any limit."""
        return bool(self._limits)

    def check_before(self, totals: Totals, *, measures_energy: bool) -> None:
        """ConfigError if a limit cannot be kept, or was reached by the attempts before this one."""
        for limit in self._limits:
            share = limit.share(totals)
            if share is None and not (limit.flag == "--cost.max_kwh" and measures_energy):
                raise ConfigError(f"{limit.flag} {limit.most:g} cannot be kept: {limit.unknown}")
            if share is not None and share >= 1:
                raise ConfigError(
                    f"this run has used {limit.words(totals)} already: raise the limit to go on with it"
                )

    def warnings(self, totals: Totals) -> list[str]:
        """One line for each limit that crossed 50, 80 or 95 % since the last call."""
        lines: list[str] = []
        for limit in self._limits:
            share = limit.share(totals)
            crossed = next((at for at in _WARN_AT if share is not None and share >= at), None)
            if crossed is not None and crossed > self._said.get(limit.flag, 0):
                self._said[limit.flag] = crossed
                lines.append(f"budget: {share:.0%} used, {limit.words(totals)}")
        return lines

    def spent(self, totals: Totals) -> str | None:
        """What was used up, or None."""
        for limit in self._limits:
            share = limit.share(totals)
            if share is not None and share >= 1:
                return limit.words(totals)
        return None
