"""Arguments that several `ssmke-cost` commands share: which folder of runs, and the user's own prices."""

from __future__ import annotations

import argparse
from pathlib import Path

from ssmke.cost.prices.catalogue import Catalogue
from ssmke.cost.prices.file import load_prices

PRICES = Path("prices.toml")


def add_folder(parser: argparse.ArgumentParser) -> None:
    """The positional FOLDER: a run folder, or a folder of run folders."""
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        help="a run folder, or a folder of run folders (default: runs, else .)",
    )


def folder_of(arguments: argparse.Namespace) -> Path:
    """The folder that was named, or ``runs``, or the current one."""
    return arguments.folder or (Path("runs") if Path("runs").is_dir() else Path())


def add_prices(parser: argparse.ArgumentParser) -> None:
    """``--prices FILE``: prices of your own beside the shipped ones."""
    parser.add_argument(
        "--prices",
        type=Path,
        metavar="FILE",
        help=f"your own prices, hardware, exchange rates and lines (default: {PRICES}, if it exists)",
    )


def catalogue_of(arguments: argparse.Namespace) -> Catalogue:
    """The shipped prices with the user's."""
    # A link that leads nowhere was meant to be read: better an error than other prices.
    there = PRICES.exists() or PRICES.is_symlink()
    return load_prices(arguments.prices or (PRICES if there else None))
