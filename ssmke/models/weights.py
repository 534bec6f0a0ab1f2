"""Reading weights that others made, and loading them without losing or inventing a single tensor.

Two rules, both because of failures that stay invisible until the evaluation table is wrong:

- Nothing is unpickled. ``.safetensors`` files hold tensors only; ``.pt``/``.pth``/``.bin`` go through torch's
  restricted unpickler (``weights_only=True``), to which we add one data-only class, ``argparse.Namespace``,
  because DINO and BEiT checkpoints keep their command line beside the weights. A file that holds more than
  that is refused, and the message gives the one-line conversion for a user who trusts the file.
- Loading is exact. Every tensor of the file is either loaded or dropped for a stated reason, and every
  parameter and buffer of the module is filled by the file; anything else is an error that names the keys.
  ``load_state_dict(strict=False)`` is what we replace.

Cost: one pass over the tensors for the finiteness check (about 0.1 s for 86M parameters); files are memory-
mapped where their format permits, so that the parts that are dropped are never read.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ssmke.errors import WeightsError

_PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")
_MOST_NODES, _DEEPEST = 2_000_000, 60
_AGAIN = "download it again"
_FOLDER_CANDIDATES = ("model.safetensors", "pytorch_model.bin")


class UntrainedWeightsWarning(UserWarning):
    """A model that is meant to be pretrained starts from random weights."""


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor of a weights file. ``str(report)`` is one line for the log."""

    source: str
    """Where the weights came from: a path, a hub name, or "none" for random ones."""
    loaded: int
    """Tensors copied into the module."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    """Key in the file -> why it was not needed."""

    def __str__(self) -> str:
        if self.loaded == 0:
            return f"{self.source}: no weights loaded, every parameter is random"
        line = f"{self.source}: {self.loaded} tensors loaded"
        if not self.dropped:
            return f"{line}, none dropped"
        reasons = Counter(self.dropped.values())
        return (
            f"{line}, {len(self.dropped)} dropped (" + "; ".join(f"{n} {r}" for r, n in reasons.items()) + ")"
        )


def resolve_path(weights: str | Path) -> Path:
    """The file or folder that a ``weights`` setting names.

    ``package:<file>`` is a file that ships with ssmke (in ``ssmke/assets``); anything else is a path.

    Raises:
        WeightsError: nothing is there.
    """
    text = str(weights)
    if text.startswith("package:"):
        path = Path(str(resources.files("ssmke") / "assets" / text.removeprefix("package:")))
        if not path.exists():
            shipped = sorted(p.name for p in path.parent.glob("*")) if path.parent.is_dir() else []
            raise WeightsError(f"{text}: ssmke ships no such file; it has: {', '.join(shipped) or 'none'}")
        return path
    path = Path(text).expanduser()
    if not path.exists():
        raise WeightsError(
            f"{text}: no such weights file or folder; give a path, 'package:<file>', 'hub' or 'none'"
        )
    return path


def weights_file(path: str | Path) -> Path:
    """The weights file itself: ``path``, or the one inside it when it is a model folder.

    Raises:
        WeightsError: the folder holds no weights file, or only one that is split over several files.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    for name in _FOLDER_CANDIDATES:
        if (path / name).is_file():
            return path / name
    if any(path.glob("*.index.json")):
        raise WeightsError(
            f"{path}: weights split over several files are not read; save them as one model.safetensors"
        )
    raise WeightsError(f"{path}: the folder has none of {', '.join(_FOLDER_CANDIDATES)}")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a weights file, on the CPU, under their full names.

    Nested dictionaries are joined with dots (``{"model": {"norm.bias": t}}`` gives ``model.norm.bias``), so
    that nothing that a checkpoint holds is lost before someone has decided about it. What is not a tensor
    (epoch, command line) is no weight and is left out.

    Args:
        path: a safetensors file, a torch file, or a folder with ``model.safetensors`` or
            ``pytorch_model.bin``.

    Raises:
        WeightsError: missing, damaged, of an unknown format, without tensors, or it would have to be
            unpickled.
    """
    file = weights_file(resolve_path(path))
    if file.suffix == ".safetensors":
        try:
            tensors = safetensors.torch.load_file(file)
        except (safetensors.SafetensorError, OSError) as error:
            raise WeightsError(
                f"{file}: not a complete safetensors file ({error}); download it again"
            ) from error
    elif file.suffix in _PICKLE_SUFFIXES:
        tensors = dict(_tensors_in(_torch_load(file), file))
    else:
        known = ", ".join((".safetensors", *_PICKLE_SUFFIXES))
        raise WeightsError(f"{file}: unknown kind of weights file; its name must end with one of {known}")
    if not tensors:
        raise WeightsError(f"{file}: the file holds no tensors")
    return tensors


def _torch_load(file: Path) -> object:
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            try:
                return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                # Files of torch < 1.6 are no zip archives and cannot be mapped.
                if "mmap can only be used" not in str(error):
                    raise
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if "weights_only" not in str(error):
                raise WeightsError(f"{file}: not a torch file ({error}); download it again") from error
            raise WeightsError(_refused(file, error)) from error
        except Exception as error:  # whatever damaged bytes make torch's unpickler run into
            raise WeightsError(
                f"{file}: damaged or cut short ({first_line(error)}); download it again"
            ) from error


def _refused(file: Path, error: Exception) -> str:
    target = file.with_suffix(".safetensors")
    # Quoted twice, for Python and for the shell: the file's name may have come with the file.
    code = (
        f"import torch, safetensors.torch as s; c = torch.load({str(file)!r}, map_location='cpu', weights_only=False); "
        "c = c.get('model', c.get('state_dict', c)); s.save_file({k: v.detach().clone().contiguous() for k, v in "
        f"c.items() if torch.is_tensor(v)}}, {str(target)!r})"
    )
    return (
        f"{file}: beside tensors the file holds Python objects, and reading those runs code from the file, "
        f"which ssmke never does ({first_line(error)}). If you trust where the file comes from, convert it "
        f"once, where the packages that it was written with are installed, and give {target.name} instead:\n"
        f"  python -c {shlex.quote(code)}"
    )


def first_line(error: Exception) -> str:
    """The first line of a foreign error, short enough to quote in one of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _tensors_in(root: object, file: Path) -> Iterable[tuple[str, Tensor]]:
    """In their order. A pickle may hold itself, or one list so often that there is no end to it."""
    waiting: list[tuple[str, object]] = [("", root)]
    for _ in range(_MOST_NODES):
        if not waiting:
            return
        prefix, node = waiting.pop()
        if isinstance(node, Tensor):
            yield prefix.removesuffix("."), node.detach()
        elif isinstance(node, (Mapping, list, tuple)):
            if prefix.count(".") > _DEEPEST:
                raise WeightsError(f"{file}: dictionaries nested {_DEEPEST} deep are no weights; {_AGAIN}")
            inner = node.items() if isinstance(node, Mapping) else enumerate(node)
            waiting.extend(reversed([(f"{prefix}{key}.", child) for key, child in inner]))
    raise WeightsError(f"{file}: more than {_MOST_NODES:,} values are no weights; {_AGAIN}")


