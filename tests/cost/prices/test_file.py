"""A prices file says what its writer meant, or what is wrong with it; own hardware and lines cost what they cost."""

from __future__ import annotations

import calendar
import codecs
import datetime as dt
import math
import os
import re
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmke.cost.prices.catalogue import CATALOGUE, PriceError, shipped
from ssmke.cost.prices.file import load_prices, read_prices
from ssmke.cost.prices.lines import months
from ssmke.cost.prices.quote import check_spec, quote
from tests.cost.prices.test_quote import gpus

TODAY = dt.date(2026, 11, 1)
DOCS = Path(__file__).parents[3] / "docs" / "prices.md"
PRICE = {
    "provider": '"me"', "instance": '"box"', "accelerator": '"A100"', "gpus": "4", "gpu_mem_gib": "80",
    "usd_per_hour": "4.1", "as_of": "2026-03-01", "source": '"contract"',
}  # fmt: skip
OWN = {
    "name": '"lab"', "purchase": "9200", "residual": "1200", "currency": '"USD"', "bought": "2025-03-01",
    "life_years": "4", "utilisation": "0.5", "electricity_per_kwh": "0.3", "pue": "1.2", "source": '"invoice"',
}  # fmt: skip
RATE = {"currency": '"EUR"', "usd": "1.25", "as_of": "2025-01-01", "source": '"bank"'}
STORAGE = {
    "name": '"disk"', "kind": '"storage"', "gb": "100", "per_gb_month": "0.02", "from": "2026-01-01",
    "to": "2026-03-01", "source": '"bill"',
}  # fmt: skip
TRANSFER = {"name": '"out"', "kind": '"transfer"', "gb": "1000", "per_gb": "0.09", "source": '"bill"'}


def write(folder: Path, *entries: tuple[str, dict[str, str]], head: str = "") -> Path:
    path = folder / "mine.toml"
    tables = [f"[[{table}]]\n" + "".join(f"{k} = {v}\n" for k, v in keys.items()) for table, keys in entries]
    path.write_text(head + "\n".join(tables), encoding="utf-8")
    return path


def test_the_documented_example_loads_and_costs_what_the_document_says(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "prices.toml").write_text(example)
    prices = load_prices(tmp_path / "prices.toml", today=TODAY)
    assert prices.lookup("uni-cluster", "gpu-node").usd_per_hour == Decimal("3.888")
    (own,) = prices.own
    linear = (9200 - 1200) * 1.08 / (4 * 8760 * 0.6) + 0.05 * 1.08
    assert float(own.usd_per_hour()) == pytest.approx(linear, abs=1e-6)
    assert own.usd_per_kwh == Decimal("0.449280")
    storage, transfer = prices.lines
    # 17 of January's days, February to August whole, 7 of September's.
    assert float(storage.usd or 0) == pytest.approx(24.5 * (17 / 31 + 7 + 7 / 30), abs=1e-6)
    assert transfer.usd == Decimal("39")


