"""``ssmke-cost``: what training cost, from the ledgers alone.

Starts in a fifth of a second: argparse, and neither torch nor MLflow nor pandas.
"""

from __future__ import annotations

import argparse
import csv
import datetime as dt
import io
import sys
from collections import Counter
from pathlib import Path

from ssmke.cost import prices, text
from ssmke.cost.report import report
from ssmke.errors import ConfigError, SSMKEError


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; the exit code: 0, 1 (``prices check`` found faults), 2 (wrong input)."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "report":
            return _report(arguments)
        return _prices_list(arguments) if arguments.action == "list" else _prices_check(arguments)
    except SSMKEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `ssmke-cost report | head`
        sys.stderr.close()
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ssmke-cost",
        description="What training cost: device-hours, energy, dollars, from the runs' ledgers.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("report", help="this workspace's runs beside the published baselines")
    one.add_argument(
        "folder",
        nargs="?",
        type=Path,
        help="a run folder, or a folder of run folders (default: runs, else .)",
    )
    one.add_argument("--format", choices=text.FORMATS, default="table", dest="form")
    several = commands.add_parser("prices", help="the dated price list").add_subparsers(
        dest="action", required=True
    )
    listing = several.add_parser("list", help="prices known at a date, with their source")
    listing.add_argument("--provider", help="aws, azure, gcp, lambda, runpod, vast")
    listing.add_argument("--accelerator", help="A100, H100, RTX4090, CPU, ...")
    listing.add_argument("--tier", choices=prices.TIERS)
    listing.add_argument("--on", help="the prices of this day, YYYY-MM-DD (default: the newest)")
    listing.add_argument("--format", choices=("table", "csv"), default="table", dest="form")
    check = several.add_parser("check", help="validates every row of a price list")
    check.add_argument(
        "file", nargs="?", type=Path, default=prices.CATALOGUE, help="default: the one in the package"
    )
    return parser


def _report(arguments: argparse.Namespace) -> int:
    folder = arguments.folder or (Path("runs") if Path("runs").is_dir() else Path())
    sys.stdout.write(text.render(report(folder), arguments.form))
    return 0


def _prices_list(arguments: argparse.Namespace) -> int:
    try:
        on = None if arguments.on is None else dt.date.fromisoformat(arguments.on)
    except ValueError:
        raise ConfigError(f"--on {arguments.on!r} is no date; write it as 2026-07-20") from None
    found = prices.shipped().find(
        provider=arguments.provider,
        accelerator=arguments.accelerator,
        tiers=None if arguments.tier is None else (arguments.tier,),
        on=on,
    )
    if not found:
        raise ConfigError("no price fits; `ssmke-cost prices list` without filters shows all")
    head = ["--cost.price", "accelerator", "USD/h", "USD/GPU-h", "as of", "confidence"]
    rows = [
        [
            p.name,
            f"{p.vcpus} vCPU, {p.host_mem_gib} GiB"
            if p.gpus == 0
            else f"{p.gpus} x {p.accelerator} {p.gpu_mem_gib} GB",
            f"{p.usd_per_hour.normalize():f}",
            "" if p.usd_per_gpu_hour is None else f"{p.usd_per_gpu_hour:.4f}",
            p.as_of_text,
            p.confidence,
        ]
        for p in found
    ]
    if arguments.form == "csv":
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow([*head, "source", "source_ref"])
        writer.writerows([*row, p.source, p.source_ref] for row, p in zip(rows, found, strict=True))
        sys.stdout.write(buffer.getvalue())
        return 0
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(
        f"{len(rows)} prices; A: the provider's own list, dated; B: cited or catalogued; C: undated or a median."
    )
    return 0


def _prices_check(arguments: argparse.Namespace) -> int:
    rows, problems = prices.read(arguments.file)
    for problem in problems:
        print(problem)
    grades = Counter(p.confidence for p in rows)
    dates = sorted(p.as_of for p in rows if p.as_of is not None)
    span = f", {dates[0]} to {dates[-1]}" if dates else ""
    graded = ", ".join(f"{grades[g]} of confidence {g}" for g in "ABC" if grades[g])
    print(f"{arguments.file}: {len(rows)} good rows ({graded}){span}; {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
