"""``ssmke-cost prices``: what is known of prices at a date, whether a price list is sound, and more of them."""

from __future__ import annotations

import argparse
import csv
import datetime as dt
import io
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from ssmke.cli.cost.folder import add_prices, catalogue_of
from ssmke.cost.prices import catalogue as prices
from ssmke.cost.prices import imports as price_import
from ssmke.cost.prices import sources as price_sources
from ssmke.cost.prices.catalogue import Catalogue, Price
from ssmke.cost.prices.days import iso_day, refuse_future, today_utc
from ssmke.cost.prices.file import read_prices
from ssmke.cost.prices.imports import Rejection
from ssmke.errors import ConfigError
from ssmke.screen import clean
from ssmke.words import counted

_HEAD = ("--cost.price", "what", "USD/h", "USD/GPU-h", "as of", "confidence")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """``prices list``, ``check`` and ``import``."""
    actions = commands.add_parser(
        "prices", help="the dated price list: list it, check it, import into it"
    ).add_subparsers(dest="action", required=True, metavar="ACTION")

    listing = actions.add_parser("list", help="prices known at a date, with their source")
    listing.add_argument("--provider", help="aws, azure, gcp, lambda, runpod, vast, own, ...")
    listing.add_argument("--accelerator", help="A100, H100, RTX4090, CPU, ...")
    listing.add_argument("--region")
    listing.add_argument("--tier", choices=prices.TIERS)
    listing.add_argument(
        "--on", metavar="DATE", help="the prices of this day, YYYY-MM-DD (default: the newest)"
    )
    listing.add_argument("--format", choices=("table", "csv"), default="table", dest="form")
    add_prices(listing)
    listing.set_defaults(run=_list)

    check = actions.add_parser("check", help="validates every entry of a price list (CSV or TOML)")
    check.add_argument(
        "file", nargs="?", type=Path, default=prices.CATALOGUE, help="default: the one in the package"
    )
    check.set_defaults(run=_check)

    importing = actions.add_parser(
        "import",
        help="prices from SkyPilot's or gpuhunt's catalogue into a CSV that --prices and include take",
    )
    importing.add_argument("file", type=Path, help="SkyPilot's vms.csv, or gpuhunt's CSV of one provider")
    importing.add_argument("--from", required=True, choices=tuple(price_sources.FORMS), dest="form")
    importing.add_argument("--provider", required=True, help="whose prices these are: aws, gcp, vast, ...")
    importing.add_argument(
        "--as-of", required=True, metavar="DATE", help="the day of the catalogue, YYYY-MM-DD, or unknown"
    )
    importing.add_argument(
        "--out",
        type=Path,
        metavar="FILE.csv",
        default=Path("imported_prices.csv"),
        help="added to, if it exists (default: imported_prices.csv)",
    )
    importing.set_defaults(run=_import)


def _list(arguments: argparse.Namespace) -> int:
    on = None if arguments.on is None else _day(arguments.on, "--on")
    catalogue = catalogue_of(arguments)
    found = catalogue.find(
        provider=arguments.provider,
        accelerator=arguments.accelerator,
        region=arguments.region,
        tiers=None if arguments.tier is None else (arguments.tier,),
        on=on,
    )
    rows = [(_cells(p), (p.source, p.source_ref)) for p in found]
    if arguments.provider in (None, "own") and not (arguments.region or arguments.tier):
        rows += _own_rows(catalogue, arguments.accelerator, on)
    if not rows:
        raise ConfigError("no price fits; `ssmke-cost prices list` without filters shows all")
    if arguments.form == "csv":
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["cost_price", *_HEAD[1:], "source", "source_ref"])
        writer.writerows([_inert(cell) for cell in (*cells, *source)] for cells, source in rows)
        sys.stdout.write(buffer.getvalue())
        return 0
    _print_table([_HEAD, *(cells for cells, _ in rows)])
    print(
        f"{counted(len(rows), 'price')}; A: the provider's own list, dated; B: cited, catalogued or your own; "
        "C: undated or a median."
    )
    return 0


def _cells(price: Price) -> tuple[str, ...]:
    what = f"{price.gpus} x {price.accelerator} {price.gpu_mem_gib} GB"
    if price.gpus == 0:
        what = f"{price.vcpus} vCPU, {price.host_mem_gib} GiB"
    if price.rate is not None:
        what += f" ({price.amount} {price.currency} at {price.rate.usd})"
    return (
        price.name,
        what,
        f"{price.usd_per_hour.normalize():f}",
        "" if price.usd_per_gpu_hour is None else f"{price.usd_per_gpu_hour:.4f}",
        price.as_of_text,
        price.confidence,
    )


