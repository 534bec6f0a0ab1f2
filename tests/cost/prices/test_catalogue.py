"""The catalogue holds only what can be true, and answers with the price of the day, or says why not."""

from __future__ import annotations

import csv
import datetime as dt
from decimal import Decimal
from pathlib import Path

import pytest

from ssmke.cost.prices.catalogue import CATALOGUE, COLUMNS, Catalogue, PriceError, read, shipped
from ssmke.cost.prices.days import day_of
from ssmke.cost.prices.rates import Rate
from ssmke.cost.prices.rows import row_of

GOOD = {
    "provider": "aws", "instance": "p5.48xlarge", "accelerator": "H100", "gpu_mem_gib": "80", "form": "SXM5",
    "gpus": "8", "region": "us-east-1", "tier": "on_demand", "price_per_hour": "55.04",
    "price_per_gpu_hour": "6.88", "currency": "USD", "as_of": "2026-07-20", "as_of_kind": "api_snapshot",
    "source": "a list", "source_ref": "a commit", "confidence": "A",
}  # fmt: skip
CPU = GOOD | {
    "instance": "c7a.large", "accelerator": "CPU", "gpu_mem_gib": "", "gpus": "0", "price_per_gpu_hour": "",
    "price_per_hour": "0.1", "vcpus": "2", "host_mem_gib": "4", "cpu_vendor": "amd",
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
        ({"price_per_hour": ""}, "empty"),
        ({"price_per_hour": "0", "price_per_gpu_hour": "0"}, "above 0"),
        ({"price_per_hour": "-1"}, "above 0"),
        ({"price_per_hour": "NaN"}, "above 0"),
        ({"price_per_hour": "cheap"}, "no number"),
        ({"price_per_hour": "1e999999"}, "size that occurs"),
        ({"gpus": "12"}, "is not price_per_hour"),
        ({"gpus": "64", "price_per_gpu_hour": "0.86"}, "0 to 16"),
        ({"gpus": "0"}, "accelerator H100 with 0 gpus"),
        ({"gpus": "1", "price_per_gpu_hour": "55.04"}, "not credible"),
        ({"gpu_mem_gib": ""}, "gpu_mem_gib"),
        ({"tier": "cheap"}, "tier"),
        ({"currency": ""}, "currency"),
        ({"currency": "EUR"}, "[[rate]]"),
        ({"currency": "dollars"}, "ISO 4217"),
        ({"confidence": "D"}, "confidence"),
        ({"as_of": "last week"}, "neither a date"),
        ({"as_of": ""}, "as_of is empty"),
        ({"as_of": "2026-07-20garbage"}, "neither a date"),
        ({"as_of": "20260720"}, "neither a date"),
        ({"as_of": "2026-W30"}, "neither a date"),
        ({"as_of": "2026-07-20T25:00:00Z"}, "neither a date"),
        ({"as_of": "2026-07-20T13:44:30Zoo"}, "neither a date"),
        ({"source_ref": ""}, "source_ref"),
        ({"region": " "}, "region"),
        ({"region": "us/east"}, "slash"),
        ({"provider": "own"}, "[[own]]"),
        ({"note": "a\x1b[2Jb"}, "control characters"),
    ],
)
def test_a_row_that_cannot_be_true_is_named(tmp_path: Path, wrong: dict[str, str], says: str) -> None:
    path = write(tmp_path / "p.csv", GOOD, GOOD | wrong | {"instance": "wrong.one"})
    prices, problems = read(path)
    assert len(prices) == 1
    assert len(problems) == 1
    assert says in problems[0]
    assert "line 3" in problems[0]
    assert "wrong.one" in problems[0]
    with pytest.raises(PriceError, match=r"p\.csv"):
        Catalogue.load(path)


def test_one_wrong_row_is_one(tmp_path: Path) -> None:
    with pytest.raises(PriceError, match=r"p\.csv: 1 wrong row: line 2"):
        Catalogue.load(write(tmp_path / "p.csv", GOOD | {"tier": "cheap"}))


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("2026-07-20", dt.date(2026, 7, 20)),
        ("2026-07", dt.date(2026, 7, 1)),
        ("2026-07-20T13:44:30Z", dt.date(2026, 7, 20)),
        ("2026-07-20 13:44:30.123456789+02:00", dt.date(2026, 7, 20)),
        ("unknown", None),
    ],
)
def test_a_day_comes_with_or_without_time(text: str, day: dt.date | None) -> None:
    assert day_of(text) == day


@pytest.mark.parametrize(
    "wrong", [{"vcpus": ""}, {"cpu_vendor": "via"}, {"price_per_hour": "9"}, {"vcpus": "1.5"}]
)
def test_a_cpu_row_needs_its_size(tmp_path: Path, wrong: dict[str, str]) -> None:
    assert read(write(tmp_path / "p.csv", CPU))[1] == []
    assert len(read(write(tmp_path / "p.csv", CPU | wrong))[1]) == 1


def test_spot_above_on_demand_and_doubles_are_contradictions(tmp_path: Path) -> None:
    spot = GOOD | {"tier": "spot", "price_per_hour": "64", "price_per_gpu_hour": "8"}
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
    with pytest.raises(PriceError, match=r"there is aws/p5\.48xlarge/us-east-1/on_demand$"):
        shipped().lookup("aws", "p5.48xlarge", tier="spot")


def test_another_currency_needs_the_rate_of_the_day(tmp_path: Path) -> None:
    euro = GOOD | {"currency": "EUR", "price_per_hour": "40", "price_per_gpu_hour": "5"}
    path = write(tmp_path / "p.csv", euro)
    rates = [
        Rate("EUR", Decimal("1.10"), dt.date(2026, 7, 1), "a bank"),
        Rate("EUR", Decimal("1.20"), dt.date(2026, 7, 21), "a bank"),
        Rate("GBP", Decimal("1.30"), dt.date(2026, 7, 20), "a bank"),
    ]
    (price,), problems = read(path, rates)
    assert problems == []
    assert price.usd_per_hour == Decimal("44")  # the rate before 20 July, not the nearer one after it
    assert (price.amount, price.currency) == (Decimal("40"), "EUR")
    (problem,) = read(path, rates[2:])[1]
    assert 'currency = "EUR"' in problem
    assert "2026-07-20" in problem


def test_a_user_s_price_replaces_the_same_series_and_day_only(tmp_path: Path) -> None:
    mine = GOOD | {"provider": "AWS", "price_per_hour": "30", "price_per_gpu_hour": "3.75"}
    newer = mine | {"as_of": "2026-10-01", "price_per_hour": "24", "price_per_gpu_hour": "3"}
    both = shipped().under(Catalogue.load(write(tmp_path / "p.csv", mine, newer)))
    assert len(both.prices) == len(shipped().prices) + 1
    for day, usd in ((2025, "55.04"), (2026, "30")):
        assert both.lookup("aws", "p5.48xlarge", on=dt.date(day, 8, 1)).usd_per_hour == Decimal(usd)
    assert both.lookup("aws", "p5.48xlarge").usd_per_hour == Decimal("24")
    assert shipped().lookup("aws", "p5.48xlarge").usd_per_hour == Decimal("55.04")


def test_a_written_row_reads_back_as_the_same_price(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", *(row_of(p) for p in shipped().prices))
    assert read(path) == (list(shipped().prices), [])
