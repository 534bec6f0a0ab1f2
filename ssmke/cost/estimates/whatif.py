"""A measured run on other hardware: what it would have taken there, as an interval with its reasons.

What a GPU does faster is bounded by two ratios: of the peak arithmetic in the run's number format, and of the
memory bandwidth. Training lies between a run that only computes and one that only moves data, so the two make
the interval and their geometric mean the point. Only the phases in which the GPU works are scaled; set-up,
waiting for data and checkpoints take the time they took. The useful part of the run is carried over, without
what crashes and preemptions cost it; interruptions of a spot instance are an assumption of their own, in whose
place the user can give a number (``--restart-loss``).

Where no peak is known (a processor, a slice of a GPU) nothing can be scaled, and a rate measured on the other
hardware is asked for instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ssmke.cost.efficiency.devices import DTYPES, DeviceSpec, find
from ssmke.cost.estimates.estimate import Estimate, Interval, estimate
from ssmke.cost.ledger.reader import ENERGY_ERROR
from ssmke.cost.ledger.usage import HOUR_NS, Usage
from ssmke.cost.prices.rent import Rent
from ssmke.cost.report import RunReport
from ssmke.errors import ConfigError
from ssmke.words import counted

SCALED = ("train", "evaluation", "target_cache")
"""Phases in which the GPU works; the others are the host's and the disk's time."""

MEASURED_SPREAD = Interval(0.9, 1.0, 1.1)
"""How far a rate measured once may be off another time: the least that a projection during a run allows too."""

RESTART_LOSS = 0.05
RATES = (1e-6, 1e12)
"""Pairs a second that anything trains at, all devices together, with much room on either side."""
TDP_ERROR = float(ENERGY_ERROR["tdp"])


@dataclass(frozen=True)
class Ratio:
    """Device time on one device over that on another, for the same work."""

    time: Interval
    dtype: str
    reasons: tuple[str, ...]


def time_ratio(source: DeviceSpec, target: DeviceSpec, dtype: str) -> Ratio:
    """How much longer (above 1) or shorter the device's own work takes on ``target``.

    ConfigError where a peak or a bandwidth is not published.
    """
    there = dtype
    if dtype == "bf16" and target.bf16 is None:
        there = "fp16" if target.fp16 is not None else "fp32"
    here_peak, there_peak = source.peak(dtype), target.peak(there)
    for spec, peak, what in ((source, here_peak, dtype), (target, there_peak, there)):
        if peak is None:
            raise ConfigError(f"no {what} peak is published for {spec.key}: give --pairs-per-second instead")
        if spec.bandwidth_gb_s is None:
            raise ConfigError(
                f"no memory bandwidth is published for {spec.key}: give --pairs-per-second instead"
            )
    assert here_peak is not None
    assert there_peak is not None
    assert source.bandwidth_gb_s is not None
    assert target.bandwidth_gb_s is not None
    arithmetic, memory = here_peak / there_peak, source.bandwidth_gb_s / target.bandwidth_gb_s
    reasons = [
        f"arithmetic alone would take {arithmetic:.2f} x the device time ({dtype} {here_peak:g} -> {there} "
        f"{there_peak:g} TFLOP/s, dense), memory traffic alone {memory:.2f} x ({source.bandwidth_gb_s:g} -> "
        f"{target.bandwidth_gb_s:g} GB/s): the truth of a run that is limited by either lies between"
    ]
    if there != dtype:
        reasons.append(
            f"{target.key} has no {dtype}: {there} is assumed, whose narrower range may need loss scaling"
        )
    reasons += [f"{spec.key}: {spec.source}" for spec in dict.fromkeys((source, target))]
    return Ratio(Interval.between(arithmetic, memory), there, tuple(reasons))


def whatif(
    run: RunReport,
    target: DeviceSpec,
    *,
    devices: int,
    rent: Rent,
    dtype: str | None = None,
    pairs_per_second: float | None = None,
    restart_loss: float | None = None,
    interruptible: bool = False,
) -> Estimate:
    """The useful part of ``run`` on ``devices`` devices of another kind.

    Args:
        run: a measured run.
        target, devices: the other hardware.
        rent: what it costs (`ssmke.cost.rent.rent`).
        dtype: number format of the run; None: the one it noted.
        pairs_per_second: measured there, all devices together; replaces the scaling.
        restart_loss: share of time that interruptions cost, as somebody knows it; None: nobody does.
        interruptible: the hardware can be taken away; without ``restart_loss``, a loss is assumed.

    Raises:
        ConfigError: nothing is known to scale the run with, or a number cannot be true.
    """
    usage = _useful(run)
    had = devices_of(run)
    reasons = [
        f"{run.name} measured: {usage.device_hours:,.4g} useful of {run.usage.device_hours:,.4g} device-hours on "
        f"{had} x {', '.join(run.devices) or 'unknown device'}"
    ]
    scaled: tuple[str, ...] = SCALED
    if pairs_per_second is not None:
        work, why = _at_rate(run, usage, pairs_per_second, devices)
        source = None
        scaled = (*SCALED, "data_wait")  # a rate has the waiting in it
    else:
        source = source_of(run)
        ratio = time_ratio(source, target, dtype or dtype_of(run))
        work, why = ratio.time * _hours(usage, scaled), list(ratio.reasons)
        if ratio.time.low < 1:
            waited = usage.phases.get("data_wait", 0) / max(usage.device_ns, 1)
            why.append(
                f"the host must feed the faster device: it kept the run waiting for data {waited:.1%} of the time, and "
                "may keep it waiting longer there, which is not in the interval"
            )
    # What is not the GPU's work takes the same time on the wall, so every device more waits for it too.
    fixed = (usage.device_hours - _hours(usage, scaled)) * devices / had
    reasons += why
    reasons.append(
        f"all else ({fixed / devices:,.3g} h on the clock) is taken over as it was: {_others(usage, scaled)}"
    )
    if devices != had:
        reasons.append(
            f"{counted(devices, 'device')} for {had}: linear scaling is assumed, communication is not in the interval"
        )
    total = work + Interval.exactly(fixed)
    if restart_loss is not None:
        if not 0 <= restart_loss <= 1:
            raise ConfigError(f"--restart-loss {restart_loss:g}: must be 0 to 1 (0.05: five per cent)")
        total = total * (1 + restart_loss)
        reasons.append(
            f"interruptions cost {restart_loss * 100:.3g} % of the time, as given (--restart-loss)"
        )
    elif interruptible:
        total = total * Interval(1.0, 1 + RESTART_LOSS, 1 + 2 * RESTART_LOSS)
        reasons.append(
            f"interruptions are assumed to cost {RESTART_LOSS:.1%} of the time, between none and twice that: an "
            "assumption, not a measurement; --restart-loss replaces it"
        )
    title = f"{run.name} on {devices} x {target.key}"
    watts, energy = _watts(run, source, target)
    return estimate(title, total, devices, rent, watts, [*reasons, energy])


def devices_of(run: RunReport) -> int:
    """How many devices the run held at a time."""
    noted = _number(run, "devices")
    if noted:
        return int(noted)
    per_node = run.usage.device_ns / run.usage.node_ns if run.usage.node_ns else 1
    return max(1, round(per_node * max(run.nodes, 1)))


def check_rate(pairs_per_second: float) -> None:
    """ConfigError for a rate that nothing trains at."""
    low, high = RATES
    if not low <= pairs_per_second <= high:  # neither is "not a number"
        raise ConfigError(
            f"--pairs-per-second {pairs_per_second:g}: must be above 0, and {low:g} to {high:g} pairs a second"
        )


def positive(value: object) -> float | None:
    """A noted number above 0, or None: a ledger may hold anything."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if 0 < number < math.inf else None


