"""The user's prices file: what they pay, what they own, exchange rates, storage and transfer.

TOML with four tables, and ``include`` for price lists in the catalogue's CSV format (what ``ssmke-cost prices
import`` writes); such a CSV can also be given alone. ``docs/prices.md`` shows every key. Each entry is checked
and every fault of the file is reported at once, by table, number and name. On the same series and day the
user's price replaces the shipped one, and a ``[[price]]`` an included one.
"""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from ssmke.cost.prices.catalogue import Catalogue, shipped
from ssmke.cost.prices.days import today_utc
from ssmke.cost.prices.lines import line_of
from ssmke.cost.prices.own import own_of
from ssmke.cost.prices.rates import Rate, currency_code
from ssmke.cost.prices.rows import Price, PriceError, contents, contradictions, price_of, read
from ssmke.cost.prices.toml_entry import Entry
from ssmke.words import counted

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLES = ("price", "own", "rate", "line")
_Fact = TypeVar("_Fact")


def load_prices(path: Path | None, *, today: dt.date | None = None) -> Catalogue:
    """The shipped catalogue with the user's file on top; PriceError names everything that is wrong in it."""
    if path is None:
        return shipped()
    user, problems = read_prices(path, today=today)
    if problems:
        wrong = counted(len(problems), "wrong entry", "wrong entries")
        raise PriceError(f"{path}: {wrong}: " + "; ".join(problems))
    return shipped().under(user)


def read_prices(path: Path, *, today: dt.date | None = None) -> tuple[Catalogue, list[str]]:
    """(what is right in a TOML or CSV file, one message per fault). PriceError if it cannot be read at all.

    What was observed, bought or exchanged after ``today`` (default: the day that it is) is a fault.
    """
    today = today or today_utc()
    if path.suffix.lower() == ".csv":
        rows, problems = read(path, today=today)
        return Catalogue(rows), problems
    try:
        return _read_toml(path, today)
    except RecursionError as error:
        raise PriceError(f"{path}: is no TOML: nested too deeply") from error


def _read_toml(path: Path, today: dt.date) -> tuple[Catalogue, list[str]]:
    file = _File(path, _parsed(path), today)
    rates = tuple(file.entries("rate", _rate_of))
    included = tuple(file.included(rates))
    stated = tuple(file.entries("price", lambda entry: _price_of(entry, rates, path)))
    own = tuple(file.entries("own", lambda entry: own_of(entry, rates)))
    lines = tuple(file.entries("line", lambda entry: line_of(entry, rates)))
    above = {price.observation for price in stated}
    prices = (*(p for p in included if p.observation not in above), *stated)
    file.problems += contradictions(prices)
    file.refuse_doubles("own", [hardware.name.casefold() for hardware in own])
    file.refuse_doubles("rate", [f"{rate.currency} on {rate.as_of}" for rate in rates])
    file.refuse_doubles("line", [f"{line.kind} {line.name}, {line.label}" for line in lines])
    return Catalogue(prices, own=own, lines=lines, rates=rates), file.problems


def _parsed(path: Path) -> Mapping[str, Any]:
    try:
        # Decimal: a price of 0.69 is 0.69, not the nearest binary fraction.
        return tomllib.loads(contents(path).decode("utf-8-sig"), parse_float=Decimal)
    except InvalidOperation as error:
        raise PriceError(f"{path}: is no TOML: a number of no size that occurs") from error
    except ValueError as error:  # bad UTF-8 or bad TOML
        raise PriceError(f"{path}: is no TOML: {error}") from error


@dataclass
class _File:
    """A parsed prices file, read table by table; what is wrong is collected in ``problems``."""

    path: Path
    content: Mapping[str, Any]
    today: dt.date
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in self.content:
            if name not in (*TABLES, "include"):
                close = get_close_matches(name, TABLES, n=1)
                hint = f"did you mean [[{close[0]}]]?" if close else f"known: {', '.join(TABLES)}, include"
                self.problems.append(f"unknown table or key {name!r}; {hint}")

    def entries(self, table: str, made: Callable[[Entry], _Fact]) -> Iterator[_Fact]:
        """What ``made`` makes of each entry of a table, without those that it refuses."""
        values = self.content.get(table, [])
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            self.problems.append(f"{table} must be a list of tables: write [[{table}]]")
            return
        for number, value in enumerate(values, start=1):
            try:
                yield made(Entry(value, today=self.today))
            except ValueError as error:
                keys = (
                    ("provider", "instance")
                    if table == "price"
                    else ("currency" if table == "rate" else "name",)
                )
                named = "/".join(str(value[key]) for key in keys if key in value)
                self.problems.append(f"[[{table}]] {number}{f' ({named})' if named else ''}: {error}")

    def included(self, rates: Sequence[Rate]) -> Iterator[Price]:
        """The rows of the CSV files that ``include`` names, beside this file."""
        names = self.content.get("include", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            self.problems.append('include must be a list of file names: include = ["imported.csv"]')
            return
        for name in names:
            try:
                prices, problems = read(self.path.parent / name, rates, today=self.today)
            except PriceError as error:
                self.problems.append(f"include: {error}")
                continue
            self.problems += [f"include {name}: {problem}" for problem in problems]
            yield from prices

    def refuse_doubles(self, table: str, names: Sequence[str]) -> None:
        for name in dict.fromkeys(names):
            if names.count(name) > 1:
                self.problems.append(f"[[{table}]] {name}: listed {names.count(name)} times")


def _rate_of(entry: Entry) -> Rate:
    rate = Rate(
        currency=currency_code(entry.text("currency")),
        usd=entry.number("usd", above=0),
        as_of=entry.past_day("as_of"),
        source=entry.text("source"),
    )
    entry.done()
    if rate.currency == "USD":
        raise ValueError("currency USD needs no rate")
    return rate


def _price_of(entry: Entry, rates: Sequence[Rate], path: Path) -> Price:
    """A ``[[price]]``, through the same gate as a row of the catalogue."""
    if entry.has("usd_per_hour") == entry.has("price_per_hour"):
        raise ValueError("give either usd_per_hour, or price_per_hour with its currency")
    if entry.has("usd_per_hour"):
        amount, currency = entry.number("usd_per_hour", above=0), "USD"
    else:
        amount, currency = entry.number("price_per_hour", above=0), entry.text("currency")
    gpus = entry.whole("gpus", most=16)
    row = {
        "provider": entry.text("provider"),
        "instance": entry.text("instance"),
        "accelerator": entry.text("accelerator"),
        "gpus": str(gpus),
        "form": entry.text("form", ""),
        "cpu_vendor": entry.text("cpu_vendor", ""),
        "region": entry.text("region", "-"),
        "tier": entry.text("tier", "on_demand"),
        "price_per_hour": f"{amount:f}",
        "price_per_gpu_hour": f"{amount / gpus:f}" if gpus else "",
        "currency": currency,
        "as_of": entry.past_day("as_of").isoformat(),
        "as_of_kind": "stated",
        "source": entry.text("source"),
        "source_ref": entry.text("source_ref", path.name),
        "confidence": entry.text("confidence", "B"),
        "note": entry.text("note", ""),
    }
    for key in ("gpu_mem_gib", "vcpus", "host_mem_gib"):
        if entry.has(key):
            row[key] = f"{entry.number(key, above=0):f}"
    entry.done()
    return price_of(row, rates, stated=True)
