"""Checkpoints that are whole or absent.

DeepSpeed writes each rank's files into ``checkpoints/step-00001234/``; when all ranks are done, rank 0 digests
every file and writes ``COMPLETE.json`` last. Only a folder with that file, whose digests hold, is ever resumed
from; DeepSpeed's own ``latest`` pointer is not used. A folder without it is what a kill left behind and is
removed by the next save. The state is small because the stream and the schedule are pure functions of the
step: DeepSpeed's weights and optimiser, the target bank, and counters.
"""

from __future__ import annotations

import json
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ssmke.data.atomic import write_json
from ssmke.data.shards import file_sha256
from ssmke.errors import CheckpointError, ConfigError
from ssmke.objectives.gather import rank, world_size
from ssmke.objectives.pretraining import SSMKEPretraining
from ssmke.training.ranks import barrier, on_rank_zero

COMPLETE = "COMPLETE.json"


@dataclass
class CheckpointConfig:
    """When to save and how much to keep."""

    minutes: float = 10.0
    """Save at least this often; 0 turns it off (epochs and SIGTERM still save)."""
    every_epoch: bool = True
    """Save at the end of every epoch."""
    keep: int = 2
    """Newest complete checkpoints that are kept."""

    def __post_init__(self) -> None:
        if self.minutes < 0:
            raise ConfigError(f"--checkpoint.minutes {self.minutes}: must be 0 or more")
        if self.keep < 1:
            raise ConfigError(f"--checkpoint.keep {self.keep}: must be at least 1")


@dataclass(frozen=True)
class Progress:
    """Where a run stands; saved with each checkpoint."""

    step: int
    """Steps done."""
    pairs: int
    """Pairs seen."""
    lineage: str
    """Identity of the run over all its attempts."""
    data: str = ""
    """Digest of the training shards: the order of pairs is a function of them."""


@dataclass(frozen=True)
class CheckpointInfo:
    """A complete checkpoint."""

    path: Path
    progress: Progress
    zero_stage: int
    world_size: int
    files: dict[str, str]


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != COMPLETE)
    with ThreadPoolExecutor(4) as pool:
        return dict(
            zip((str(p.relative_to(folder)) for p in files), pool.map(file_sha256, files), strict=True)
        )


def save(
    engine: Any,
    module: SSMKEPretraining,
    folder: Path,
    progress: Progress,
    config: CheckpointConfig,
    stage: int,
) -> Path:
    """Saves a checkpoint (collective) and removes what exceeds ``keep``; returns its folder.

    Too little space or a folder without write permission is a `CheckpointError` on every rank before anything is
    written; a disk that fills meanwhile, one on the rank that met it. Earlier checkpoints stay as they are.
    """
    path = folder / f"step-{progress.step:08d}"
    _require_space(folder, module)
    try:
        if rank() == 0:
            _remove_from(folder, progress.step)
        barrier()
        state: dict[str, Any] = {"progress": asdict(progress)}
        if module.bank is not None:
            state["bank"] = module.bank.state_dict()
        engine.save_checkpoint(str(folder), tag=path.name, client_state=state, save_latest=False)
    except (OSError, RuntimeError) as failure:
        # torch.save reports a full disk as a RuntimeError of its zip writer. The other ranks may wait in a
        # collective for this one; they end when it does.
        shutil.rmtree(path, ignore_errors=True)
        raise CheckpointError(_unwritable(path, str(failure))) from failure
    if rank() == 0:
        record = {
            "progress": asdict(progress),
            "zero_stage": stage,
            "world_size": world_size(),
            "files": _digests(path),
        }
        write_json(path / COMPLETE, record)
        _prune(folder, config.keep)
    barrier()
    return path


def _remove_from(folder: Path, step: int) -> None:
    """Removes checkpoints of ``step`` and later: of an attempt that this one has gone back before."""
    for path in folder.glob("step-*"):
        if path.name >= f"step-{step:08d}":
            (path / COMPLETE).unlink(missing_ok=True)
            shutil.rmtree(path)


def _prune(folder: Path, keep: int) -> None:
    complete = [path for path in sorted(folder.glob("step-*")) if (path / COMPLETE).exists()]
    for path in sorted(folder.glob("step-*")):
        if path not in complete[-keep:]:
            # The mark goes first, so that a kill in between never leaves a folder that looks complete.
            (path / COMPLETE).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


def newest(folder: Path) -> CheckpointInfo | None:
    """The newest complete and undamaged checkpoint, or None; damaged ones are named in a warning."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        if not (path / COMPLETE).exists():
            continue
        try:
            return read(path)
        except CheckpointError as error:
            warnings.warn(f"{error}; trying the checkpoint before it")
    return None


def read(path: Path) -> CheckpointInfo:
    """Reads and verifies one checkpoint; any difference from what was written is a `CheckpointError`."""
    try:
        record = json.loads((path / COMPLETE).read_text(encoding="utf-8"))
        info = CheckpointInfo(
            path, Progress(**record["progress"]), record["zero_stage"], record["world_size"], record["files"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {path} is not complete ({error})") from None
    have = _digests(path)
    damaged = sorted(name for name in info.files if have.get(name) != info.files[name])
    if damaged:
        raise CheckpointError(f"checkpoint {path} is damaged: {', '.join(damaged[:3])} changed or missing")
    return info


def load(engine: Any, module: SSMKEPretraining, info: CheckpointInfo, stage: int) -> Progress:
    """Restores engine and bank (collective).

    A checkpoint of another world size or ZeRO stage needs DeepSpeed's universal format: `CheckpointError`.
    """
    if (info.world_size, info.zero_stage) != (world_size(), stage):
        raise CheckpointError(
            f"checkpoint {info.path} was written by {info.world_size} ranks with ZeRO-{info.zero_stage}, this run "
            f"has {world_size()} with ZeRO-{stage}: resume with the same, or convert it with DeepSpeed's "
            "ds_to_universal.py first"
        )
    loaded, state = engine.load_checkpoint(str(info.path.parent), tag=info.path.name)
    if loaded is None:
        raise CheckpointError(
            f"DeepSpeed could not load {info.path}: its files do not fit this configuration"
        )
    if module.bank is not None and "bank" in state:
        module.bank.load_state_dict(state["bank"])
    return info.progress


def _require_space(folder: Path, module: SSMKEPretraining) -> None:
    """Checks on rank 0, before any rank writes, that a checkpoint will fit; fails on all ranks alike."""
    problem = on_rank_zero(lambda: _space_problem(folder, module))
    if problem is not None:
        raise CheckpointError(problem)


def _space_problem(folder: Path, module: SSMKEPretraining) -> str | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return _unwritable(folder, str(error))
    # fp32 weights, their fp32 masters and two Adam moments; ZeRO-3 counts a partitioned parameter in ds_numel.
    parameters = sum(int(getattr(p, "ds_numel", p.numel())) for p in module.parameters())
    bank = 0 if module.bank is None else module.bank.rows.numel() * 2
    needed = 16 * parameters + bank
    if free < needed:
        return _unwritable(folder, f"it needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free")
    return None


def _unwritable(path: Path, why: str) -> str:
    return (
        f"checkpoint {path} cannot be written ({why}): free space or choose another --run-dir; earlier "
        "checkpoints are kept, go on with --resume auto"
    )
