"""Saving a checkpoint and going on from one; which of them are whole is `checkpoint_files`' matter.

DeepSpeed writes each rank's files into ``checkpoints/step-00001234/``; when all ranks are done, rank 0 digests
every file and writes ``COMPLETE.json`` last. DeepSpeed's own ``latest`` pointer is not used. The state is small because
the stream and the schedule are pure functions of the step: DeepSpeed's weights and optimiser, the target bank, and
counters. Where ranks, ZeRO stage or the place of the optimiser states are others than those that saved, the checkpoint
is converted on rank 0 and loaded by parameter (`universal`); the folder must be one that all ranks see.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ssmke.errors import CheckpointError, ConfigError
from ssmke.objectives.gather import rank, world_size
from ssmke.objectives.objective import Objective
from ssmke.training import universal
from ssmke.training.checkpoint_files import (
    COMPLETE,
    CheckpointInfo,
    Progress,
    complete,
    newest,
    prune,
    read,
    remove_from,
)
from ssmke.training.ranks import barrier, on_rank_zero
from ssmke.words import counted

__all__ = ["COMPLETE", "CheckpointConfig", "CheckpointInfo", "Progress", "load", "newest", "read", "save"]

_WRITER = re.compile(r"PytorchStreamWriter|file write failed|unexpected pos|inline_container", re.IGNORECASE)


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


def save(
    engine: Any,
    module: Objective,
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
            remove_from(folder, progress.step)
        barrier()
        state: dict[str, Any] = {"progress": asdict(progress)}
        if module.bank is not None:
            state["bank"] = module.bank.state_dict()
        engine.save_checkpoint(str(folder), tag=path.name, client_state=state, save_latest=False)
    except (OSError, RuntimeError) as failure:
        # torch.save reports a full disk as a RuntimeError of its zip writer; others are about memory or a lost rank.
        if isinstance(failure, RuntimeError) and not _WRITER.search(str(failure)):
            raise
        # The other ranks may wait in a collective for this one; they end when it does.
        shutil.rmtree(path, ignore_errors=True)
        raise CheckpointError(_unwritable(path, str(failure))) from failure
    if rank() == 0:
        try:
            complete(
                path, progress, zero_stage=stage, world_size=world_size(), optimizer=_optimizer_name(engine)
            )
        except OSError as failure:
            raise CheckpointError(_unwritable(path, str(failure))) from failure
        prune(folder, config.keep)
    barrier()
    return path


def load(
    engine: Any,
    module: Objective,
    info: CheckpointInfo,
    config: CheckpointConfig,
    stage: int,
    say: Callable[[str], None],
) -> Progress:
    """Restores engine and bank (collective), whatever ranks and ZeRO stage saved them; ``say`` tells of a change.

    What exceeds ``keep`` goes then: the attempt before may have been killed between its last save and that.
    """
    on_rank_zero(lambda: universal.require_plain(info.path))
    on_rank_zero(lambda: shutil.rmtree(_converted(info.path), ignore_errors=True))
    optimizer = _optimizer_name(engine)
    same = (info.world_size, info.zero_stage) == (world_size(), stage) and info.optimizer in (None, optimizer)
    # Without ZeRO in fp32 every rank holds everything, and one file serves any number of them.
    if same or (stage == info.zero_stage == 0 and not list(info.path.glob("*optim_states.pt"))):
        loaded, state = engine.load_checkpoint(str(info.path.parent), tag=info.path.name)
        if loaded is None:
            raise CheckpointError(
                f"DeepSpeed could not load {info.path}: its files do not fit this configuration"
            )
    else:
        state = _load_converted(engine, info, stage, say)
    if module.bank is not None and "bank" in state:
        module.bank.load_state_dict(state["bank"])
    # A newer one that is damaged stays, for whoever wants to look at it.
    on_rank_zero(lambda: prune(info.path.parent, config.keep, info.path))
    return info.progress


def _load_converted(
    engine: Any, info: CheckpointInfo, stage: int, say: Callable[[str], None]
) -> dict[str, Any]:
    change = (
        f"checkpoint {info.path.name} of {counted(info.world_size, 'rank')} with ZeRO-{info.zero_stage} goes on with "
        f"{counted(world_size(), 'rank')} and ZeRO-{stage}"
    )
    zero = engine.optimizer
    if not (info.zero_stage and stage) or not (hasattr(zero, "bit16_groups") or stage == 3):
        raise CheckpointError(
            f"{change}: only ZeRO-1, 2 and 3 can follow each other; go on with the same ranks and stage"
        )
    if engine.zero_nvme_offload_optimizer() or (info.path / "offloaded_tensors").exists():
        raise CheckpointError(f"{change}: not with states on NVMe; go on with the same ranks and stage")
    began = time.monotonic()
    target = _converted(info.path)
    try:
        on_rank_zero(lambda: _convert(info, target))
        state = universal.place(engine, target, stage)
        barrier()
    finally:
        if rank() == 0:
            shutil.rmtree(target, ignore_errors=True)
    say(f"{change}: converted in {time.monotonic() - began:.1f} s")
    return state


def _convert(info: CheckpointInfo, target: Path) -> None:
    needed, free = universal.size_of(info.path), shutil.disk_usage(info.path).free
    if free < needed:
        raise CheckpointError(
            f"{info.path} cannot be converted to other ranks or another stage: that needs {needed / 1e9:.2f} GB beside "
            f"it for the moment, {free / 1e9:.2f} GB are free; free space, or go on with {info.world_size} ranks and "
            f"ZeRO-{info.zero_stage}"
        )
    target.mkdir()
    try:
        universal.convert(info.path, target, info.zero_stage, client=("progress", "bank"))
    except (KeyError, IndexError) as error:
        raise CheckpointError(
            f"{info.path} cannot be converted to other ranks or another stage: {error} is not where this DeepSpeed "
            f"keeps it; go on with {info.world_size} ranks and ZeRO-{info.zero_stage}"
        ) from error


def _converted(path: Path) -> Path:
    """The temporary folder beside a checkpoint; what a kill leaves of it is removed by the next start."""
    return path.with_name(f".{path.name}.converted")


def _optimizer_name(engine: Any) -> str:
    """Class of the optimiser below ZeRO: CPUAdam keeps its states in host memory, and its count as a number."""
    return type(getattr(engine.optimizer, "optimizer", engine.optimizer)).__name__


def _require_space(folder: Path, module: Objective) -> None:
    """Checks on rank 0, before any rank writes, that a checkpoint will fit; fails on all ranks alike."""
    problem = on_rank_zero(lambda: _space_problem(folder, module))
    if problem is not None:
        raise CheckpointError(problem)


def _space_problem(folder: Path, module: Objective) -> str | None:
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
