"""Trains S-SMKE: parse, build, run.

    deepspeed launchers/pretrain.py --deepspeed_config ds_configs/zero2.json [--recipe NAME] [--field value ...]

Without ``--recipe`` it runs the embedded default, scenes-tiny. ``--help`` lists every field of the recipe.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback

from ssmke.errors import ConfigError, SSMKEError
from ssmke.screen import clean, clean_warnings
from ssmke.training import early_signals


def main() -> int:
    """Returns the exit code: 0 done or stopped with a checkpoint, 2 for an error that the user can mend, 3 when a
    ``--cost.max_*`` budget is used up, 4 when another rank died, hung or failed."""
    rank = os.environ.get("RANK", "0")
    early_signals.answer(speaks=rank == "0")
    # Only now: this takes seconds, in which signals are to be answered already.
    from ssmke.recipes import parse
    from ssmke.training.launch import launch

    clean_warnings()
    try:
        invocation = parse(sys.argv[1:])
        return launch(invocation, os.environ)
    except SSMKEError as error:
        if rank == "0":
            print(f"error: {clean(str(error))}", file=sys.stderr, flush=True)
        elif not (error.told or isinstance(error, ConfigError)):
            print(f"error on rank {rank}: {clean(str(error))}", file=sys.stderr, flush=True)
        # Not sys.exit: tearing down a process group waits for ranks that may never come.
        os._exit(error.exit_code)
    except Exception:
        traceback.print_exc()
        os._exit(1)
    except KeyboardInterrupt:  # the second Ctrl-C of a run that was finishing its step
        early_signals.end(signal.SIGINT, speaks=rank == "0")


if __name__ == "__main__":
    sys.exit(main())
