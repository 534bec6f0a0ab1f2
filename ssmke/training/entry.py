"""How a launcher begins and ends: signals answered from the first moment, one line for an error, an exit code.

A launcher gives the two things that differ, how its arguments are read and what is run, as a function that imports them
when it is called: that takes seconds, in which signals are to be answered already.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ssmke.errors import ConfigError, SSMKEError
from ssmke.screen import clean, clean_warnings
from ssmke.training import early_signals

if TYPE_CHECKING:
    from ssmke.training.loop import Outcome
    from ssmke.training.ranks import Placement

Prepare = Callable[[Sequence[str]], "Callable[[Placement], Outcome]"]
"""From the arguments of a command line to what is to be run."""


def enter(prepare: Prepare) -> int:
    """Runs what ``prepare`` makes of the command line.

    Returns the exit code: 0 done or stopped with a checkpoint, 2 for an error that the user can mend, 3 when a
    ``--cost.max_*`` budget is used up, 4 when another rank died, hung or failed.
    """
    rank = os.environ.get("RANK", "0")
    early_signals.answer(speaks=rank == "0")
    clean_warnings()
    try:
        run = prepare(sys.argv[1:])
        from ssmke.training.launch import launch

        return launch(run, os.environ)
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


def split_launcher_flags(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The ``--deepspeed_config`` of a launcher's arguments, and those that are its recipe's."""
    launcher = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    launcher.add_argument("--deepspeed_config", "--deepspeed-config", default=None)
    launcher.add_argument("--deepspeed", action="store_true")
    launcher.add_argument("--local_rank", "--local-rank", type=int, default=-1)
    known, rest = launcher.parse_known_args(list(argv))
    return known.deepspeed_config, rest


def required(deepspeed_config: str | None) -> str:
    """The DeepSpeed JSON's path, which every launcher needs."""
    if deepspeed_config is None:
        raise ConfigError(
            "--deepspeed_config is missing: give one of ds_configs/*.json, e.g. ds_configs/zero2.json"
        )
    return deepspeed_config


def check_run(seed: int, log_every: int, evaluate_every: int, stop_after: int | None) -> None:
    """Refuses what no recipe may say of a run, with a `ConfigError` that names the flag."""
    if not 0 <= seed < 1 << 63:
        raise ConfigError(f"--seed {seed}: must lie in 0..2^63-1")
    if log_every < 1:
        raise ConfigError(f"--log-every {log_every}: must be at least 1")
    if evaluate_every < 0:
        raise ConfigError(f"--evaluate-every {evaluate_every}: must be 0 or more")
    if stop_after is not None and stop_after < 1:
        raise ConfigError(f"--stop-after {stop_after}: must be at least 1")
