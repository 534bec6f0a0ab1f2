"""``ssmke-cost``: what training cost, from the ledgers alone; one module a command.

Starts in a fifth of a second: argparse, and neither torch nor MLflow nor pandas until a command needs them.
"""

from __future__ import annotations

import argparse
import sys

from ssmke.cli.cost import audit, dashboard, forecast, ledgers, plot, prices, report, whatif
from ssmke.cli.cost.terminal import complain
from ssmke.errors import SSMKEError

COMMANDS = (report, audit, forecast, whatif, plot, dashboard, prices, ledgers)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; the exit code: 0, 1 (a check found faults), 2 (wrong input)."""
    parser = argparse.ArgumentParser(
        prog="ssmke-cost",
        description="What training cost: device-hours, energy, dollars, from the runs' ledgers.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add(commands)
    arguments = parser.parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
    except SSMKEError as error:
        complain(f"error: {error}")
        return 2
    except BrokenPipeError:  # `ssmke-cost report | head`
        sys.stderr.close()
        return 0
    except OSError as error:
        complain(f"error: {error.filename or 'standard output'}: {error.strerror or error}")
        sys.stdout = None  # or the interpreter tries again to flush what the disk has refused
        return 2
    except KeyboardInterrupt:
        return 130
    return code
