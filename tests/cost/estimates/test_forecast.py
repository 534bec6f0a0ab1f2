"""Projected totals hold what was spent, keep their order, and are not moved by a single stall."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssmke.cost.estimates.forecast import project, quantile

TIMES = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40)


@given(TIMES, st.integers(0, 10**6), st.floats(0, 1e4), st.integers(1, 64), st.floats(0, 1e5))
def test_a_projection_is_ordered_and_never_below_what_was_spent(
    windows: list[float], left: int, spent: float, devices: int, extra: float
) -> None:
    usd = Decimal(str(round(spent, 4)))
    found = project(
        spent_usd=usd,
        spent_device_hours=spent,
        steps_left=left,
        step_seconds=windows,
        devices=devices,
        usd_per_hour=Decimal("2.5"),
        extra_seconds=extra,
    )
    assert spent <= found.device_hours_low <= found.device_hours <= found.device_hours_high
    assert found.usd_low is not None
    assert found.usd is not None
    assert found.usd_high is not None
    assert usd <= found.usd_low <= found.usd <= found.usd_high
    if left == 0 and extra == 0:
        assert found.usd_low == found.usd_high == usd


def test_steady_steps_give_the_plain_product() -> None:
    found = project(
        spent_usd=Decimal(3),
        spent_device_hours=2.0,
        steps_left=1800,
        step_seconds=[2.0] * 8,
        devices=4,
        usd_per_hour=Decimal(10),
        extra_seconds=360,
    )
    assert found.usd_low == found.usd == found.usd_high == Decimal(3) + Decimal(10) * Decimal("1.1")
    assert found.device_hours == pytest.approx(2 + 4 * 1.1)


def test_compilation_and_one_stall_do_not_move_the_point() -> None:
    def point(windows: list[float]) -> Decimal | None:
        return project(
            spent_usd=Decimal(0),
            spent_device_hours=0.0,
            steps_left=3600,
            step_seconds=windows,
            devices=1,
            usd_per_hour=Decimal(1),
        ).usd

    assert point([9.0] + [1.0] * 10) == point([1.0] * 5 + [30.0] + [1.0] * 5) == Decimal(1)


def test_few_windows_are_not_trusted() -> None:
    found = project(
        spent_usd=Decimal(0),
        spent_device_hours=0.0,
        steps_left=3600,
        step_seconds=[1.0],
        devices=1,
        usd_per_hour=Decimal(1),
    )
    assert (found.usd_low, found.usd, found.usd_high) == (Decimal("0.9"), Decimal(1), Decimal("1.1"))


def test_an_unknown_price_leaves_hours_and_unknown_dollars() -> None:
    for spent, hourly in ((None, Decimal(1)), (Decimal(1), None)):
        found = project(
            spent_usd=spent,
            spent_device_hours=1.0,
            steps_left=3600,
            step_seconds=[1.0] * 9,
            devices=2,
            usd_per_hour=hourly,
        )
        assert (found.usd_low, found.usd, found.usd_high) == (None, None, None)
        assert found.device_hours == pytest.approx(3.0)


def test_steps_without_a_time_cannot_be_projected() -> None:
    for windows in ([], [float("nan"), 0.0, float("inf")]):
        with pytest.raises(ValueError, match="no window"):
            project(
                spent_usd=None,
                spent_device_hours=0.0,
                steps_left=1,
                step_seconds=windows,
                devices=1,
                usd_per_hour=None,
            )


@given(TIMES, st.floats(0, 1))
def test_a_quantile_lies_within_and_its_ends_are_the_extremes(values: list[float], share: float) -> None:
    assert min(values) <= quantile(values, share) <= max(values)
    assert (quantile(values, 0), quantile(values, 1)) == (min(values), max(values))
