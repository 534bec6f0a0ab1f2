"""Trains S-SMKE: parse, build, run.

    deepspeed launchers/pretrain.py --deepspeed_config ds_configs/zero2.json [--recipe NAME] [--field value ...]

Without ``--recipe`` it runs the embedded default, scenes-tiny. ``--help`` lists every field of the recipe.
"""

from __future__ import annotations

import os
import sys

from ssmke.cost.budget import EXIT_CODE, BudgetSpent
from ssmke.errors import ConfigError, SSMKEError
from ssmke.recipes import parse
from ssmke.training.launch import launch


def main() -> int:
    """Returns the exit code: 0 done or stopped with a checkpoint, 2 for an error that the user can mend, 3 when a
    ``--cost.max_*`` budget is used up."""
    rank = os.environ.get("RANK", "0")
    try:
        invocation = parse(sys.argv[1:])
        return launch(invocation, os.environ)
    except SSMKEError as error:
        if rank == "0":
            print(f"error: {error}", file=sys.stderr, flush=True)
        elif not (error.told or isinstance(error, ConfigError)):
            print(f"error on rank {rank}: {error}", file=sys.stderr, flush=True)
        # Not sys.exit: tearing down a process group waits for ranks that may never come.
        os._exit(EXIT_CODE if isinstance(error, BudgetSpent) else 2)


if __name__ == "__main__":
    sys.exit(main())
