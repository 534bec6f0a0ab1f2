"""`launchers/pretrain.py` with every step drawn out to PACE_SECONDS, so that the seconds of two runs can be compared.

Everything else is the launcher's own: the machine that this runs on may be twice as fast in one minute as in
the next, and a comparison of useful seconds needs steps that do not depend on it.
"""

from __future__ import annotations

import os
import runpy
import time
from pathlib import Path
from typing import Any

from ssmke.training.engine import Engine

LAUNCHER = Path(__file__).resolve().parents[1] / "launchers" / "pretrain.py"
PACE_S = float(os.environ["PACE_SECONDS"])
_step = Engine.step


def paced(self: Engine, *arguments: Any) -> Any:
    """The step, and a sleep up to the pace."""
    due = time.monotonic() + PACE_S
    done = _step(self, *arguments)
    time.sleep(max(0.0, due - time.monotonic()))
    return done


if __name__ == "__main__":
    Engine.step = paced  # type: ignore[assignment,method-assign]
    runpy.run_path(str(LAUNCHER), run_name="__main__")
