"""Model folders: written whole or not at all, read without trusting them, fetched from the hub by name.

    config.json          the architecture of both halves and of the shared encoder
    model.safetensors    every tensor; never a pickle
    tokenizer/           the tokenizer of the text half

A folder needs no network. A config may ask for any size, so nothing is allocated before the shapes that it asks for
are those of the file. Of a hub repository only these files are fetched, whatever else it holds, and no code of it is
ever run. A name whose first part is a folder here is a mistyped path, not a name on the hub.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ssmke import foreign_json
from ssmke.differences import flatten
from ssmke.errors import SSMKEError, WeightsError
from ssmke.models.image_encoders import ImageEncoderConfig
from ssmke.models.shared import SharedConfig
from ssmke.models.student import SSMKE, StudentConfig
from ssmke.models.text_encoders import TextEncoderConfig
from ssmke.models.weights import first_line

FORMAT = "ssmke-student/1"
FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
    "tokenizer/vocab.txt",
)
"""All that is fetched of a hub repository; the last two only older tokenizers have."""

HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?", re.ASCII)


def save(model: SSMKE, target: Path, state: dict[str, Tensor] | None = None) -> None:
    """Writes ``model`` to the folder ``target``, in the place of a model that was there; ``state`` replaces its own
    tensors. The old one goes last: a kill at any moment leaves one of them whole, if need be under a hidden
    name beside ``target`` (but for the current folder, which is filled file by file).

    Raises:
        WeightsError: ``target`` holds something that is no model folder, or the file system refused.
    """
    try:
        target = target.resolve()  # "." has no name of its own
        _refuse_other_content(target)
        folder = target.with_name(f".{target.name}.partial")
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_into(model, folder, model.state_dict() if state is None else state)
            _put(folder, target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"the model cannot be written to {target} ({error}): free space, or choose another"
        ) from error


def _refuse_other_content(target: Path) -> None:
    """WeightsError if ``target`` is there and neither empty nor a model folder: saving would delete what it holds."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    try:
        saved = foreign_json.loads((target / "config.json").read_bytes())
    except (OSError, ValueError):
        saved = None
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise WeightsError(
            f"{target} is there already and is no ssmke model folder: it would be lost; choose a new folder"
        )


