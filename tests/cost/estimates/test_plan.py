"""Forecasts before a run: operations over a peak, a rate, or a measured run, each with what it leaves out."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from pathlib import Path

import pytest

from ssmke.cost.efficiency.devices import named
from ssmke.cost.estimates.estimate import Interval
from ssmke.cost.estimates.plan import MFU, Work, at_peak, at_rate, like, rent_of
from ssmke.cost.prices.rent import Rent
from ssmke.cost.probes.probe import Device, Sample
from ssmke.cost.report import RunReport, report
from ssmke.errors import ConfigError
from tests.cost.simulated import Run

HOUR = 3600
RENT = Rent(Decimal(2), Decimal(2), Decimal(2), "$2/h (test)")
H100, A10G = named("H100-SXM")[0], named("A10G")[0]
A100 = Device(id="GPU-0", name="NVIDIA A100-SXM4-80GB", memory_mib=81920, energy="power")
CPU = Device(id="cpu:h", name="AMD EPYC x 2", kind="cpu")


def measured(folder: Path, device: Device = A100, flops: float | None = 10e9) -> RunReport:
    """An hour of set-up and 2 h of training and data wait; the simulated run counts 3 pairs."""
    work = [("setup", HOUR), ("train", 1.5 * HOUR), ("data_wait", HOUR / 2)]
    Run(folder).attempt("a", work, devices=(device,), readings=[{device.id: Sample(mw=200_000)}])
    [run] = report(folder).runs
    return dataclasses.replace(run, facts={"efficiency": {"dtype": "bf16", "flops_per_pair": flops}})


def test_operations_over_the_peak() -> None:
    work = Work("w", pairs=1000, flops_per_pair=989e12 * 3.6, cache_flops=494.5e12 * 3600)
    found = at_peak(work, H100, 2, RENT, dtype="bf16", mfu=Interval(0.25, 0.5, 1.0))
    assert found.device_hours == Interval(2.0, 4.0, 8.0)
    assert found.hours == Interval(1.0, 2.0, 4.0)
    assert found.usd == (Decimal(2), Decimal(4), Decimal(8))
    assert found.kwh is not None
    assert found.kwh.high == pytest.approx(8 * 0.7)
    text = "\n".join(found.lines())
    assert "datasheet" in text
    assert "not in it" in text


def test_the_default_utilisation_is_explained() -> None:
    found = at_peak(Work("w", 1, 1e12), H100, 1, RENT, dtype="bf16")
    assert any("published run" in why for why in found.reasons)
    assert found.device_hours.high / found.device_hours.low == pytest.approx(MFU.high / MFU.low)


def test_the_published_run_lies_within_its_own_forecast() -> None:
    """22.85M pairs at 81 + 35 GFLOP on RTX 4090 took 22.4 device-hours."""
    work = Work("published", 7 * 3_264_868, 81.0e9 + 35.1e9)
    found = at_peak(work, named("RTX4090")[0], 2, RENT, dtype="bf16").device_hours
    assert found.low < 22.4 <= found.high * 1.01


@pytest.mark.parametrize(
    ("work", "spec", "dtype", "mfu", "why"),
    [
        (Work("w", 1), H100, "bf16", MFU, "not known"),
        (Work("w", 1, 1.0), A10G, "fp32", MFU, "no fp32 peak"),
        (Work("w", 1, 1.0), H100, "bf16", Interval(0.5, 1.0, 1.5), "--mfu"),
        (Work("w", 1, 1.0), H100, "bf16", Interval(1e-320, 0.5, 1.0), "--mfu"),
    ],
)
def test_what_is_missing_is_named(work: Work, spec: object, dtype: str, mfu: Interval, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        at_peak(work, spec, 1, RENT, dtype=dtype, mfu=mfu)  # type: ignore[arg-type]


def test_a_given_rate() -> None:
    found = at_rate(Work("w", 7200), 2.0, H100, 4, RENT)
    assert found.hours.point == pytest.approx(1.0)
    assert found.device_hours.low == pytest.approx(3.6)
    with pytest.raises(ConfigError, match="--pairs-per-second"):
        at_rate(Work("w", 7200), float("inf"), H100, 4, RENT)


def test_a_measured_run_is_scaled_by_pairs_and_operations(tmp_path: Path) -> None:
    run = measured(tmp_path)
    assert run.pairs == 3
    found = like(Work("w", 6, 20e9), run, None, 1, RENT)
    # Twice the pairs at twice the operations: 8 h of training; set-up once (low) or twice (high).
    assert found.device_hours.low == pytest.approx(8 * 0.9 + 1, rel=1e-3)
    assert found.device_hours.high == pytest.approx(8 * 1.1 + 2, rel=1e-3)
    assert found.kwh is not None
    assert found.kwh.point == pytest.approx(found.device_hours.point * 0.2, rel=1e-2)
    assert any("2 x the operations" in why for why in found.reasons)
    assert any("between as much and 2 x as much" in why for why in found.reasons)


def test_as_many_pairs_take_as_much_beside_them(tmp_path: Path) -> None:
    reasons = like(Work("w", 3, 10e9), measured(tmp_path), None, 1, RENT).reasons
    assert any(why.endswith("checkpoints): as much here") for why in reasons)


def test_a_measured_run_on_another_device(tmp_path: Path) -> None:
    run = measured(tmp_path)
    here, there = (like(Work("w", 3, 10e9), run, spec, 1, RENT) for spec in (None, H100))
    assert there.device_hours.high == pytest.approx(here.device_hours.high * 2039 / 3350, rel=1e-3)
    same = like(Work("w", 3, 10e9), run, named("A100-SXM4-80GB")[0], 1, RENT)
    assert same.device_hours == here.device_hours


def test_a_processor_s_run_is_a_measure_for_itself_only(tmp_path: Path) -> None:
    run = measured(tmp_path, CPU, None)
    found = like(Work("w", 3, 10e9), run, None, 1, rent_of(run, 1))
    assert found.device_hours.point == pytest.approx(3, rel=1e-3)
    assert any("not known" in why for why in found.reasons)
    assert found.usd is not None
    assert float(found.usd[1]) == pytest.approx(3 * 0.69, rel=1e-3)
    with pytest.raises(ConfigError, match="AMD EPYC"):
        like(Work("w", 3, 10e9), run, H100, 1, RENT)


def test_a_run_without_pairs_teaches_nothing(tmp_path: Path) -> None:
    empty = dataclasses.replace(measured(tmp_path), pairs=None)
    with pytest.raises(ConfigError, match="no pairs"):
        like(Work("w", 3), empty, None, 1, RENT)


def test_an_unpriced_run_has_an_unknown_rent(tmp_path: Path) -> None:
    Run(tmp_path, price="none").attempt("a", [("train", 60)], devices=(CPU,))
    [run] = report(tmp_path).runs
    assert rent_of(run, 1).point is None
