"""From the layouts in which pretrained models were published to the names our encoders use.

Each published file was saved by its own training code, so beside the encoder it holds what only that training
needed: decoders, prediction heads, a second copy of the weights. The converters below keep what computes the
tokens and say about every other tensor why it is not needed; `ssmke.models.weights.load_exactly` then checks
that the two halves add up. Conversion only renames, except for one case:

- BEiT v2 after self-supervised pretraining has ONE relative position table, added in every block
  (``rel_pos_bias.relative_position_bias_table``). timm's BEiT has one table per block. Copying the shared
  table into every block computes the same function; if such a model is trained, the copies part ways, as they
  do in the official finetuning code. The price is 8,784 numbers per block.

Layouts, as their authors' code writes them:

- ``beit``: ``{"model": {...}}``, by microsoft/unilm, beit2: ``beitv2_base_patch16_224_pt1k.pth`` and the
  finetuned files.
- ``data2vec2``: ``{"model": {...}, "cfg": ...}``, by facebookresearch/fairseq: ``base_imagenet.pt``.
- ``dino``: ``{"student": ..., "teacher": ..., "optimizer": ...}``, by facebookresearch/dino: its full
  checkpoints.
- ``timm``: everything that has timm's names already, such as DINO's ``dino_vitbase16_pretrain.pth``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ssmke.errors import WeightsError

URLS = {
    "beitv2_base_patch16_224": (
        "https://github.com/addf400/files/releases/download/BEiT-v2/beitv2_base_patch16_224_pt1k.pth"
    ),
    "data2vec2_base": "https://dl.fbaipublicfiles.com/fairseq/data2vec2/base_imagenet.pt",
}
"""Self-supervised weights that are on no model hub. ``weights="hub"`` of these names means these files."""

_CONTAINERS = ("model", "module", "state_dict")
_SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"
_D2V2_IMAGE = "modality_encoders.IMAGE."


@dataclass(frozen=True)
class Official:
    """A published file in our names."""

    layout: str
    """Which layout was recognised: beit, data2vec2, dino or timm."""
    state: dict[str, Tensor]
    """Tensors under our names."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Key in the file -> why the encoder does not need it."""


def image_weights(weights: Mapping[str, Tensor], depth: int | None = None) -> Official:
    """Recognise the layout of an image model's file and convert it.

    Args:
        weights: all tensors of the file, as `ssmke.models.weights.read_weights` returns them.
        depth: blocks that the encoder keeps. None: all.
    """
    if any(key.startswith(("teacher.backbone.", "teacher.module.backbone.")) for key in weights):
        converted = _dino(weights)
    else:
        state, dropped = _unwrap(weights)
        if any(key.startswith(_D2V2_IMAGE) for key in state):
            converted = _data2vec2(state)
        elif _SHARED_TABLE in state or any(key.endswith(".attn.q_bias") for key in state):
            converted = _beit(state)
        else:
            converted = Official("timm", state)
        converted = replace(converted, dropped={**dropped, **converted.dropped})
    if depth is not None:
        converted = drop(converted, blocks_beyond(converted.state, depth))
    if _SHARED_TABLE in converted.state:
        converted = replace(converted, state=_with_table_per_block(converted.state))
    return converted