def _put(folder: Path, target: Path) -> None:
    """Moves ``folder`` to ``target``; what was there is deleted once the new one is in its place."""
    if target.is_dir() and target.samefile("."):  # stays: the user's shell and program stand in it
        for part in folder.iterdir():
            if (target / part.name).is_dir():
                shutil.rmtree(target / part.name)
            part.replace(target / part.name)
        return
    old = target.with_name(f".{target.name}.replaced")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)  # of a save that was killed after the new one was in place
        target.replace(old)
    try:
        folder.replace(target)
    except OSError:
        if old.exists():
            old.replace(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_into(model: SSMKE, folder: Path, state: dict[str, Tensor]) -> None:
    """The files of a model folder, into one that is there: for callers that make it whole themselves."""
    save_file({name: value.contiguous().cpu() for name, value in state.items()}, folder / "model.safetensors")
    model.tokenizer().save_pretrained(str(folder / "tokenizer"))
    config = dataclasses.asdict(model.config)
    config["image"]["weights"] = "none"
    config["text"] |= {
        "weights": "none",
        "architecture": model.text_encoder.architecture(),
        "tokenizer": "tokenizer",
    }
    text = json.dumps({"format": FORMAT, "student": config}, indent=2, sort_keys=True)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def load(source: str | Path) -> SSMKE:
    """The model in the folder ``source``, or of that name on the hub; in evaluation mode, fp32, on the CPU.

    Raises:
        WeightsError: naming what is missing or damaged, or why the hub did not give it.
    """
    if isinstance(source, str) and (name := hub_name(source)) is not None:
        return _load_folder(download(*name))
    return _load_folder(Path(source))


def hub_name(source: str) -> tuple[str, str | None] | None:
    """Repository and revision of OWNER/NAME[@REVISION]; None for a path: what is here, or its parent is."""
    named = HUB_NAME.fullmatch(source)
    if named is None or Path(source).exists() or Path(source).parent.exists():
        return None
    return named[1], named[2]


def download(repository: str, revision: str | None = None) -> Path:
    """Fetches a model folder from the Hugging Face hub, or finds it in its cache; gives the folder.

    Raises:
        WeightsError: no network and not in the cache, no such repository or revision, or it holds no such model.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    shown = repository if revision is None else f"{repository}@{revision}"
    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=list(FILES)))
    except GatedRepoError:
        raise WeightsError(
            f"{shown}: the hub asks you to accept its terms first: do so on its page, then `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise WeightsError(
            f"{shown} is neither a folder here nor a repository on the hub that you may read (a private one needs "
            "`hf auth login`)"
        ) from None
    except RevisionNotFoundError:
        raise WeightsError(f"{repository} on the hub has no revision {revision}") from None
    except LocalEntryNotFoundError:
        raise WeightsError(
            f"{shown} is no folder here, and the hub cannot be reached to look for it there: give the folder of a "
            "trained model (RUN/model), or try again with a network"
        ) from None
    except Exception as error:  # the client lets through whatever its network back end raises
        raise WeightsError(
            f"{shown} is no folder here and cannot be fetched from the hub ({first_line(error)})"
        ) from error
    missing = [name for name in FILES[:4] if not (folder / name).is_file()]
    if missing:
        raise WeightsError(
            f"{shown} on the hub is no ssmke model: it has no {', '.join(missing)}; for models of others use "
            "transformers: or open_clip: in front of the name where a command takes a --model"
        )
    return folder


def _load_folder(folder: Path) -> SSMKE:
    try:
        saved = foreign_json.loads((folder / "config.json").read_bytes())
    except FileNotFoundError:
        raise WeightsError(
            f"{folder} has no config.json: give the folder of a trained model "
            "(RUN/model, which training writes at its end)"
        ) from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder / 'config.json'} is not JSON ({error}): copy the model again") from None
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise WeightsError(f"{folder / 'config.json'} is not of format {FORMAT}: not an ssmke model folder")
    try:
        state = load_file(folder / "model.safetensors")
    except Exception as error:
        raise WeightsError(
            f"{folder / 'model.safetensors'} cannot be read ({error}): copy the model again"
        ) from None
    try:
        config = _student_config(saved["student"], folder)
        _refuse_other_layers(saved["student"], len(state))
        # A config may ask for any size: nothing is allocated before its shapes are those of the file.
        with torch.device("meta"):
            _match(SSMKE(config, quiet=True), state)
        model = SSMKE(config, quiet=True)
        model.load_state_dict(state)
    except SSMKEError:
        raise
    except Exception as error:  # a value of another kind fails wherever it is first used
        raise WeightsError(
            f"{folder}: no model can be made of its config.json and model.safetensors ({type(error).__name__}: "
            f"{first_line(error)}): copy the model again"
        ) from error
    return model.eval()


def _match(skeleton: nn.Module, state: Mapping[str, Tensor]) -> None:
    own = {name: tensor.shape for name, tensor in skeleton.state_dict().items()}
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unexpected:
        raise ValueError(f"missing {missing[:5]}, unexpected {unexpected[:5]}")
    for name, shape in own.items():
        if state[name].shape != shape:
            raise ValueError(f"{name} is {tuple(state[name].shape)}, not {tuple(shape)}")


def _refuse_other_layers(saved: Any, tensors: int) -> None:
    """ValueError for a number of layers that the file has no tensors for: even empty ones would take for ever."""
    for name, value in flatten(saved).items():
        layers = "depth" in name or "layers" in name
        if layers and isinstance(value, int) and value > tensors:
            raise ValueError(f"{name} is {str(value)[:20]}, and there are {tensors} tensors")


def _student_config(saved: dict[str, Any], folder: Path) -> StudentConfig:
    for part in ("image", "text"):
        if saved[part]["weights"] != "none":
            raise ValueError(f"{part}.weights must be none")
    text = {**saved["text"], "tokenizer": str(folder / saved["text"]["tokenizer"])}
    return StudentConfig(
        **{
            **saved,
            "image": ImageEncoderConfig(**saved["image"]),
            "text": TextEncoderConfig(**text),
            "shared": SharedConfig(**saved["shared"]),
        }
    )
