"""`launchers/pretrain.py` that may map only 8 MB more in its steps, on the rank that LIMITED_RANK names."""

from __future__ import annotations

import os
import resource
import runpy
from pathlib import Path
from typing import Any

from ssmke.training.engine import Engine

LAUNCHER = Path(__file__).resolve().parents[2] / "launchers" / "pretrain.py"
_step = Engine.step


def limited(self: Engine, *arguments: Any) -> Any:
    """The step, with hardly any memory left."""
    if os.environ.get("RANK", "0") == os.environ["LIMITED_RANK"]:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + (8 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    try:
        return _step(self, *arguments)
    finally:
        # What follows (the ledger's end, the message) is to be seen here, and not how little Python needs.
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


if __name__ == "__main__":
    Engine.step = limited  # type: ignore[method-assign]
    runpy.run_path(str(LAUNCHER), run_name="__main__")
