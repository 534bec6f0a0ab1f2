"""What a run will cost, said before it starts: from its arithmetic and a device's peak, or from a measured run.

Three ways to the device-hours, in order of trust:

- ``like``: a measured run, whole or partial, of this recipe or another. Its time per pair, by the ratio of the
  operations per pair where both are known, and by the ratio of the devices (`whatif`) where they differ; its
  set-up, evaluations and target cache go along.
- ``pairs_per_second``: a rate that somebody measured, with nothing else in it.
- ``mfu``: operations over the device's dense peak, at a utilisation between two bounds. Their defaults are what
  the published run of this model reached and what well-tuned large models reach.
"""

from __future__ import annotations

from dataclasses import dataclass

from ssmke.cost.efficiency.devices import DeviceSpec, find
from ssmke.cost.estimates.estimate import Estimate, Interval, estimate
from ssmke.cost.estimates.whatif import (
    MEASURED_SPREAD,
    TDP_ERROR,
    check_rate,
    devices_of,
    dtype_of,
    positive,
    processed_pairs,
    source_of,
    time_ratio,
)
from ssmke.cost.ledger.usage import HOUR_NS
from ssmke.cost.prices.rent import Rent
from ssmke.cost.report import RunReport
from ssmke.errors import ConfigError
from ssmke.words import counted

MFU = Interval(0.20, 0.30, 0.45)
MFU_WHY = (
    "0.20 is what the published run reached (22.85M pairs in 22.4 RTX 4090-hours: 283 pairs/s x 116 GFLOP, padding and "
    "online teacher included, over 165.2 TFLOP/s), 0.45 what large models reach (PaLM 0.46, Chowdhery et al. 2022)"
)
LEAST_MFU = 1e-6
TRAINING = ("train", "data_wait")
"""Phases that pairs go through; the others happen once, or now and then."""


@dataclass(frozen=True)
class Work:
    """What is to be done. ``pairs`` over all epochs; operations per pair on real text tokens, None if unknown.

    ``cache_flops``: the passes of teacher and frozen encoders that fill their caches before training.
    """

    name: str
    pairs: int
    flops_per_pair: float | None = None
    cache_flops: float = 0.0
    reasons: tuple[str, ...] = ()


def at_peak(
    work: Work, spec: DeviceSpec, devices: int, rent: Rent, *, dtype: str, mfu: Interval = MFU
) -> Estimate:
    """From operations and a peak; ConfigError where either is unknown, or ``mfu`` is no share."""
    if work.flops_per_pair is None:
        raise ConfigError(
            f"the operations per pair of {work.name} are not known: give --like or --pairs-per-second"
        )
    peak = spec.peak(dtype)
    if peak is None:
        raise ConfigError(
            f"no {dtype} peak is published for {spec.key}: give another --dtype, or --pairs-per-second"
        )
    check_mfu(mfu.low, mfu.high)
    flops, slower = work.pairs * work.flops_per_pair, spec.fp32_products or peak
    hours = mfu.invert() * ((flops / peak + work.cache_flops / slower) / 1e12 / 3600)
    caching = f", and {work.cache_flops / 1e18:.3g} EFLOP of caches, in fp32, on {slower:g}"
    reasons = [
        *work.reasons,
        f"{flops / 1e18:.3g} EFLOP on a dense {dtype} peak of {peak:g} TFLOP/s"
        f"{caching if work.cache_flops else ''} ({spec.source})",
        f"utilisation assumed: {mfu.low:g} to {mfu.high:g}, most likely {mfu.point:.2g}"
        + (f"; {MFU_WHY}" if mfu == MFU else ""),
        "set-up, evaluations, checkpoints and waiting for data are not in it: only a measured run (--like) knows them",
    ]
    if devices > 1:
        reasons.append(
            f"linear scaling to {devices:,} devices is assumed, communication is not in the interval"
        )
    watts, why = _limit(spec)
    return estimate(_title(work, devices, spec), hours, devices, rent, watts, [*reasons, why])


def check_mfu(low: float, high: float) -> None:
    """ConfigError for what is no pair of shares, or so small that nothing would ever end."""
    if not LEAST_MFU <= low <= high <= 1:
        raise ConfigError(
            f"--mfu {low:g} {high:g}: must be two shares between 0 and 1 ({LEAST_MFU:g} at least), the lower one first"
        )


def at_rate(work: Work, pairs_per_second: float, spec: DeviceSpec, devices: int, rent: Rent) -> Estimate:
    """From a rate of all devices together."""
    check_rate(pairs_per_second)
    hours = MEASURED_SPREAD * (work.pairs / pairs_per_second / 3600 * devices)
    watts, why = _limit(spec)
    reasons = [
        *work.reasons,
        f"{counted(work.pairs, 'pair')} at {pairs_per_second:,g} a second on all devices together, as given, 10 % "
        "either way",
        "set-up, target cache, evaluations and checkpoints are not in it",
        why,
    ]
    return estimate(_title(work, devices, spec), hours, devices, rent, watts, reasons)


