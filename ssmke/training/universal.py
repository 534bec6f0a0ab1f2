"""A checkpoint goes on with another number of ranks, another ZeRO stage or another place of the optimiser states.

As in DeepSpeed's universal checkpoint, the partitions that the ranks saved are joined to what every parameter has
whatever the partitioning: its fp32 master and its two Adam moments, flat. They lie beside the checkpoint while the run
starts, three safetensors files that each rank reads its own part of, 12 bytes a parameter; what belongs to no parameter
(buffers, frozen parameters, the bank, counters) is a fourth.

The tensors are those of DeepSpeed's own converter (`ds_to_universal`, 0.19.8), bit for bit (tested). Its loader
(``load_universal``) is not used, because as its source stands it loses what this training has: under ZeRO-1 and 2 it
indexes an empty list where a rank holds no part of a group (one temperature on two ranks), under ZeRO-3 it gives every
parameter group the options of the first (decay for all, no temperature left to clamp), a checkpoint of ZeRO-1 or 2
lacks the keys that it reads under ZeRO-3, and buffers and frozen parameters are left out. Nor is the converter: it
unpickles whatever is there, and writes three or four files a parameter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ssmke.errors import CheckpointError
from ssmke.objectives.gather import rank

MASTER, MOMENTS = "fp32", ("exp_avg", "exp_avg_sq")
REST = "rest.pt"
COUNTERS = ("global_steps", "global_samples", "skipped_steps")
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What a dynamic loss scale (fp16) goes on with."""


def size_of(source: Path) -> int:
    """An upper bound of the bytes that `convert` writes: no more than the files that it reads."""
    return sum(path.stat().st_size for path in source.glob("*.pt"))


