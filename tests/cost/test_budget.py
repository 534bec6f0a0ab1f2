"""Budgets: refused where they cannot be kept, warned of once, and spent at 100 %."""

from __future__ import annotations

import dataclasses

import pytest

from ssmke.cost.budget import Budget
from ssmke.cost.config import CostConfig
from ssmke.cost.totals import Totals
from ssmke.errors import ConfigError

TOTALS = Totals(device_hours=0.0, usd=0.0, energy_kwh=0.0)


def used(**values: float | None) -> Totals:
    return dataclasses.replace(TOTALS, **values)  # type: ignore[arg-type]


def test_without_limits_nothing_is_said() -> None:
    budget = Budget(CostConfig())
    budget.check_before(used(usd=None, energy_kwh=None), measures_energy=False)
    assert budget.warnings(used(usd=1e9)) == []
    assert budget.spent(used(usd=1e9)) is None


@pytest.mark.parametrize(
    ("flag", "field"), [("max_usd", "usd"), ("max_device_hours", "device_hours"), ("max_kwh", "energy_kwh")]
)
def test_each_limit_warns_once_at_each_share_and_is_spent_at_all_of_it(flag: str, field: str) -> None:
    budget = Budget(CostConfig(price="1", **{flag: 10.0}))
    said = {amount: budget.warnings(used(**{field: amount})) for amount in (4.9, 5.0, 5.1, 8.2, 9.6, 9.7)}
    assert [amount for amount, lines in said.items() if lines] == [5.0, 8.2, 9.6]
    assert f"--cost.{flag}" in said[8.2][0]
    assert "82%" in said[8.2][0]
    assert budget.spent(used(**{field: 9.99})) is None
    assert f"--cost.{flag}" in (budget.spent(used(**{field: 10.0})) or "")


def test_a_run_that_resumes_at_85_percent_is_told_once() -> None:
    budget = Budget(CostConfig(price="1", max_usd=10.0))
    assert len(budget.warnings(used(usd=8.5))) == 1
    assert budget.warnings(used(usd=8.6)) == []


def test_limits_that_cannot_be_kept_are_refused_before_anything_is_paid() -> None:
    with pytest.raises(ConfigError, match=r"--cost\.max_usd 10 cannot be kept.*--cost\.price"):
        Budget(CostConfig(max_usd=10)).check_before(used(usd=None), measures_energy=False)
    with pytest.raises(ConfigError, match=r"--cost\.max_kwh.*max_device_hours"):
        Budget(CostConfig(max_kwh=1)).check_before(used(energy_kwh=None), measures_energy=False)
    Budget(CostConfig(max_kwh=1)).check_before(used(energy_kwh=None), measures_energy=True)  # not read yet
    with pytest.raises(ConfigError, match=r"10\.5 of 10 US dollars .*raise the limit"):
        Budget(CostConfig(max_usd=10)).check_before(used(usd=10.5), measures_energy=False)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--cost\.max_device_hours -1"):
        CostConfig(max_device_hours=-1)
    with pytest.raises(ConfigError, match=r"--cost\.max_usd needs a price"):
        CostConfig(price="none", max_usd=1)