def _unwrap(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    state, dropped, path = dict(weights), {}, ""
    while container := next((c for c in _CONTAINERS if any(k.startswith(f"{c}.") for k in state)), None):
        inner = {
            k.removeprefix(f"{container}."): t for k, t in state.items() if k.startswith(f"{container}.")
        }
        reason = f"outside the checkpoint's '{path}{container}'"
        dropped.update({f"{path}{k}": reason for k in state if not k.startswith(f"{container}.")})
        state, path = inner, f"{path}{container}."
    return state, dropped


def _dino(weights: Mapping[str, Tensor]) -> Official:
    state: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    for key, tensor in weights.items():
        name = re.sub(r"^teacher\.(module\.)?", "", key)
        if key.startswith("teacher.") and name.startswith("backbone."):
            state[name.removeprefix("backbone.")] = tensor
        elif key.startswith("teacher."):
            dropped[key] = "projection head of DINO's pretraining"
        elif key.startswith("student."):
            dropped[key] = "DINO's student (its teacher, the moving average, is the published model)"
        else:
            dropped[key] = "optimiser or loss state"
    return Official("dino", state, dropped)


_BEIT_DROPPED = {
    r"(.*\.)?relative_position_index$": "index recomputed from the grid",
    r"mask_token$": "mask token, no patch is masked here",
    r"(lm_head|cls_pt_lm_head)\.": "prediction head of masked image modelling",
    r"(cls_pt_layers|cls_pt_norm)\.": "extra layers of [CLS] pretraining",
}


def _beit(state: Mapping[str, Tensor]) -> Official:
    return drop(Official("beit", dict(state)), _BEIT_DROPPED)


def _with_table_per_block(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    expanded = dict(state)
    shared = expanded.pop(_SHARED_TABLE)
    for block in sorted({key.split(".")[1] for key in expanded if key.startswith("blocks.")}):
        name = f"blocks.{block}.attn.relative_position_bias_table"
        own = expanded.get(name)
        expanded[name] = shared if own is None else own + shared  # the official attention adds both
    return expanded


_D2V2_DROPPED = {
    r"_ema\.": "moving average of pretraining (the published results use the model itself)",
    r"modality_encoders\.IMAGE\.decoder\.": "decoder of pretraining",
    r"(shared_decoder|recon_proj)\.": "decoder of pretraining",
    r"modality_encoders\.IMAGE\.encoder_mask$": "mask of pretraining",
    r"modality_encoders\.(AUDIO|TEXT)\.": "encoder of another modality",
}
_D2V2_NAMES = {
    "extra_tokens": "cls_token",
    "local_encoder.proj.weight": "patch_embed.weight",
    "local_encoder.proj.bias": "patch_embed.bias",
    "fixed_positional_encoder.positions": "positions",
    "context_encoder.norm.weight": "norm.weight",
    "context_encoder.norm.bias": "norm.bias",
}


def _data2vec2(state: Mapping[str, Tensor]) -> Official:
    """Blocks are counted through: those of the context encoder, if any, come before those at the top.

    The published base model has all 12 at the top; fairseq's present configuration puts the first 2 into the
    context encoder.
    """
    prenet = f"{_D2V2_IMAGE}context_encoder.blocks."
    first = 1 + max(
        (int(k.removeprefix(prenet).split(".")[0]) for k in state if k.startswith(prenet)), default=-1
    )
    needed = drop(Official("data2vec2", dict(state)), _D2V2_DROPPED)
    renamed: dict[str, Tensor] = {}
    for key, tensor in needed.state.items():
        if key.startswith(prenet):
            renamed[f"blocks.{key.removeprefix(prenet)}"] = tensor
        elif key.startswith("blocks."):
            _, number, rest = key.split(".", 2)
            renamed[f"blocks.{int(number) + first}.{rest}"] = tensor
        else:
            renamed[_D2V2_NAMES.get(key.removeprefix(_D2V2_IMAGE), key)] = tensor
    return replace(needed, state=renamed)


_TEXT_DROPPED = {
    r"(cls|lm_head|vocab_transform|vocab_layer_norm|vocab_projector)\.": "head of language-model pretraining",
    r"(classifier|pre_classifier|qa_outputs)\.": "classification head",
    r"pooler\.": "pooler, the tokens themselves are used",
    r"embeddings\.(position_ids|token_type_ids)$": "index recomputed",
}


def text_weights(weights: Mapping[str, Tensor], prefix: str) -> Official:
    """Convert a BERT-like file of transformers: with or without its prefix, with a head or without.

    Files from before 2019 (``bert-base-uncased`` is one) name the LayerNorm parameters ``gamma`` and
    ``beta``.

    Args:
        weights: all tensors of the file.
        prefix: what the architecture's heads call the encoder (``bert``, ``distilbert``, ``roberta``).
    """
    state, outside = _unwrap(weights)
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = key.removeprefix(f"{prefix}.")
        name = re.sub(r"(LayerNorm|layer_norm)\.gamma$", r"\1.weight", name)
        renamed[re.sub(r"(LayerNorm|layer_norm)\.beta$", r"\1.bias", name)] = tensor
    return drop(Official("transformers", renamed, outside), _TEXT_DROPPED)


def drop(official: Official, reasons: Mapping[str, str]) -> Official:
    """Take further tensors out of a converted file.

    Args:
        official: the converted file.
        reasons: regular expression, matched at the start of our names -> reason.
    """
    kept: dict[str, Tensor] = {}
    dropped = dict(official.dropped)
    for key, tensor in official.state.items():
        reason = next((reason for pattern, reason in reasons.items() if re.match(pattern, key)), None)
        if reason:
            dropped[key] = reason
        else:
            kept[key] = tensor
    return replace(official, state=kept, dropped=dropped)


def blocks_beyond(
    state: Mapping[str, Tensor], depth: int, pattern: str = r"blocks\.(\d+)\."
) -> dict[str, str]:
    """Reasons, for `drop`, for the blocks that a model cut to ``depth`` blocks does not have."""
    numbers = {int(match.group(1)) for key in state if (match := re.match(pattern, key))}
    literal = pattern.replace(r"(\d+)", "{}")
    return {literal.format(n): f"of blocks beyond the first {depth}" for n in sorted(numbers) if n >= depth}


def download(name: str) -> Path:
    """Fetch the official file behind ``name`` into torch's hub cache, once.

    Raises:
        WeightsError: the file is not in the cache and cannot be fetched.
    """
    url = URLS[name]
    target = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(target), progress=True)
        except OSError as error:
            raise WeightsError(
                f"{name}: cannot download {url} ({error}); fetch it where there is a network and give its "
                "path as weights, or use weights 'none' to start from random ones"
            ) from error
    return target
