"""The checkpoint of a finetuning run: the last finished epoch, as safetensors with a JSON beside it.

The tensors are written first, under a name that has the epoch in it; the JSON that names them is put in place
atomically and makes them count; older tensors go last. So an interruption, at any moment, costs at most the epoch that
was running. The optimiser's moments (twice the size of the model) are dropped after the last epoch. Nothing is
unpickled.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ssmke import foreign_json
from ssmke.data.atomic import make_folder, write_error, write_json
from ssmke.differences import differences
from ssmke.errors import CheckpointError, WeightsError
from ssmke.models.weights import load_exactly

FORMAT = "ssmke-finetune/1"
STATE = "state.json"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def save_epoch(
    folder: Path,
    identity: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    history: list[dict[str, Any]],
) -> None:
    """Writes the state after epoch ``len(history)``; without ``optimizer`` it can be read, not gone on from.

    Raises:
        DataError: the folder cannot be written to.
    """
    make_folder(folder)
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if optimizer is not None:
        for name, parameter in _named(optimizer):
            for moment, value in optimizer.state[parameter].items():
                tensors[f"{moment}.{name}"] = value
    file = folder / f"epoch-{len(history)}.safetensors"
    temporary = file.with_name(f".{file.name}.partial")
    try:
        # Cloned, as tied tensors share memory, which the format refuses.
        save_file({name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}, temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(file)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise write_error(file, error if isinstance(error, OSError) else OSError(str(error))) from error
    write_json(
        folder / STATE, {"format": FORMAT, "identity": identity, "file": file.name, "history": history}
    )
    for other in folder.glob("epoch-*.safetensors"):
        if other != file:
            other.unlink(missing_ok=True)


def load_epoch(
    folder: Path, identity: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
) -> list[dict[str, Any]]:
    """Fills ``model`` and ``optimizer`` with the folder's checkpoint; gives its history, empty where there is none.

    Raises:
        CheckpointError: it is damaged, or of a run with another ``identity``.
    """
    try:
        state = foreign_json.loads((folder / STATE).read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder / STATE} cannot be read ({error}): delete {folder} and start again"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / STATE} is not of format {FORMAT}: choose another --work, or delete it"
        )
    _same_run(folder, state.get("identity"), identity)
    history, name = state.get("history"), state.get("file")
    if not isinstance(history, list) or not history or name != f"epoch-{len(history)}.safetensors":
        raise CheckpointError(f"{folder / STATE} is incomplete: delete {folder} and start again")
    try:
        tensors = load_file(folder / name)
        weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        load_exactly(model, weights, source=str(folder / name))
        _load_moments(optimizer, tensors)
    except (OSError, SafetensorError, WeightsError, ValueError) as error:
        raise CheckpointError(
            f"{folder / name} cannot be used ({error}): delete {folder} and start again"
        ) from None
    return history


def _same_run(folder: Path, found: Any, identity: dict[str, Any]) -> None:
    differing = differences(found if isinstance(found, dict) else {}, identity)
    if not differing:
        return
    shown = ", ".join(f"{name} {there!r}, now {here!r}" for name, there, here in differing[:3])
    raise CheckpointError(
        f"{folder} is of another run ({shown}): choose another --work, or delete this folder"
    )


def _named(optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
    return [
        (name, parameter)
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    ]


def _load_moments(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Fills AdamW's moments; a parameter that never had a gradient has none, and so has a finished run."""
    for name, parameter in _named(optimizer):
        found = {moment: tensors[key] for moment in _MOMENTS if (key := f"{moment}.{name}") in tensors}
        if not found:
            continue
        if len(found) != len(_MOMENTS) or any(
            found[moment].shape != parameter.shape for moment in ("exp_avg", "exp_avg_sq")
        ):
            raise ValueError(f"the optimiser's state of {name} is incomplete or of another shape")
        optimizer.state[parameter] = {moment: value.to(parameter.device) for moment, value in found.items()}
