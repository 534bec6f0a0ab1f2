"""A measured run carried over: the two ratios bound it, fixed time stays, and what is not known is asked for."""

from __future__ import annotations

import dataclasses
import re
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssmke.cost.efficiency.devices import named, table
from ssmke.cost.estimates.whatif import devices_of, time_ratio, whatif
from ssmke.cost.prices.rent import Rent
from ssmke.cost.probes.probe import Device, Sample
from ssmke.cost.report import RunReport, report
from ssmke.errors import ConfigError
from tests.cost.simulated import Run

HOUR = 3600
A100 = Device(id="GPU-0", name="NVIDIA A100-SXM4-80GB", memory_mib=81920, energy="power")
CPU = Device(id="cpu:h", name="AMD EPYC x 2", kind="cpu")
H100 = named("H100-SXM")[0]
FREE = Rent(Decimal(2), Decimal(3), Decimal(4), "$3/h (test)")


def measured(folder: Path, devices: tuple[Device, ...] = (A100,), **efficiency: object) -> RunReport:
    """Half an hour of set-up, 4 h of training, an hour of waiting for data, at 300 W."""
    readings = [{device.id: Sample(mw=300_000) for device in devices}]
    work = [("setup", HOUR / 2), ("train", 4 * HOUR), ("data_wait", HOUR)]
    Run(folder).attempt("a", work, devices=devices, readings=readings)
    [run] = report(folder).runs
    return dataclasses.replace(run, facts={**run.facts, "efficiency": {"dtype": "bf16", **efficiency}})


@pytest.fixture(scope="module")
def on_a100(tmp_path_factory: pytest.TempPathFactory) -> RunReport:
    return measured(tmp_path_factory.mktemp("run"))


def test_the_gpu_s_work_scales_between_the_two_ratios_and_the_rest_stays(on_a100: RunReport) -> None:
    found = whatif(on_a100, H100, devices=1, rent=FREE)
    arithmetic, memory = 312 / 989, 2039 / 3350
    assert found.device_hours.low == pytest.approx(1.5 + 4 * arithmetic, rel=1e-3)
    assert found.device_hours.high == pytest.approx(1.5 + 4 * memory, rel=1e-3)
    assert found.device_hours.low < found.device_hours.point < found.device_hours.high
    assert found.usd is not None
    assert [float(each) for each in found.usd] == pytest.approx(
        [2 * found.hours.low, 3 * found.hours.point, 4 * found.hours.high]
    )
    assert any("waiting for data" in why for why in found.reasons)


def test_the_same_device_takes_the_same_time_and_energy(on_a100: RunReport) -> None:
    found = whatif(on_a100, named("A100-SXM4-80GB")[0], devices=1, rent=FREE)
    assert found.device_hours.low == found.device_hours.high == pytest.approx(5.5)
    assert found.kwh is not None
    assert found.kwh.point == pytest.approx(5.5 * 0.3, rel=0.01)


def test_more_devices_share_the_work_but_all_wait_for_what_is_not_theirs(on_a100: RunReport) -> None:
    one, four = (whatif(on_a100, named("A100-SXM4-80GB")[0], devices=n, rent=FREE) for n in (1, 4))
    assert four.hours.point == pytest.approx(1.5 + 4 / 4, rel=1e-3)
    assert four.device_hours.point == pytest.approx(4 * four.hours.point)
    assert one.hours.point == pytest.approx(5.5, rel=1e-3)
    assert any("linear" in why for why in four.reasons)


def test_interruptions_widen_upwards_and_are_called_an_assumption(on_a100: RunReport) -> None:
    calm = whatif(on_a100, H100, devices=1, rent=FREE)
    spot = whatif(on_a100, H100, devices=1, rent=FREE, interruptible=True)
    assert spot.device_hours.low == calm.device_hours.low
    assert spot.device_hours.point == pytest.approx(1.05 * calm.device_hours.point)
    assert spot.device_hours.high == pytest.approx(1.1 * calm.device_hours.high)
    assert any("assumption" in why and "--restart-loss replaces it" in why for why in spot.reasons)


@pytest.mark.parametrize("interruptible", [True, False])
def test_a_given_loss_is_taken_as_given(on_a100: RunReport, interruptible: bool) -> None:
    calm = whatif(on_a100, H100, devices=1, rent=FREE)
    known = whatif(on_a100, H100, devices=1, rent=FREE, restart_loss=0.1, interruptible=interruptible)
    for end in ("low", "point", "high"):
        assert getattr(known.device_hours, end) == pytest.approx(1.1 * getattr(calm.device_hours, end))
    (why,) = [why for why in known.reasons if "interruptions" in why]
    assert why == "interruptions cost 10 % of the time, as given (--restart-loss)"


@pytest.mark.parametrize("loss", [-0.1, 1.5, float("nan"), float("inf")])
def test_a_loss_that_is_no_share_is_refused(on_a100: RunReport, loss: float) -> None:
    with pytest.raises(ConfigError, match=f"--restart-loss {loss:g}"):
        whatif(on_a100, H100, devices=1, rent=FREE, restart_loss=loss)


