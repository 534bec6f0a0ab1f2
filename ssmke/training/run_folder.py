"""The run folder: one place that holds all that a rerun needs.

runs/<recipe>/<time>/
    recipe.json        the resolved recipe       metrics.jsonl   every step's losses, rate, batch digest
    deepspeed.json     the resolved JSON         checkpoints/    complete or absent (`training.checkpoint`)
    lineage.json       identity over attempts    cost/           the usage ledger
    model/             final weights             results.json    retrieval, throughput, cost
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssmke.data.atomic import make_folder, write_json
from ssmke.differences import differences
from ssmke.errors import CheckpointError, ConfigError
from ssmke.training.ranks import on_rank_zero

VOLATILE = ("run_dir", "resume", "stop_after", "log_every", "cost", "tracking", "checkpoint", "data.stream")
"""Parts of a recipe that may differ between the attempts of one run."""


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
    """Chooses, on rank 0, the folder to go on in or a new one, and tells all ranks (collective)."""
    return on_rank_zero(lambda: _choose(recipe))


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
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return _create(base / f"{stamp}-{secrets.token_hex(2)}", recipe)


def _create(path: Path, recipe: dict[str, Any]) -> RunFolder:
    make_folder(path)
    lineage = secrets.token_hex(8)
    write_json(path / "recipe.json", recipe)
    write_json(path / "lineage.json", {"lineage": lineage})
    return RunFolder(path.resolve(), lineage, _attempt(), resumed=False)


def _go_on(path: Path) -> RunFolder:
    try:
        lineage = json.loads((path / "lineage.json").read_text(encoding="utf-8"))["lineage"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path / 'lineage.json'} is damaged ({error}): start a new run") from None
    return RunFolder(path.resolve(), lineage, _attempt(), resumed=True)


def _attempt() -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def compare(recipe: dict[str, Any], path: Path) -> list[str]:
    """Differences between ``recipe`` and that of the run in ``path``, without what may change."""
    try:
        saved = json.loads((path / "recipe.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return [f"recipe.json cannot be read ({error})"]
    return [
        f"{name} is {there!r} there, {here!r} here"
        for name, there, here in differences(saved, recipe)
        if not any(name == part or name.startswith(f"{part}.") for part in VOLATILE)
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
        except (ValueError, KeyError):
            continue
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(b"".join(kept))
    temporary.replace(path)