def dtype_of(run: RunReport) -> str:
    """The number format that the run noted; ConfigError if it did not."""
    noted = run.facts.get("efficiency")
    dtype = noted.get("dtype") if isinstance(noted, dict) else None
    if dtype not in DTYPES:
        raise ConfigError(f"{run.name} did not note its number format: give --dtype {'|'.join(DTYPES)}")
    return str(dtype)


def source_of(run: RunReport) -> DeviceSpec:
    """The device of the run; ConfigError if it has no known peak, or there were several kinds."""
    if len(run.devices) != 1:
        raise ConfigError(
            f"{run.name} ran on {' and '.join(run.devices) or 'an unknown device'}: it can only be scaled from one "
            "kind of device; give --pairs-per-second as measured on the other hardware"
        )
    spec = find(run.devices[0])
    if spec is None:
        raise ConfigError(
            f"{run.name} ran on {run.devices[0]}, whose peak is not known, so its time cannot be carried over to "
            "another device; give --pairs-per-second as measured there (all devices together)"
        )
    return spec


def processed_pairs(run: RunReport) -> int | None:
    """Pairs that the run's training time went into, those that were done twice included."""
    return None if run.pairs is None else run.pairs + run.pairs_redone


def _useful(run: RunReport) -> Usage:
    return run.final if run.final.device_ns else run.usage


def _hours(usage: Usage, phases: tuple[str, ...]) -> float:
    return sum(usage.phases.get(name, 0) for name in phases) / HOUR_NS


def _others(usage: Usage, scaled: tuple[str, ...]) -> str:
    return ", ".join(sorted(name for name in usage.phases if name not in scaled)) or "nothing"


def _at_rate(
    run: RunReport, usage: Usage, pairs_per_second: float, devices: int
) -> tuple[Interval, list[str]]:
    check_rate(pairs_per_second)
    measured = _hours(usage, ("train", "data_wait"))
    if not run.pairs or not measured:
        raise ConfigError(f"{run.name} trained no pairs: a rate of pairs says nothing about its time")
    training = run.pairs / pairs_per_second / 3600 * devices
    beside = _hours(usage, ("evaluation", "target_cache")) * training / measured
    return MEASURED_SPREAD * (training + beside), [
        f"{counted(run.pairs, 'pair')} at {pairs_per_second:,g} a second on all devices together, as given, 10 % "
        "either way",
        f"evaluation and target cache are taken to change as training does, to {training / measured:.3g} x",
    ]


def _watts(run: RunReport, source: DeviceSpec | None, target: DeviceSpec) -> tuple[Interval | None, str]:
    if target.tdp_w is None:
        return None, f"energy is unknown: no power limit is published for {target.key}"
    limit = float(target.tdp_w)
    kwh, hours = run.usage.energy_kwh, run.usage.energy_ns / HOUR_NS
    if source is not None and source.tdp_w is not None and kwh is not None and hours > 0:
        load = min(kwh * 1000 / hours / source.tdp_w, 1.0)
        return (
            Interval(
                limit * load * (1 - TDP_ERROR), limit * load, min(limit * load * (1 + TDP_ERROR), limit)
            ),
            f"energy: {load:.0%} of the power limit, as measured on {source.key}, of {limit:g} W, 30 % either way",
        )
    return (
        Interval(limit * (1 - TDP_ERROR), limit, limit),
        f"energy: the power limit of {target.key}, {limit:g} W, as if drawn throughout, or up to 30 % less",
    )


def _number(run: RunReport, key: str) -> float | None:
    noted = run.facts.get("efficiency")
    return positive(noted.get(key)) if isinstance(noted, dict) else None
