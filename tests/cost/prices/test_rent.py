"""Instances are paid whole, of the device that was asked for, and a missing price is unknown."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import pytest

from ssmke.cost.efficiency.devices import named, table
from ssmke.cost.prices.catalogue import Catalogue, Price, shipped
from ssmke.cost.prices.own import OwnHardware
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


@pytest.mark.parametrize("devices", [1, 3, 8])
def test_auto_finds_what_no_price_finds(devices: int) -> None:
    for spec in table():
        assert rent(shipped(), spec, devices, price=" auto ") == rent(shipped(), spec, devices)
    assert rent(shipped(), H100, devices, price="auto", provider="gcp").label.count("gcp/") == 1


@pytest.mark.parametrize(
    ("spec", "chosen", "says"),
    [
        ("H100-SXM", "aws/p3.2xlarge", r"--price aws/p3\.2xlarge: .*V100 16 GB.*H100-SXM"),
        ("A100-SXM4-80GB", "aws/p4d.24xlarge", r"A100 40 GB.*A100-SXM4-80GB"),
        ("L40", "runpod/1x RTX4090 on-demand", r"RTX4090.*L40"),
    ],
)
def test_another_device_s_price_is_refused(spec: str, chosen: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        rent(shipped(), named(spec)[0], 1, price=chosen)


def test_a_price_of_the_device_or_of_none_is_taken() -> None:
    assert rent(shipped(), H100, 8, price="aws/p5.48xlarge").point == Decimal("55.04")
    assert rent(shipped(), named("V100-SXM2-16GB")[0], 1, price="aws/p3.2xlarge").point is not None
    assert rent(shipped(), H100, 1, price="aws/c7a.large").point == Decimal("0.10264")  # a host for the GPU
    other_form = rent(shipped(), named("H100-PCIe")[0], 8, price="aws/p5.48xlarge")
    assert any("not PCIe" in why for why in other_form.reasons)


@pytest.mark.parametrize(
    ("accelerator", "fits"),
    [
        ("", True),
        ("A100", True),
        ("NVIDIA A100-SXM4-80GB", True),
        ("nvidia a100 80GB", True),
        ("RTX4090", False),
    ],
)
def test_own_hardware_must_be_the_device_if_it_says_which_it_is(accelerator: str, fits: bool) -> None:
    box = OwnHardware(
        name="box",
        purchase=Decimal(9000),
        currency="USD",
        residual=Decimal(0),
        life_years=Decimal(4),
        utilisation=Decimal("0.5"),
        bought=dt.date(2025, 1, 1),
        electricity_per_kwh=Decimal("0.3"),
        pue=Decimal(1),
        source="invoice",
        accelerator=accelerator,
    )
    mine = Catalogue([], own=[box])
    a100 = named("A100-SXM4-80GB")[0]
    if fits:
        assert rent(mine, a100, 1, price="own/box").point is not None
    else:
        with pytest.raises(ConfigError, match=r"own/box.*RTX4090.*A100-SXM4-80GB"):
            rent(mine, a100, 1, price="own/box")