@pytest.mark.parametrize("rate", [0.0, -1.0, 1e-320, 1e-7, 1e13, float("nan"), float("inf")])
def test_a_rate_that_nothing_trains_at_is_refused(on_a100: RunReport, rate: float) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"--pairs-per-second {rate:g}")):
        whatif(on_a100, H100, devices=1, rent=FREE, pairs_per_second=rate)


@pytest.mark.parametrize("value", [10**400, float("inf"), float("nan"), 0, -1, True, "8", None])
def test_a_number_that_no_run_noted_is_not_taken(on_a100: RunReport, value: object) -> None:
    assert devices_of(dataclasses.replace(on_a100, facts={"efficiency": {"devices": value}})) == 1


def test_what_crashes_cost_is_not_carried_over(tmp_path: Path) -> None:
    run = measured(tmp_path)
    wasted = dataclasses.replace(run, usage=run.usage + run.usage)
    assert (
        whatif(wasted, H100, devices=1, rent=FREE).device_hours
        == whatif(run, H100, devices=1, rent=FREE).device_hours
    )


def test_a_processor_cannot_be_scaled_but_a_rate_can_be_given(tmp_path: Path) -> None:
    run = measured(tmp_path, (CPU,))
    with pytest.raises(ConfigError, match=r"AMD EPYC.*--pairs-per-second"):
        whatif(run, H100, devices=1, rent=FREE)
    assert run.pairs
    rate = run.pairs / HOUR
    found = whatif(run, H100, devices=2, rent=FREE, pairs_per_second=rate)
    assert found.hours.point == pytest.approx(1 + 0.5, rel=1e-3)
    assert found.hours.low == pytest.approx(0.9 + 0.5, rel=1e-3)
    with pytest.raises(ConfigError, match="--pairs-per-second"):
        whatif(run, H100, devices=1, rent=FREE, pairs_per_second=0.0)


def test_a_run_that_did_not_note_its_format_asks_for_it(on_a100: RunReport) -> None:
    silent = dataclasses.replace(on_a100, facts={})
    with pytest.raises(ConfigError, match="--dtype"):
        whatif(silent, H100, devices=1, rent=FREE)
    assert whatif(silent, H100, devices=1, rent=FREE, dtype="tf32").device_hours.low > 0


def test_a_device_without_bf16_is_taken_in_fp16_and_said(on_a100: RunReport) -> None:
    found = whatif(on_a100, named("V100-SXM2-32GB")[0], devices=1, rent=FREE)
    assert any("has no bf16" in why for why in found.reasons)
    assert found.device_hours.high == pytest.approx(1.5 + 4 * 312 / 125, rel=1e-3)
    with pytest.raises(ConfigError, match="no tf32 peak"):
        whatif(on_a100, named("T4")[0], devices=1, rent=FREE, dtype="tf32")


def test_devices_are_counted_from_the_run(tmp_path: Path) -> None:
    two = measured(tmp_path, (A100, dataclasses.replace(A100, id="GPU-1")))
    assert devices_of(two) == 2
    assert devices_of(dataclasses.replace(two, facts={"efficiency": {"devices": 8}})) == 8


SPECS = st.sampled_from([spec for spec in table() if spec.bandwidth_gb_s and spec.fp16])


@given(SPECS, SPECS, SPECS)
def test_ratios_invert_and_the_bounds_chain(a: object, b: object, c: object) -> None:
    there, back = time_ratio(a, b, "fp16").time, time_ratio(b, a, "fp16").time  # type: ignore[arg-type]
    assert there.low * back.high == pytest.approx(1)
    assert there.point * back.point == pytest.approx(1)
    on, whole = time_ratio(b, c, "fp16").time, time_ratio(a, c, "fp16").time  # type: ignore[arg-type]
    assert there.low * on.low <= whole.low * (1 + 1e-9)
    assert whole.high <= there.high * on.high * (1 + 1e-9)


def test_unknown_price_and_power_stay_unknown(on_a100: RunReport) -> None:
    nothing = Rent(None, None, None, "unknown (test)")
    found = whatif(on_a100, named("A10G")[0], devices=1, rent=nothing)
    assert found.usd is None
    assert found.kwh is None
    assert "unknown" in "\n".join(found.lines())
    assert found.to_dict()["usd"] is None


def test_electricity_of_own_hardware_comes_on_top(on_a100: RunReport) -> None:
    own = Rent(Decimal(1), Decimal(1), Decimal(1), "own", usd_per_kwh=Decimal("0.5"))
    found = whatif(on_a100, H100, devices=1, rent=own)
    assert found.usd is not None
    assert found.kwh is not None
    assert float(found.usd[1]) == pytest.approx(found.hours.point + 0.5 * found.kwh.point)
    unmetered = whatif(on_a100, named("GH200-96GB")[0], devices=1, rent=own)
    assert any("electricity" in why for why in unmetered.reasons)