def like(
    work: Work, run: RunReport, spec: DeviceSpec | None, devices: int, rent: Rent, *, dtype: str | None = None
) -> Estimate:
    """From a measured run; ``spec`` None: on the hardware that it had."""
    done = processed_pairs(run)
    measured = sum(run.usage.phases.get(name, 0) for name in TRAINING) / HOUR_NS
    if not done or not measured:
        raise ConfigError(
            f"{run.name} trained no pairs yet: nothing to learn from it; give --pairs-per-second"
        )
    share = work.pairs / done
    reasons = [
        *work.reasons,
        f"{run.name}: {measured:,.4g} device-hours of training and data wait for {counted(done, 'pair')} on "
        f"{', '.join(run.devices)}; 10 % either way",
    ]
    train = MEASURED_SPREAD * (measured * share)
    noted = _flops(run)
    if noted is not None and work.flops_per_pair is not None:
        ratio = work.flops_per_pair / noted
        train = train * ratio
        if abs(ratio - 1) > 0.005:
            reasons.append(
                f"a pair takes {ratio:.3g} x the operations that it took there, and as much more time"
            )
    else:
        reasons.append(
            "the time of a pair is taken over: the operations per pair of one of the two are not known"
        )
    beside = sum(ns for name, ns in run.usage.phases.items() if name not in TRAINING) / HOUR_NS
    other = Interval.between(beside, beside * share)
    times = f"{share:.3g}"
    reasons.append(
        f"all else took {beside:,.4g} device-hours there (set-up, target cache, evaluation, checkpoints): "
        + ("as much here" if times == "1" else f"between as much and {times} x as much")
    )
    source = find(run.devices[0]) if len(run.devices) == 1 else None
    if spec is not None and source != spec:
        ratio_there = time_ratio(source_of(run), spec, dtype or dtype_of(run))
        train, other = train * ratio_there.time, other * ratio_there.time
        reasons += ratio_there.reasons
    reasons += _linear(devices, devices_of(run))
    watts, why = _power(run, spec, source)
    title = f"{work.name} like {run.name} on {devices} x {spec.key if spec else ', '.join(run.devices)}"
    return estimate(title, train + other, devices, rent, watts, [*reasons, why])


def rent_of(run: RunReport, devices: int) -> Rent:
    """What the run's own hardware cost per hour, from the price it stored."""
    held = devices_of(run)
    hourly = (
        run.usage.usd_ns / run.usage.priced_ns
        if run.usage.usd_ns is not None and run.usage.priced_ns
        else None
    )
    if hourly is None:
        return Rent(None, None, None, f"unknown ({run.price})", (f"{run.name} has no known price",))
    each = hourly * max(run.nodes, 1) * devices / held
    return Rent(each, each, each, f"${each:.4f}/h, as {run.name} paid: {run.price}")


def _flops(run: RunReport) -> float | None:
    noted = run.facts.get("efficiency")
    return positive(noted.get("flops_per_pair")) if isinstance(noted, dict) else None


def _linear(devices: int, measured_on: int) -> list[str]:
    if devices == measured_on:
        return []
    return [
        f"{counted(devices, 'device')} for {measured_on}: linear scaling is assumed, "
        "communication is not in the interval"
    ]


def _limit(spec: DeviceSpec) -> tuple[Interval | None, str]:
    if spec.tdp_w is None:
        return None, f"energy is unknown: no power limit is published for {spec.key}"
    watts = float(spec.tdp_w)
    return (
        Interval(watts * (1 - TDP_ERROR), watts, watts),
        f"energy: the power limit of {spec.key}, {watts:g} W, as if drawn throughout, or up to 30 % less",
    )


def _power(run: RunReport, spec: DeviceSpec | None, source: DeviceSpec | None) -> tuple[Interval | None, str]:
    usage = run.usage
    if (spec is None or spec == source) and usage.energy_kwh is not None and usage.energy_ns:
        watts = usage.energy_kwh * 1000 / (usage.energy_ns / HOUR_NS)
        off = (usage.energy_kwh_error or 0.0) / usage.energy_kwh if usage.energy_kwh else 0.0
        low = max(1 - off, 0.0)
        return Interval(
            watts * low, watts, watts * (1 + off)
        ), f"energy: {watts:,.0f} W a device, as measured there"
    if spec is not None:
        return _limit(spec)
    return None, f"energy is unknown: {run.name} did not measure any"


def _title(work: Work, devices: int, spec: DeviceSpec) -> str:
    return f"{work.name} on {devices} x {spec.key}"