def require_plain(path: Path) -> None:
    """Refuses files of a checkpoint whose pickle names anything but tensors and DeepSpeed's own records.

    Nothing is unpickled to know that. DeepSpeed loads checkpoints without such a limit.
    """
    known = {f"{kind.__module__}.{kind.__qualname__}" for kind in _records()}
    for file in sorted(path.glob("*.pt")):
        try:
            foreign = set(torch.serialization.get_unsafe_globals_in_checkpoint(file)) - known
        except (OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{file} is no checkpoint of DeepSpeed ({error})") from None
        if foreign:
            raise CheckpointError(
                f"{file} would run {', '.join(sorted(foreign)[:3])} when it is loaded: it was not written by this "
                "program; restore the folder from where it came, or remove it"
            )


def convert(source: Path, target: Path, stage: int, client: tuple[str, ...]) -> None:
    """Writes the checkpoint in ``source``, saved under ZeRO ``stage``, by parameter into the folder ``target``.

    ``client``: names of the states of ours that were saved with it. Holds 4 bytes a parameter at a time.
    """
    models = [_read(path) for path in _of_ranks(source, "model_states")]
    shards = [_read(path)["optimizer_state_dict"] for path in _of_ranks(source, "optim_states")]
    if not models or not shards:
        raise CheckpointError(f"{source} holds no ZeRO partitions: it cannot be converted")
    first = models[0]
    places = [
        _places(shard, first["param_shapes"], number, len(shards), stage)
        for number, shard in enumerate(shards)
    ]
    sizes = {name: math.prod(shape) for group in first["param_shapes"] for name, shape in group.items()}
    for state in (MASTER, *MOMENTS):
        parts: dict[str, list[Tensor]] = {name: [] for name in sizes}
        for shard, here in zip(shards, places, strict=True):
            for name, group, start, length in here:
                parts[name].append(_flat(shard, group, state, stage)[start : start + length])
        whole = {name: torch.cat(pieces) for name, pieces in parts.items() if pieces}
        wrong = sorted(name for name, size in sizes.items() if name not in whole or len(whole[name]) != size)
        if wrong:
            raise CheckpointError(
                f"{source} is not whole: {state} of {', '.join(wrong[:3])} is missing in part"
            )
        save_file({name: value.float() for name, value in whole.items()}, target / f"{state}.safetensors")
    rest = {
        "step": _steps_of(shards, stage),
        "counters": {name: first[name] for name in COUNTERS},
        "scaler": {name: v for name, v in vars(shards[0]["loss_scaler"]).items() if name in SCALER},
        "module": {**_buffers_and_frozen(first, sizes), **(_frozen_of_stage_3(models) if stage == 3 else {})},
        "client": {name: first[name] for name in client if name in first},
    }
    torch.save(rest, target / REST)


@torch.no_grad()
def place(engine: Any, folder: Path, stage: int) -> dict[str, Any]:
    """Gives a new DeepSpeed engine the state in ``folder`` (collective); returns the client's states.

    Options of the parameter groups stay the recipe's.
    """
    rest = torch.load(folder / REST, map_location="cpu", weights_only=True)
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    with ExitStack() as opened:
        states = {
            state: opened.enter_context(safe_open(folder / f"{state}.safetensors", "pt"))
            for state in (MASTER, *MOMENTS)
        }
        trained = {name for parameter, name in names.items() if parameter.requires_grad}
        if trained != set(states[MASTER].keys()):
            other = sorted(trained ^ set(states[MASTER].keys()))
            raise CheckpointError(f"the checkpoint's trained parameters are others: {', '.join(other[:3])}")
        fill = _fill_stage_3 if stage == 3 else _fill_stages_1_and_2
        fill(engine.optimizer, names, states, rest["step"])
    _fill_rest(engine, rest["module"])
    for name, value in rest["counters"].items():
        setattr(engine, name, value)
    for name, value in rest["scaler"].items():
        if hasattr(engine.optimizer.loss_scaler, name):
            setattr(engine.optimizer.loss_scaler, name, value)
    client: dict[str, Any] = rest["client"]
    return client


def _records() -> list[Any]:
    """DeepSpeed's own classes in its checkpoints."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


def _read(path: Path) -> dict[str, Any]:
    with torch.serialization.safe_globals(_records()):
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return content


def _of_ranks(source: Path, kind: str) -> list[Path]:
    """The ranks' files in the order of ranks; of the weights there is one file under ZeRO-1 and 2."""
    found = list(source.glob(f"*mp_rank_00_{kind}.pt"))
    return sorted(
        found, key=lambda path: [int(number) for number in re.findall(r"pp_rank_(\d+)_", path.name)]
    )


def _places(
    shard: dict[str, Any], shapes: list[dict[str, Any]], number: int, ranks: int, stage: int
) -> list[tuple[str, int, int, int]]:
    """(parameter, group, first element within the group's flat tensor, elements) of what a rank holds."""
    if stage < 3:
        return [
            (name, group, at.start, at.numel)
            for group, held in enumerate(shard["param_slice_mappings"])
            for name, at in held.items()
        ]
    found = []
    for group, of_group in enumerate(shapes):
        start = 0
        for name, shape in of_group.items():
            size = math.prod(shape)
            share = math.ceil(size / ranks)
            found.append((name, group, start, max(0, min(share, size - number * share))))
            start += share
    return found


def _flat(shard: dict[str, Any], group: int, state: str, stage: int) -> Tensor:
    if state == MASTER:
        masters = shard["fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"]
        flat: Tensor = masters[group]
    else:
        flat = _adam(shard, stage)[group][state]
    return flat.detach()


def _adam(shard: dict[str, Any], stage: int) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = shard[
        "optimizer_state_dict" if stage == 3 else "base_optimizer_state"
    ]["state"]
    return found


def _steps_of(shards: list[dict[str, Any]], stage: int) -> int:
    steps = {int(held["step"]) for shard in shards for held in _adam(shard, stage).values()}
    if len(steps) != 1:
        raise CheckpointError(f"the optimiser's groups have done {sorted(steps)} steps: they must be equal")
    return steps.pop()


def _buffers_and_frozen(model: dict[str, Any], trained: dict[str, int]) -> dict[str, Tensor]:
    held: dict[str, Tensor] = model["module"]
    buffers = set(model["buffer_names"])
    # Under ZeRO-3 the names of parameters hold empty tensors.
    return {
        name: value.detach().clone()
        for name, value in held.items()
        if name in buffers or (name not in trained and value.numel())
    }


def _frozen_of_stage_3(models: list[dict[str, Any]]) -> dict[str, Tensor]:
    shapes = models[0]["frozen_param_shapes"] or {}
    return {
        name: torch.cat([model["frozen_param_fragments"][name].flatten() for model in models])[
            : math.prod(shape)
        ]
        .reshape(tuple(shape))
        .clone()
        for name, shape in shapes.items()
    }


def _fill_stages_1_and_2(zero: Any, names: dict[Any, str], states: dict[str, Any], step: int) -> None:
    for group, options in zip(zero.bit16_groups, zero.optimizer.param_groups, strict=True):
        (flat,) = options["params"]
        moments = {state: torch.zeros_like(flat) for state in MOMENTS}
        for parameter in group:
            mapping = parameter._hp_mapping
            if mapping is None:  # no part of it lies here
                continue
            here, there = mapping.get_hp_fragment_address(), mapping.lp_fragment_address
            for state, target in {MASTER: flat, **moments}.items():
                piece = states[state].get_slice(names[parameter])[there.start : there.start + there.numel]
                target.narrow(0, here.start, here.numel).copy_(piece)
        zero.optimizer.state[flat] = {"step": _step(zero, flat, step), **moments}
    for parameter, name in names.items():
        if parameter.requires_grad:
            parameter.copy_(states[MASTER].get_tensor(name).view_as(parameter))


def _fill_stage_3(zero: Any, names: dict[Any, str], states: dict[str, Any], step: int) -> None:
    import deepspeed
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    for flat in zero.fp32_partitioned_groups_flat:
        moments = {state: torch.zeros_like(flat) for state in MOMENTS}
        zero.optimizer.state[flat] = {"step": _step(zero, flat, step), **moments}
    for parameter, name in names.items():
        if not parameter.requires_grad:
            continue
        for state in (MASTER, *MOMENTS):
            part = _part(states[state], name, parameter.ds_numel, parameter.ds_tensor.numel())
            if state == MASTER:
                safe_set_local_fp32_param(parameter, part)
            else:
                safe_set_local_optimizer_state(parameter, part, state)
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if rank() == 0:
                parameter.copy_(states[MASTER].get_tensor(name).view_as(parameter))


def _part(file: Any, name: str, size: int, share: int) -> Tensor:
    """This rank's share of a flat tensor under ZeRO-3, padded where it reaches beyond its end."""
    start, end = (min(number * share, size) for number in (rank(), rank() + 1))
    piece: Tensor = file.get_slice(name)[start:end]
    return torch.nn.functional.pad(piece, (0, share - len(piece)))


def _step(zero: Any, flat: Tensor, step: int) -> int | Tensor:
    """The count as the optimiser keeps it: torch's in a tensor, DeepSpeed's as a number."""
    kept_as_tensor = isinstance(zero.optimizer, torch.optim.AdamW)
    return torch.tensor(float(step), device=flat.device) if kept_as_tensor else step


def _fill_rest(engine: Any, held: dict[str, Tensor]) -> None:
    import deepspeed

    for name, tensor in _untrained(engine.module):
        if name not in held:
            raise CheckpointError(f"the checkpoint lacks {name}, which this run has")
        if hasattr(tensor, "ds_id"):
            with deepspeed.zero.GatheredParameters([tensor], modifier_rank=0):
                if rank() == 0:
                    tensor.copy_(held[name])
        else:
            tensor.copy_(held[name])


def _untrained(module: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Frozen parameters, and the buffers that are saved."""
    yield from ((name, p) for name, p in module.named_parameters() if not p.requires_grad)
    for prefix, part in module.named_modules():
        for name, buffer in part.named_buffers(prefix=prefix, recurse=False):
            if name.rpartition(".")[2] not in part._non_persistent_buffers_set:
                yield name, buffer
