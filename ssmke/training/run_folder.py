"""The run folder: one place that holds all that a rerun needs.

runs/<recipe>/<time>/
    recipe.json        the resolved recipe       metrics.jsonl   every step's losses, rate, batch digest
    deepspeed.json     the resolved JSON         checkpoints/    complete or absent (`training.checkpoint`)
    lineage.json       identity over attempts    cost/           the usage ledger
    model/             final weights             results.json    retrieval, throughput, cost
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ssmke import foreign_json
from ssmke.data.atomic import make_folder, write_json
from ssmke.differences import differences
from ssmke.errors import CheckpointError, ConfigError
from ssmke.objectives.gather import rank
from ssmke.training.ranks import on_all_ranks, on_rank_zero

_APPEARS_S = 60.0
"""So long, by default, may a network file system say that what it did not see before is still not there."""

VOLATILE = (
    *(
        "run_dir",
        "resume",
        "stop_after",
        "log_every",
        "cost",
        "tracking",
        "checkpoint",
        "data.remote",
        "compute",
        "faults",
    ),
    *("data.stream.workers", "data.stream.prefetch", "data.stream.max_bad"),
)
"""Parts of a recipe that may differ between the attempts of one run."""

_STAMP = "%Y%m%d-%H%M%S"
_STAMPED = f"{'[0-9]' * 8}-{'[0-9]' * 6}-*"

ADDED: dict[str, Any] = {
    "data.curriculum.image_size": None,
    "data.curriculum.patch_drop": 0.0,
    "data.curriculum.share": 0.8,
    "init": None,
    "loss.pairing": "softmax",
    "model.image.freeze_blocks": 0,
    "model.pool": "none",
    "model.text.freeze_layers": 0,
    "model.text.frozen": False,
    "targets.frozen_text": False,
}
"""Fields that recipes of earlier versions lack, with the value that means what those did."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run and whether it goes on."""

    path: Path
    lineage: str
    attempt: str
    resumed: bool

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """Folder of the final weights."""
        return self.path / "model"

    @property
    def metrics(self) -> Path:
        """One JSON line per step."""
        return self.path / "metrics.jsonl"


def open_run(recipe: dict[str, Any]) -> RunFolder:
    """Chooses, on rank 0, the folder to go on in or a new one, and tells all ranks (collective).

    Raises:
        ConfigError: a node does not see it: its part of checkpoints and ledger would be lost to the others.
    """
    run = on_rank_zero(lambda: _choose(recipe))
    on_all_ranks(lambda: _require_shared(run))
    return run


def _require_shared(run: RunFolder) -> None:
    given_up = time.monotonic() + _APPEARS_S
    while rank() > 0:
        try:
            if json.loads((run.path / "lineage.json").read_bytes())["lineage"] == run.lineage:
                return
        except (OSError, ValueError, KeyError, TypeError):
            pass  # network file systems show a new file to other nodes a moment later
        with contextlib.suppress(OSError):
            os.listdir(run.path.parent)  # noqa: PTH208 - asks the server again
        if time.monotonic() > given_up:
            raise ConfigError(
                f"the run folder {run.path} that rank 0 made is not there: all nodes must see one and the same; choose "
                "a folder on a shared file system with --runs-dir or --run-dir"
            )
        time.sleep(0.2)


def _choose(recipe: dict[str, Any]) -> RunFolder:
    resume, run_dir, base = recipe["resume"], recipe["run_dir"], Path(recipe["runs_dir"]) / recipe["name"]
    if resume not in ("auto", "none"):
        path = Path(resume)
        if not (path / "recipe.json").exists():
            raise ConfigError(
                f"--resume {resume}: not a run folder (it has no recipe.json); or use --resume auto"
            )
        differences = compare(recipe, path)
        if differences:
            raise ConfigError(
                f"--resume {resume}: that run has another recipe ({'; '.join(differences[:5])}): "
                "resume with its flags"
            )
        return _go_on(path)
    if run_dir is not None:
        path = Path(run_dir)
        if not (path / "recipe.json").exists():
            return _create(path, recipe)
        if resume == "none":
            raise ConfigError(
                f"--run-dir {run_dir} already holds a run: add --resume auto to go on, or choose another folder"
            )
        differences = compare(recipe, path)
        if differences:
            raise ConfigError(
                f"--run-dir {run_dir} holds a run of another recipe: {'; '.join(differences[:5])}"
            )
        return _go_on(path)
    if resume == "auto":
        for path in sorted(base.glob("*/recipe.json"), reverse=True):
            if not (path.parent / "results.json").exists() and not compare(recipe, path.parent):
                return _go_on(path.parent)
    return _create(base / f"{_next_stamp(base)}-{secrets.token_hex(2)}", recipe)


def _next_stamp(base: Path) -> str:
    """The time, or a second after the newest folder's where the clock went back: names are in order of making."""
    stamp = time.strftime(_STAMP)
    newest = max((path.name[: len(stamp)] for path in base.glob(_STAMPED)), default="")
    if newest < stamp:
        return stamp
    try:
        return (datetime.strptime(newest, _STAMP) + timedelta(seconds=1)).strftime(_STAMP)
    except (ValueError, OverflowError):
        return stamp  # somebody's own folder


def _create(path: Path, recipe: dict[str, Any]) -> RunFolder:
    make_folder(path)
    lineage = secrets.token_hex(8)
    _identify(path, recipe, lineage)
    return RunFolder(path.resolve(), lineage, _attempt(), resumed=False)


def keep_identity(run: RunFolder, recipe: dict[str, Any], say: Callable[[str], None]) -> None:
    """Before a checkpoint, on rank 0: a folder that somebody deleted meanwhile becomes one to go on from again."""
    if not (run.path / "recipe.json").exists() or not (run.path / "lineage.json").exists():
        say(f"{run.path} was deleted during the run: it is made again, with what is saved from now on")
        make_folder(run.path)
        _identify(run.path, recipe, run.lineage)


def _identify(path: Path, recipe: dict[str, Any], lineage: str) -> None:
    write_json(path / "recipe.json", recipe)
    write_json(path / "lineage.json", {"lineage": lineage})


def _go_on(path: Path) -> RunFolder:
    try:
        lineage = foreign_json.loads((path / "lineage.json").read_text(encoding="utf-8"))["lineage"]
        if not isinstance(lineage, str):
            raise ValueError("it is no text")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / 'lineage.json'} is damaged ({error}): start a new run") from None
    return RunFolder(path.resolve(), lineage, _attempt(), resumed=True)


def _attempt() -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def compare(recipe: dict[str, Any], path: Path) -> list[str]:
    """Differences between ``recipe`` and that of the run in ``path``, without what may change."""
    try:
        saved = foreign_json.loads((path / "recipe.json").read_text(encoding="utf-8"))
        if not isinstance(saved, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        return [f"recipe.json cannot be read ({error})"]
    return [
        f"{name} is {there!r} there, {here!r} here"
        for name, there, here in differences(saved, recipe)
        if not any(name == part or name.startswith(f"{part}.") for part in VOLATILE)
        and not (there is None and name in ADDED and here == ADDED[name])
    ]


def truncate_metrics(path: Path, step: int) -> None:
    """Drops lines of steps that a resumed run does again, and a torn last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            if line.endswith(b"\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(b"".join(kept))
    temporary.replace(path)