def _own_rows(
    catalogue: Catalogue, accelerator: str | None, on: dt.date | None
) -> list[tuple[tuple[str, ...], tuple[str, str]]]:
    rows: list[tuple[tuple[str, ...], tuple[str, str]]] = []
    for own in catalogue.own:
        if accelerator is not None and accelerator.casefold() != own.accelerator.casefold():
            continue
        hourly = own.usd_per_hour(on)
        what = f"{own.gpus} x {own.accelerator}" if own.gpus else "own hardware"
        cells = (
            f"own/{own.name}",
            f"{what}, + {own.usd_per_kwh.normalize():f} USD/kWh",
            f"{hourly.normalize():f}",
            f"{hourly / own.gpus:.4f}" if own.gpus else "",
            str(own.as_of or own.bought),
            "B",
        )
        rows.append((cells, (own.source, f"{own.amortisation} amortisation")))
    return rows


def _check(arguments: argparse.Namespace) -> int:
    found, problems = read_prices(arguments.file)
    for problem in problems:
        print(clean(problem))
    grades = Counter(p.confidence for p in found.prices)
    dates = sorted(p.as_of for p in found.prices if p.as_of is not None)
    span = f", {dates[0]} to {dates[-1]}" if dates else ""
    graded = ", ".join(f"{grades[g]} of confidence {g}" for g in "ABC" if grades[g])
    others = f", {len(found.own)} own" if found.own else ""
    others += "".join(
        f", {counted(len(facts), name)}"
        for name, facts in (("rate", found.rates), ("line", found.lines))
        if facts
    )
    print(
        f"{arguments.file}: {counted(len(found.prices), 'good row')}{f' ({graded})' if graded else ''}{span}{others}; "
        f"{counted(len(problems), 'problem')}"
    )
    return 1 if problems else 0


def _import(arguments: argparse.Namespace) -> int:
    if arguments.out.suffix.lower() != ".csv":
        raise ConfigError(
            f"--out {arguments.out}: imported prices are written as .csv; prices.toml includes it"
        )
    as_of = None if arguments.as_of == "unknown" else _day(arguments.as_of, "--as-of")
    if as_of is not None:
        try:
            refuse_future("--as-of", as_of, today_utc())
        except ValueError as error:
            raise ConfigError(str(error)) from None
    found = price_import.import_prices(
        arguments.file,
        arguments.form,
        provider=arguments.provider,
        as_of=as_of,
        known=prices.shipped(),
    )
    for reason, rejected in _by_reason(found.rejected):
        names = list(dict.fromkeys(r.name for r in rejected))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        print(clean(f"{_ranges(r.line for r in rejected)}: {', '.join(names[:3])}{more}: {reason}"))
    replaced = price_import.write_merged(arguments.out, found.prices) if found.prices else 0
    print(
        f"{arguments.out}: {counted(len(found.prices), 'price')} added"
        f"{f', {replaced} of them in place of older ones' if replaced else ''}; {len(found.rejected)} rejected, "
        f"{found.repeated} repeated, {counted(found.skipped, 'machine')} without GPU left out"
    )
    if found.prices:
        print(f'Use: --prices {arguments.out}, or include = ["{arguments.out.name}"] in your prices.toml')
    return 1 if found.rejected else 0


def _by_reason(rejected: Sequence[Rejection]) -> list[tuple[str, list[Rejection]]]:
    ordered = sorted(rejected, key=lambda r: (r.reason, r.line))
    groups = [(reason, list(members)) for reason, members in groupby(ordered, key=lambda r: r.reason)]
    return sorted(groups, key=lambda group: group[1][0].line)


def _ranges(numbers: Iterable[int]) -> str:
    """``lines 2-4, 9``: a catalogue repeats one fault over thousands of lines."""
    spans: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], number)
        else:
            spans.append((number, number))
    text = ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)
    return f"line {text}" if len(spans) == 1 and spans[0][0] == spans[0][1] else f"lines {text}"


def _day(text: str, flag: str) -> dt.date:
    try:
        return iso_day(text)
    except ValueError as error:
        raise ConfigError(f"{flag} {error}") from None


def _inert(cell: str) -> str:
    # A name from somebody's file must not become a formula in a spreadsheet.
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@")) else cell


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
