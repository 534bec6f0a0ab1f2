"""`launchers/pretrain.py` with every step drawn out to PACE_SECONDS, and short moments by DWELL_SECONDS.

Everything else is the launcher's own: the machine that this runs on may be twice as fast in one minute as in
the next, and a comparison of useful seconds needs steps that do not depend on it. The moments (after each shard of
the target cache, between DeepSpeed's files and COMPLETE.json, between that and the pruning) take milliseconds in a
tiny run, too few to be hit by a signal from outside; in a large run they take as long as here.
"""

from __future__ import annotations

import os
import runpy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssmke.training import early_signals

LAUNCHER = Path(__file__).resolve().parents[1] / "launchers" / "pretrain.py"
PACE_S = float(os.environ["PACE_SECONDS"])
DWELL_S = float(os.environ.get("DWELL_SECONDS", "0"))


def paced(step: Callable[..., Any]) -> Callable[..., Any]:
    """The step, and a sleep up to the pace."""

    def late(*arguments: Any) -> Any:
        due = time.monotonic() + PACE_S
        done = step(*arguments)
        time.sleep(max(0.0, due - time.monotonic()))
        return done

    return late


def dwelling(function: Callable[..., Any]) -> Callable[..., Any]:
    """A sleep, and the function."""

    def late(*arguments: Any, **named: Any) -> Any:
        time.sleep(DWELL_S)
        return function(*arguments, **named)

    return late


def main() -> None:
    early_signals.answer(
        speaks=os.environ.get("RANK", "0") == "0"
    )  # as the launcher does, before what takes seconds
    from ssmke.targets import build
    from ssmke.training import checkpoint
    from ssmke.training.engine import Engine

    Engine.step = paced(Engine.step)  # type: ignore[method-assign]
    if DWELL_S:
        build._build_shard = dwelling(build._build_shard)
        checkpoint.complete = dwelling(checkpoint.complete)
        checkpoint.prune = dwelling(checkpoint.prune)
    runpy.run_path(str(LAUNCHER), run_name="__main__")


if __name__ == "__main__":
    main()
