"""``ssmke-cost report``: what this workspace's runs cost, beside the published baselines."""

from __future__ import annotations

import argparse
import datetime as dt
import shutil
from dataclasses import replace
from pathlib import Path

from ssmke.cli.cost.folder import add_folder, add_prices, catalogue_of, folder_of
from ssmke.cli.cost.terminal import say, write
from ssmke.cost.render import FORMATS, WIDTH, render
from ssmke.cost.report import Report, report
from ssmke.errors import ConfigError
from ssmke.words import counted


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser("report", help="this workspace's runs beside the published baselines")
    add_folder(parser)
    add_prices(parser)
    parser.add_argument("--format", choices=FORMATS, default="table", dest="form")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write there instead of to the terminal")
    parser.add_argument(
        "--reprice",
        metavar="PRICE",
        help="price the runs anew, as --cost.price would: auto, 0.69, aws/p5.48xlarge, own/NAME (nothing is stored)",
    )
    parser.add_argument(
        "--full", action="store_true", help="every run with its phases and attempts, however many"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints or writes the report; exit code 0."""
    if arguments.out is not None and arguments.out.is_dir():
        raise ConfigError(f"--out {arguments.out}: is a folder; name a file")
    found = read(arguments)
    shown = render(found, arguments.form, width=_width(), full=arguments.full)
    if arguments.out is None:
        write(shown)
        return 0
    try:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(shown, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {arguments.out}: cannot be written: {error.strerror}") from error
    say(f"{arguments.out}: {counted(len(found.runs), 'run')}, {arguments.form}")
    return 0


def read(arguments: argparse.Namespace) -> Report:
    """The folder's report at the prices that were asked for; storage that still runs is counted up to today."""
    found = report(
        folder_of(arguments), catalogue=catalogue_of(arguments), reprice=getattr(arguments, "reprice", None)
    )
    today = dt.datetime.now(dt.timezone.utc).date()
    return replace(found, lines=tuple(line.closed(today) for line in found.lines))


def _width() -> int:
    return max(shutil.get_terminal_size((WIDTH, 24)).columns, 60)