def test_the_documented_include_works_once_it_is_no_comment(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert example.startswith("# include = ")
    (tmp_path / "prices.toml").write_text(example.removeprefix("# "))
    with pytest.raises(PriceError, match=r"imported_prices\.csv"):
        load_prices(tmp_path / "prices.toml", today=TODAY)
    (tmp_path / "imported_prices.csv").write_bytes(CATALOGUE.read_bytes())
    more = load_prices(tmp_path / "prices.toml", today=TODAY)
    assert len(more.prices) == len(shipped().prices) + 1


def test_without_a_file_the_shipped_prices_hold() -> None:
    assert load_prices(None) is shipped()


def test_money_is_read_to_the_last_digit(tmp_path: Path) -> None:
    prices = load_prices(write(tmp_path, ("price", PRICE | {"usd_per_hour": "0.1234567890123456789"})))
    assert prices.lookup("me", "box").usd_per_hour == Decimal("0.1234567890123456789")


@pytest.mark.parametrize(
    ("table", "keys", "says"),
    [
        ("price", PRICE | {"usd_per_hour": "1e999999"}, "size that occurs"),
        ("own", OWN | {"purchase": "1e30"}, "size that occurs"),
        ("price", PRICE | {"usd_per_hour": "0"}, "above 0"),
        ("price", PRICE | {"usd_per_hour": "nan"}, "finite"),
        ("price", PRICE | {"usd_per_hour": '"4.1"'}, "must be a number"),
        ("price", PRICE | {"usd_per_hour": "true"}, "must be a number"),
        ("price", PRICE | {"usd_per_hour": "400"}, "not credible"),
        ("price", PRICE | {"price_per_hour": "4"}, "either usd_per_hour"),
        ("price", PRICE | {"gpus": "12.5"}, "whole number"),
        ("price", PRICE | {"gpus": "0"}, "accelerator A100 with 0 gpus"),
        ("price", PRICE | {"tier": '"cheap"'}, "none of"),
        ("price", PRICE | {"as_of": '"March"'}, "no date"),
        ("price", {k: v for k, v in PRICE.items() if k != "source"}, "source is missing"),
        ("price", {k: v for k, v in PRICE.items() if k != "as_of"}, "as_of is missing"),
        ("price", {k: v for k, v in PRICE.items() if k != "gpu_mem_gib"}, "gpu_mem_gib"),
        ("price", PRICE | {"regoin": '"here"'}, "did you mean region?"),
        ("price", PRICE | {"instance": '"a/b"'}, "slash"),
        ("own", OWN | {"utilisation": "0"}, "above 0"),
        ("own", OWN | {"utilisation": "60"}, "1 or less"),
        ("own", OWN | {"pue": "0.9"}, "1 or more"),
        ("own", OWN | {"residual": "9201"}, "above purchase"),
        ("own", OWN | {"share": '"gpus"'}, "needs gpus"),
        ("own", OWN | {"currency": '"CHF"'}, 'currency = "CHF"'),
        ("own", OWN | {"amortisation": '"double"'}, "none of linear, market"),
        ("rate", RATE | {"usd": "0"}, "above 0"),
        ("rate", RATE | {"currency": '"USD"'}, "needs no rate"),
        ("rate", RATE | {"currency": '"Euro"'}, "ISO 4217"),
        ("line", STORAGE | {"to": "2025-12-31"}, "before from"),
        ("line", STORAGE | {"kind": '"disk"'}, "storage, transfer"),
        ("line", STORAGE | {"gb": "-1"}, "0 or more"),
        ("line", TRANSFER | {"per_gb_month": "1"}, "unknown key"),
    ],
)
def test_a_faulty_entry_is_named_and_the_others_are_read(
    tmp_path: Path, table: str, keys: dict[str, str], says: str
) -> None:
    path = write(tmp_path, ("price", PRICE | {"instance": '"good"'}), (table, keys))
    prices, problems = read_prices(path)
    assert [p.instance for p in prices.prices] == ["good"]
    (problem,) = problems
    assert says in problem
    assert problem.startswith(f"[[{table}]] {2 if table == 'price' else 1} (")
    with pytest.raises(PriceError, match=r"mine\.toml: 1 wrong entry: .*\[\["):
        load_prices(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[prise]]\nx = 1", r"did you mean \[\[price\]\]"),
        ("[price]\nx = 1", r"write \[\[price\]\]"),
        ("price = 3", r"write \[\[price\]\]"),
        ('include = "x.csv"', "list of file names"),
        ('include = ["absent.csv"]', r"absent\.csv"),
        ("[[price", "is no TOML"),
        ("x = 'Zürich'".encode("latin-1"), "is no TOML"),
        (None, "cannot be read"),
        ("a = " + "[" * 100_000, "nested too deeply"),
        ("[[price]]\nprovider." + "a." * 3_000 + "a = 1", "nested too deeply"),
        ("x = 1e9999999999999999999", "is no TOML"),
        ('include = ["a\\u0000.csv"]', r"include: .*cannot be read"),
    ],
)
def test_a_file_that_is_no_prices_file_is_one_clear_error(
    tmp_path: Path, text: str | bytes | None, says: str
) -> None:
    path = tmp_path / "bad.toml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(PriceError, match=rf"(?s)bad\.toml.*{says}"):
        load_prices(path)


@pytest.mark.parametrize("name", ["mine.toml", "mine.csv"])
@pytest.mark.timeout(20)
def test_what_is_no_regular_file_is_not_read(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)  # nobody writes: reading would wait for ever
    with pytest.raises(PriceError, match=rf"{name}: cannot be read: it is no regular file"):
        load_prices(tmp_path / name)
    (tmp_path / f"endless.{name}").symlink_to("/dev/zero")
    for endless in (tmp_path / f"endless.{name}", tmp_path):
        with pytest.raises(PriceError, match="no regular file"):
            load_prices(endless)
    including = tmp_path / "all.toml"
    including.write_text(f'include = ["endless.{name}"]')
    with pytest.raises(PriceError, match=r"include: .*no regular file"):
        load_prices(including)


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    path = write(tmp_path, ("price", PRICE), head='include = ["more.csv"]\n')
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    (tmp_path / "more.csv").write_bytes(codecs.BOM_UTF8 + CATALOGUE.read_bytes())
    assert len(load_prices(path, today=TODAY).prices) == len(shipped().prices) + 1
    assert len(load_prices(tmp_path / "more.csv", today=TODAY).prices) == len(shipped().prices)


