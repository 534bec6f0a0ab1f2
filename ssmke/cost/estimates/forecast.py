"""What a run will have cost in the end, said while it runs, as an interval. (Before a run: `plan`.)

What was spent is a fact; what is left is the steps that remain times the time of a step. The point is the
median of the recent windows, low and high are their 10 % and 90 % quantiles, so a single stall (a checkpoint, a
neighbour on the machine) moves the interval and not the point. The first window is left out once there are
three: it contains compilation and cold caches. Fewer than five windows tell little about their spread, so the
interval is then at least 10 % to each side. Costs microseconds, and imports nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

_FEW_WINDOWS = 5
_LEAST_SPREAD = 0.10
_QUANTILES = (0.1, 0.9)


@dataclass(frozen=True)
class Projection:
    """Totals at the end of the run, what was spent included. Dollars are None where they are unknown."""

    usd_low: Decimal | None
    usd: Decimal | None
    usd_high: Decimal | None
    device_hours_low: float
    device_hours: float
    device_hours_high: float


def project(
    *,
    spent_usd: Decimal | None,
    spent_device_hours: float,
    steps_left: int,
    step_seconds: Sequence[float],
    devices: int,
    usd_per_hour: Decimal | None,
    extra_seconds: float = 0.0,
) -> Projection:
    """What the run will have cost in the end, over all its attempts and nodes.

    Args:
        spent_usd, spent_device_hours: the lineage so far.
        steps_left: optimiser steps to come.
        step_seconds: mean seconds per step of the recent windows, oldest first, data wait included.
        devices: all devices of all nodes.
        usd_per_hour: of all nodes together; None if no price is known.
        extra_seconds: known work besides the steps (evaluations, checkpoints).

    Raises:
        ValueError: steps are left, and no window has a positive finite time.
    """
    low = point = high = 0.0
    if steps_left > 0:
        low, point, high = _per_step(step_seconds)
    seconds = [max(steps_left, 0) * each + max(extra_seconds, 0.0) for each in (low, point, high)]
    hours = [spent_device_hours + devices * each / 3600 for each in seconds]
    if spent_usd is None or (usd_per_hour is None and seconds[2] > 0):
        return Projection(None, None, None, *hours)
    hourly = usd_per_hour or Decimal(0)
    usd = [spent_usd + hourly * _decimal(each) / 3600 for each in seconds]
    return Projection(usd[0], usd[1], usd[2], *hours)


def _per_step(windows: Sequence[float]) -> tuple[float, float, float]:
    known = [each for each in windows if math.isfinite(each) and each > 0]
    if not known:
        raise ValueError("no window has a positive finite time per step")
    known = known[1:] if len(known) > 2 else known
    point = statistics.median(known)
    low, high = (quantile(known, share) for share in _QUANTILES)
    if len(known) < _FEW_WINDOWS:
        low, high = min(low, point * (1 - _LEAST_SPREAD)), max(high, point * (1 + _LEAST_SPREAD))
    return low, point, high


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of ``values`` lie, interpolated; ``share`` 0 is the least, 1 the largest."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])


def _decimal(seconds: float) -> Decimal:
    return Decimal(str(round(seconds, 6)))
