"""Trains S-SMKE: parse, build, run.

    deepspeed launchers/pretrain.py --deepspeed_config ds_configs/zero2.json [--recipe NAME] [--field value ...]

Without ``--recipe`` it runs the embedded default, scenes-tiny. ``--help`` lists every field of the recipe.
"""

from __future__ import annotations

import os
import sys

from ssmke.errors import SSMKEError
from ssmke.recipes import parse
from ssmke.training.launch import launch


def main() -> int:
    """Returns the exit code: 0 done or stopped with a checkpoint, 2 for an error that the user can mend."""
    try:
        invocation = parse(sys.argv[1:])
        launch(invocation, os.environ)
    except SSMKEError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
