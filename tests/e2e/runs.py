"""Starting `launchers/pretrain.py` as a user does, and reading what it left."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ZERO2 = ROOT / "ds_configs" / "zero2.json"


@dataclass(frozen=True)
class Run:
    """A finished process and its run folder."""

    output: str
    folder: Path

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    @property
    def losses(self) -> list[float]:
        """The loss of every step."""
        return [line["loss"] for line in self.metrics]


Pretrain = Callable[..., Run]


def start(config: str | Path, ranks: int, flags: list[str]) -> list[str]:
    """The command line of a run on ``ranks`` CPU ranks; without launcher for 0."""
    script = [str(ROOT / "launchers" / "pretrain.py"), "--deepspeed_config", str(config), *flags]
    if ranks == 0:
        return [sys.executable, *script]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = str(Path(sys.executable).parent / "deepspeed")
    return [launcher, "--num_gpus", str(ranks), "--master_port", str(port), *script]


def environment() -> dict[str, str]:
    """The environment with this interpreter's folder first on the PATH (ninja, deepspeed)."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": path, "CUDA_VISIBLE_DEVICES": ""}