@pytest.mark.parametrize(
    ("table", "keys", "key"),
    [
        ("price", PRICE, "as_of"),
        ("own", OWN, "bought"),
        ("own", OWN | {"as_of": "2025-03-02"}, "as_of"),
        ("rate", RATE, "as_of"),
    ],
)
def test_what_is_still_to_come_was_not_observed(
    tmp_path: Path, table: str, keys: dict[str, str], key: str
) -> None:
    path = write(tmp_path, (table, keys | {key: "2026-11-03"}))
    (problem,) = read_prices(path, today=TODAY)[1]
    assert problem.startswith(f"[[{table}]] 1 (")
    assert f"{key} 2026-11-03 is in the future (today is 2026-11-01)" in problem
    assert read_prices(path, today=dt.date(2026, 11, 2))[1] == []  # it may be tomorrow elsewhere


def test_an_included_row_of_the_future_is_named(tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_bytes(CATALOGUE.read_bytes())
    path = write(tmp_path, head='include = ["more.csv"]\n')
    problems = read_prices(path, today=dt.date(2026, 7, 21))[1]
    assert problems
    assert all("as_of 2026-07-30 is in the future" in problem for problem in problems)
    assert problems[0].startswith("include more.csv: line ")


@pytest.mark.parametrize(
    "day", ["20260301", "2026-W10-7", "2026-03-01T00:00:00", "2026-02-30", "\u0662026-03-01"]
)
def test_a_day_in_quotes_is_written_one_way(tmp_path: Path, day: str) -> None:
    (problem,) = read_prices(write(tmp_path, ("price", PRICE | {"as_of": f'"{day}"'})))[1]
    assert "is no date" in problem


def test_what_is_listed_twice_is_a_fault(tmp_path: Path) -> None:
    twice = [("price", PRICE), ("own", OWN), ("rate", RATE), ("line", TRANSFER)]
    problems = read_prices(write(tmp_path, *twice, *twice))[1]
    assert len(problems) == 4
    assert all("twice" in p or "2 times" in p for p in problems)


def test_a_stated_price_goes_before_an_included_one_and_before_a_better_graded_guess(tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_bytes(CATALOGUE.read_bytes())
    h100 = PRICE | {"accelerator": '"H100"', "gpus": "8", "usd_per_hour": "70"}
    same = h100 | {
        "provider": '"aws"',
        "instance": '"p5.48xlarge"',
        "region": '"us-east-1"',
        "as_of": "2026-07-20",
        "usd_per_hour": "50",
    }
    prices = load_prices(write(tmp_path, ("price", same), head='include = ["more.csv"]\n'))
    assert prices.lookup("aws", "p5.48xlarge").usd_per_hour == Decimal("50")
    assert len(prices.prices) == len(shipped().prices)
    dear = load_prices(write(tmp_path, ("price", h100)))
    node = gpus("NVIDIA H100 80GB HBM3", 8, 81559)
    guess = quote("auto", dear, devices=node, machine=None)
    assert (guess.usd_per_hour, guess.guessed) == (Decimal("70"), True)


def test_own_hardware_costs_its_loss_of_value_and_what_it_draws(tmp_path: Path) -> None:
    prices = load_prices(write(tmp_path, ("own", OWN | {"hosting_per_hour": "0.02", "gpus": "4"})))
    answer = quote("own/LAB", prices, devices=gpus("NVIDIA RTX A6000", 2, None), machine=None)
    linear = (9200 - 1200) / (4 * 8760 * 0.5) + 0.02
    market = 9200 * 0.14 * math.log(10) / (8760 * 0.5) + 0.02
    assert float(answer.usd_per_hour or 0) == pytest.approx(linear, abs=1e-6)
    assert (answer.usd_per_kwh, answer.guessed) == (Decimal("0.36"), False)
    assert [float(x or 0) for x in (answer.low, answer.high)] == pytest.approx([linear, market], abs=1e-6)
    kept = answer.snapshot()
    assert (kept["provider"], kept["instance"], kept["usd_per_kwh"]) == ("own", "lab", "0.360000")
    assert kept["assumptions"]["utilisation"] == "0.5 of 8760 h a year"
    assert "$0.36/kWh" in answer.label


def test_own_hardware_ages(tmp_path: Path) -> None:
    (own,) = load_prices(write(tmp_path, ("own", OWN))).own
    (market,) = load_prices(write(tmp_path, ("own", OWN | {"amortisation": '"market"'}))).own
    new, older = dt.date(2025, 3, 1), dt.date(2027, 3, 1)
    assert own.usd_per_hour(older) == own.usd_per_hour(new) == own.usd_per_hour(dt.date(2020, 1, 1))
    assert float(market.usd_per_hour(older) / market.usd_per_hour(new)) == pytest.approx(10**-0.28, rel=1e-3)
    assert own.usd_per_hour(dt.date(2029, 3, 1)) == 0
    assert "over" in own.assumptions(dt.date(2029, 3, 1))["paid off"]


def test_a_share_of_own_hardware_is_charged_only_when_asked_for(tmp_path: Path) -> None:
    devices = gpus("NVIDIA RTX A6000", 1, None)
    whole = load_prices(write(tmp_path, ("own", OWN | {"gpus": "4"})))
    share = load_prices(write(tmp_path, ("own", OWN | {"gpus": "4", "share": '"gpus"'})))
    full = quote("own/lab", whole, devices=devices, machine=None).usd_per_hour
    part = quote("own/lab", share, devices=devices, machine=None)
    assert float(part.usd_per_hour or 0) == pytest.approx(float(full or 0) / 4, abs=1e-6)
    assert part.assumptions["share"] == "GPUs used of 4"


@pytest.mark.parametrize("spec", ["own", "own/", "own/other", "own/lab/here"])
def test_own_hardware_that_is_not_there_is_refused_before_the_run(tmp_path: Path, spec: str) -> None:
    with pytest.raises(PriceError, match=r"--cost\.price"):
        check_spec(spec, load_prices(write(tmp_path, ("own", OWN))))


def test_purchase_and_bills_are_converted_at_their_own_days(tmp_path: Path) -> None:
    later = RATE | {"usd": "1.5", "as_of": "2026-01-01"}
    own = OWN | {"currency": '"EUR"', "as_of": "2026-02-01"}
    (hardware,) = load_prices(write(tmp_path, ("rate", RATE), ("rate", later), ("own", own))).own
    assert float(hardware.usd_per_hour()) == pytest.approx(8000 * 1.25 / (4 * 8760 * 0.5), abs=1e-6)
    assert hardware.usd_per_kwh == Decimal("0.3") * Decimal("1.2") * Decimal("1.5")


def test_running_storage_is_unknown_until_a_day_is_named(tmp_path: Path) -> None:
    endless = {k: v for k, v in STORAGE.items() if k != "to"}
    (line,) = load_prices(write(tmp_path, ("line", endless))).lines
    assert line.usd is None
    assert line.closed(dt.date(2026, 3, 1)).usd == Decimal("4")
    assert line.closed(dt.date(2025, 3, 1)).usd == 0
    assert "still running" in line.closed(dt.date(2026, 3, 1)).label
    (ended,) = load_prices(write(tmp_path, ("line", STORAGE))).lines
    assert ended.closed(dt.date(2030, 1, 1)).usd == ended.usd == Decimal("4")


values = st.one_of(
    st.just("true"),
    st.just("[1]"),
    st.sampled_from(["inf", "nan", "-1", "0", "1e-300", "1e300", "2026-02-28", "9999-12-31", "0001-01-01"]),
    st.integers(-(2**63), 2**63 - 1).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.text(st.characters(codec="utf-8", exclude_characters="'\n\r", exclude_categories=("Cc", "Cs"))).map(
        lambda text: f"'{text}'"
    ),
)


@pytest.mark.parametrize(
    ("table", "keys"), [("price", PRICE), ("own", OWN), ("rate", RATE), ("line", STORAGE), ("line", TRANSFER)]
)
@settings(deadline=None)  # files on a busy disk
@given(data=st.data())
def test_whatever_stands_in_a_file_is_read_or_named(
    tmp_path_factory: pytest.TempPathFactory, table: str, keys: dict[str, str], data: st.DataObject
) -> None:
    key = data.draw(st.sampled_from(sorted(keys)))
    path = write(tmp_path_factory.getbasetemp(), (table, keys | {key: data.draw(values)}))
    prices, problems = read_prices(path)
    found = [*prices.prices, *prices.own, *prices.rates, *prices.lines]
    assert len(found) + len(problems) == 1
    for own in prices.own:
        assert own.usd_per_hour().is_finite()
        assert own.usd_per_kwh >= 0
    for line in prices.lines:
        assert line.usd is not None
        assert line.usd >= 0


days = st.dates(dt.date(2020, 1, 1), dt.date(2032, 12, 31))


@settings(deadline=None)
@given(st.lists(days, min_size=3, max_size=3).map(sorted))
def test_months_add_up(cut: list[dt.date]) -> None:
    first, middle, last = cut
    assert months(first, middle) + months(middle, last) == months(first, last)
    assert months(first, first) == 0
    # Each day by itself, in the month that it is in.
    by_day = sum(
        (
            Fraction(1, calendar.monthrange(day.year, day.month)[1])
            for day in (first + dt.timedelta(n) for n in range((last - first).days))
        ),
        Fraction(0),
    )
    assert months(first, last) == by_day