def load_exactly(
    module: nn.Module, state: Mapping[str, Tensor], *, source: str, dropped: Mapping[str, str] | None = None
) -> LoadReport:
    """Copy ``state`` into ``module`` and account for every tensor on both sides.

    Args:
        module: receives the weights in its own dtype and device.
        state: tensors under the module's own names.
        source: what to call the weights in messages, usually the file.
        dropped: key -> reason, for tensors of the file that the module has no place for. A key that is still
            in ``state`` is skipped; one that is not is only reported.

    Returns:
        The account, for the log.

    Raises:
        WeightsError: a tensor has no place and no reason to be dropped, a parameter or buffer is not filled,
            a shape differs, a value is not finite, or the module is partitioned by ZeRO-3. The module is
            unchanged.
    """
    dropped = dict(dropped or {})
    own = module.state_dict(keep_vars=True)
    partitioned = [key for key, tensor in own.items() if hasattr(tensor, "ds_id")]
    if partitioned:
        raise WeightsError(
            f"{source}: {partitioned[0]} is already partitioned by ZeRO-3 and empty on this rank; build the "
            "model outside deepspeed.zero.Init (deepspeed.initialize partitions it afterwards)"
        )
    given = {key: tensor for key, tensor in state.items() if key not in dropped}
    problems = []
    if missing := [key for key in own if key not in given]:
        problems.append(f"the file lacks {_some(missing)}")
    if unexpected := [key for key in given if key not in own]:
        problems.append(f"the model has no place for {_some(unexpected)}")
    shapes = [
        f"{key} (file {tuple(given[key].shape)}, model {tuple(tensor.shape)})"
        for key, tensor in own.items()
        if key in given and given[key].shape != tensor.shape
    ]
    if shapes:
        problems.append(f"different shapes: {_some(shapes)}")
    if not problems:
        broken = [k for k, t in given.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
        if broken:
            problems.append(f"not a number or infinite: {_some(broken)}")
    if problems:
        raise WeightsError(f"{source} does not fit {type(module).__name__}: " + "; ".join(problems))
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(given[key])
    return LoadReport(source=source, loaded=len(given), dropped=dropped)


def _some(items: list[str], limit: int = 6) -> str:
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def weights_digest(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """sha256 over the sorted (name, dtype, shape, bytes) of every parameter and persistent buffer.

    Two models share a digest exactly when they compute with the same numbers under the same names, wherever
    they were loaded from. About 1 s for 86M fp32 parameters.
    """
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
