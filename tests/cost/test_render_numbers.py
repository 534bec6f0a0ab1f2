"""Numbers are rounded, never to something that they are not."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssmke.cost.ledger.usage import HOUR_NS, Usage
from ssmke.cost.render import numbers

AMOUNTS = st.decimals(min_value="1e-9", max_value="1e9", allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize(
    ("usd", "partial", "shown"),
    [
        ("77414.4", False, "$77,414.40"), ("15.456", False, "$15.456"), ("9676.8", True, ">= $9,676.80"),
        ("356106.24", False, "$356,106.24"), ("1", False, "$1.00"), ("0.012345678", False, "$0.01235"),
        ("0.000123", False, "$0.0001230"), ("0", False, "$0.00"), ("-3", False, "-$3.00"), (None, False, "unknown"),
        ("68.544", False, "$68.544"), ("287649.792", False, "$287,649.79"), ("100", False, "$100.00"),
    ],
)  # fmt: skip
def test_money(usd: str | None, partial: bool, shown: str) -> None:
    assert numbers.money(None if usd is None else Decimal(usd), partial=partial) == shown


@pytest.mark.parametrize(
    ("usd", "shown"),
    [("0.0185021", "$0.0185"), ("0.00000012", "<$0.0001"), ("0", "$0.00"), ("12.3456", "$12.346"), ("0.9", "$0.900")],
)  # fmt: skip
def test_money_in_a_narrow_column(usd: str, shown: str) -> None:
    assert numbers.money_short(Decimal(usd)) == shown
    assert len(numbers.money_short(Decimal(usd))) <= 9


def test_a_tiny_lower_bound_is_not_turned_into_an_upper_one() -> None:
    assert numbers.money_short(Decimal("0.00000012"), partial=True) == ">= $0.00"


@given(AMOUNTS)
def test_money_can_be_read_back(usd: Decimal) -> None:
    for shown in (numbers.money(usd), numbers.money_short(usd)):
        if shown.startswith("<"):
            assert usd < Decimal(shown.removeprefix("<$"))
            continue
        read = Decimal(shown.removeprefix("$").replace(",", ""))
        assert abs(read - usd) <= usd * Decimal("0.006")
        assert read > 0


@given(st.integers(0, 10**13))
def test_counts_can_be_read_back(number: int) -> None:
    shown = numbers.count(number)
    factor = {"M": 10**6, "B": 10**9}.get(shown[-1], 1)
    assert float(shown.rstrip("MB").replace(",", "")) * factor == pytest.approx(number, rel=6e-4)


@pytest.mark.parametrize(
    ("number", "shown"),
    [(117_200_000, "117.2M"), (3_300_000, "3.3M"), (22_848, "22,848"), (999_999_999, "1B"),
        (2.345, "2.35"), (None, "unknown")],
)  # fmt: skip
def test_count(number: float | None, shown: str) -> None:
    assert numbers.count(number) == shown


def test_hours_and_intervals() -> None:
    assert numbers.hours(73_728) == "73,728"
    assert numbers.hours(Decimal("1989.855")) == "1,989.9"
    assert numbers.hours(Decimal("22.4")) == "22.4"
    assert numbers.hours_span((Decimal(50), Decimal(60))) == "50 to 60"
    assert numbers.hours_span((Decimal(5), Decimal(5))) == "5"
    assert numbers.money_span((Decimal(96), Decimal(116))) == "$96.00 to $116.00"
    assert numbers.rate(Decimal("0.6900")) == "$0.69"
    assert numbers.rate(Decimal("3.9015")) == "$3.9015"
    assert numbers.rate(Decimal("2")) == "$2.00"


def test_energy_says_its_error_and_how_much_of_it_was_measured() -> None:
    whole = Usage(device_ns=HOUR_NS, energy_mj=3_600_000_000, energy_ns=HOUR_NS, energy_error_mj=180_000_000)
    assert numbers.energy(whole) == "1 kWh ±5 %"
    assert numbers.energy(whole, unit=False) == "1 ±5 %"
    half = Usage(
        device_ns=2 * HOUR_NS, energy_mj=3_600_000_000, energy_ns=HOUR_NS, energy_error_mj=360_000_000
    )
    assert numbers.energy(half) == "1 kWh ±10 % (50.0 % of the time measured)"
    assert numbers.energy(half, unit=False) == ">= 1 ±10 %"
    assert numbers.energy(Usage(device_ns=HOUR_NS)) == "unknown"
