"""Instances are paid whole, of the device that was asked for, and a missing price is unknown."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import pytest

from ssmke.cost.efficiency.devices import named
from ssmke.cost.prices.catalogue import Catalogue, Price
from ssmke.cost.prices.rent import rent
from ssmke.errors import ConfigError


def price(
    instance: str,
    usd: str,
    gpus: int,
    *,
    accelerator: str = "H100",
    memory: int = 80,
    form: str = "SXM5",
    tier: str = "on_demand",
    confidence: str = "A",
    provider: str = "aws",
    region: str = "r1",
) -> Price:
    return Price(
        provider=provider,
        instance=instance,
        accelerator=accelerator,
        gpus=gpus,
        region=region,
        tier=tier,
        usd_per_hour=Decimal(usd),
        as_of=dt.date(2026, 7, 1),
        as_of_text="2026-07-01",
        source="test",
        source_ref="test",
        confidence=confidence,
        form=form,
        gpu_mem_gib=Decimal(memory),
    )


H100 = named("H100-SXM")[0]


def test_boxes_are_paid_whole_and_idle_devices_are_said() -> None:
    only_eights = Catalogue([price("eight", "80", 8)])
    three = rent(only_eights, H100, 3)
    assert three.low == three.point == three.high == Decimal(80)
    assert any("5 would be idle" in why for why in three.reasons)
    assert rent(only_eights, H100, 9).point == Decimal(160)


def test_a_box_that_fits_is_preferred_to_a_bigger_one() -> None:
    both = Catalogue([price("eight", "40", 8), price("one", "6", 1)])
    assert rent(both, H100, 2).point == Decimal(12)
    assert rent(both, H100, 8).low == Decimal(40)
    assert rent(both, H100, 8).high == Decimal(48)


def test_the_point_is_the_best_confidence_and_the_interval_holds_all() -> None:
    found = rent(
        Catalogue(
            [
                price("rumour", "2", 1, confidence="C"),
                price("list", "5", 1),
                price("dear", "9", 1, provider="azure"),
            ]
        ),
        H100,
        1,
    )
    assert (found.low, found.point, found.high) == (Decimal(2), Decimal(5), Decimal(9))
    assert "aws/list" in found.label


def test_other_devices_forms_memories_and_tiers_do_not_count() -> None:
    others = [
        price("pcie", "1", 1, form="PCIe"),
        price("a100", "1", 1, accelerator="A100"),
        price("big", "1", 1, memory=141),
        price("spot", "1", 1, tier="spot"),
    ]
    unknown = rent(Catalogue(others), H100, 1)
    assert (unknown.low, unknown.point, unknown.high) == (None, None, None)
    assert "unknown" in unknown.label
    assert rent(Catalogue(others), H100, 1, tier="spot").point == Decimal(1)
    assert rent(Catalogue([*others, price("yes", "7", 1)]), H100, 1).point == Decimal(7)


def test_provider_and_region_narrow_and_a_wrong_tier_is_refused() -> None:
    two = Catalogue([price("here", "5", 1), price("there", "3", 1, provider="gcp", region="r2")])
    assert rent(two, H100, 1, provider="aws").low == Decimal(5)
    assert rent(two, H100, 1, region="r2").high == Decimal(3)
    with pytest.raises(ConfigError, match="--tier"):
        rent(two, H100, 1, tier="cheap")


def test_a_chosen_price_is_that_price() -> None:
    assert rent(Catalogue([]), H100, 4, price="3.2").high == Decimal("3.2")
    eights = Catalogue([price("eight", "80", 8)])
    assert rent(eights, H100, 16, price="aws/eight").point == Decimal(160)
