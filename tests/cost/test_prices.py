"""The catalogue holds only what can be true, and answers with the price of the day, or says why not."""

from __future__ import annotations

import csv
import datetime as dt
from decimal import Decimal
from pathlib import Path

import pytest

from ssmke.cost.prices import CATALOGUE, COLUMNS, Catalogue, PriceError, read, shipped

GOOD = {
    "provider": "aws", "instance_type": "p5.48xlarge", "accelerator": "H100", "mem_gib": "80", "form": "SXM5",
    "gpus": "8", "region": "us-east-1", "tier": "on_demand", "usd_per_instance_hour": "55.04",
    "usd_per_gpu_hour": "6.88", "currency": "USD", "as_of": "2026-07-20", "as_of_kind": "api_snapshot",
    "source": "a list", "source_ref": "a commit", "confidence": "A",
}  # fmt: skip
CPU = GOOD | {
    "instance_type": "c7a.large", "accelerator": "CPU", "mem_gib": "", "gpus": "0", "usd_per_gpu_hour": "",
    "usd_per_instance_hour": "0.1", "vcpus": "2", "host_mem_gib": "4", "cpu_vendor": "amd",
}  # fmt: skip


def write(path: Path, *rows: dict[str, str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_every_shipped_row_is_valid_and_sourced() -> None:
    prices, problems = read(CATALOGUE)
    assert problems == []
    assert len(prices) >= 150
    assert all(p.source.startswith("https://") and p.source_ref for p in prices)
    # Grade A means dated by the provider's own interface.
    assert all(p.as_of is not None for p in prices if p.confidence == "A")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"usd_per_instance_hour": ""}, "empty"),
        ({"usd_per_instance_hour": "0", "usd_per_gpu_hour": "0"}, "above 0"),
        ({"usd_per_instance_hour": "-1"}, "above 0"),
        ({"usd_per_instance_hour": "NaN"}, "above 0"),
        ({"usd_per_instance_hour": "cheap"}, "no number"),
        ({"gpus": "12"}, "is not usd_per_instance_hour"),
        ({"gpus": "64", "usd_per_gpu_hour": "0.86"}, "0 to 16"),
        ({"gpus": "0"}, "accelerator H100 with 0 gpus"),
        ({"gpus": "1", "usd_per_gpu_hour": "55.04"}, "not credible"),
        ({"mem_gib": ""}, "mem_gib"),
        ({"tier": "cheap"}, "tier"),
        ({"currency": ""}, "currency"),
        ({"currency": "EUR"}, "currency"),
        ({"confidence": "D"}, "confidence"),
        ({"as_of": "last week"}, "neither a date"),
        ({"as_of": ""}, "as_of is empty"),
        ({"source_ref": ""}, "source_ref"),
        ({"region": " "}, "region"),
    ],
)
def test_a_row_that_cannot_be_true_is_named(tmp_path: Path, wrong: dict[str, str], says: str) -> None:
    path = write(tmp_path / "p.csv", GOOD, GOOD | wrong | {"instance_type": "wrong.one"})
    prices, problems = read(path)
    assert len(prices) == 1
    assert len(problems) == 1
    assert says in problems[0]
    assert "line 3" in problems[0]
    assert "wrong.one" in problems[0]
    with pytest.raises(PriceError, match=r"p\.csv"):
        Catalogue.load(path)


@pytest.mark.parametrize(
    "wrong", [{"vcpus": ""}, {"cpu_vendor": "via"}, {"usd_per_instance_hour": "9"}, {"vcpus": "1.5"}]
)
def test_a_cpu_row_needs_its_size(tmp_path: Path, wrong: dict[str, str]) -> None:
    assert read(write(tmp_path / "p.csv", CPU))[1] == []
    assert len(read(write(tmp_path / "p.csv", CPU | wrong))[1]) == 1


def test_spot_above_on_demand_and_doubles_are_contradictions(tmp_path: Path) -> None:
    spot = GOOD | {"tier": "spot", "usd_per_instance_hour": "64", "usd_per_gpu_hour": "8"}
    problems = read(write(tmp_path / "p.csv", GOOD, GOOD, spot))[1]
    assert len(problems) == 2
    assert any("twice" in p for p in problems)
    assert any("spot 64 above on demand 55.04" in p for p in problems)


def test_a_file_that_is_no_price_list_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("name,price\nx,1\n")
    with pytest.raises(PriceError, match="columns missing"):
        read(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\x01")
    for name in ("b.csv", "absent.csv"):
        with pytest.raises(PriceError, match=name):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("day", "usd"),
    [
        (dt.date(2022, 1, 1), "98.32"),  # before the first fact: the first one
        (dt.date(2024, 9, 1), "98.32"),
        (dt.date(2025, 6, 23), "55.04"),
        (dt.date(2030, 1, 1), "55.04"),
        (None, "55.04"),
    ],
)
def test_the_price_is_the_one_of_the_day(day: dt.date | None, usd: str) -> None:
    assert shipped().lookup("AWS", "p5.48XLARGE", on=day).usd_per_hour == Decimal(usd)


def test_lookup_prefers_on_demand_and_refuses_to_choose_a_region() -> None:
    assert shipped().lookup("gcp", "a2-highgpu-1g").tier == "on_demand"
    assert shipped().lookup("gcp", "a2-highgpu-1g", tier="spot").usd_per_hour == Decimal("1.928")
    with pytest.raises(PriceError, match="ambiguous: azure/Standard_ND96isr_H100_v5/eastus"):
        shipped().lookup("azure", "Standard_ND96isr_H100_v5")
    with pytest.raises(PriceError, match=r"did you mean .*aws/c7a\.large"):
        shipped().lookup("aws", "c7a.larg")
