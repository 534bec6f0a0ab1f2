"""``ssmke-cost whatif``: a measured run on other hardware (see `ssmke.cost.estimates.whatif`)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ssmke.cli.cost.forecast import (
    MOST_DEVICES,
    add_target,
    check_count,
    check_price_choice,
    is_spot,
    one_run,
    price_of,
    show,
)
from ssmke.errors import ConfigError

if TYPE_CHECKING:
    from ssmke.cost.estimates.estimate import Estimate


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser("whatif", help="what a measured run would have taken on other hardware")
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--pairs-per-second", type=float, metavar="N", help="measured there, all devices together"
    )
    parser.add_argument(
        "--restart-loss",
        type=float,
        metavar="SHARE",
        help="share of time that interruptions cost (default with --tier spot: 0.05, an assumption)",
    )
    add_target(parser, "--on")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the estimate."""
    show(estimate(arguments), arguments.form)
    return 0


def estimate(arguments: argparse.Namespace) -> Estimate:
    """The estimate that the arguments ask for; ConfigError for what they lack."""
    import dataclasses

    from ssmke.cost.efficiency.devices import named
    from ssmke.cost.estimates.whatif import devices_of, whatif

    if arguments.device is None:
        raise ConfigError("--on is missing: name the other hardware, e.g. --on H100")
    check_price_choice(arguments)
    measured = one_run(arguments.folder)
    spec, remark = named(arguments.device)
    devices = devices_of(measured) if arguments.devices is None else arguments.devices
    check_count("--devices", devices, MOST_DEVICES)
    price = price_of(arguments, spec, devices)
    found = whatif(
        measured,
        spec,
        devices=devices,
        rent=price,
        dtype=arguments.dtype,
        pairs_per_second=arguments.pairs_per_second,
        restart_loss=arguments.restart_loss,
        interruptible=is_spot(arguments),
    )
    return dataclasses.replace(found, reasons=(remark, *found.reasons)) if remark else found
