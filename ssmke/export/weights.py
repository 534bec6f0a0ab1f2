"""A model folder to share: weights in the chosen precision, tokenizer, card. safetensors only.

`SSMKE.from_pretrained` reads it from disk or, uploaded with `hf upload OWNER/NAME DIR`, by name. It always computes in
fp32 after loading; fp16 and bf16 halve the file. What the rounding does to the embeddings is measured and returned.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ssmke.errors import WeightsError
from ssmke.export.card import precision_section
from ssmke.export.output import new_output
from ssmke.export.samples import check_samples
from ssmke.models.student import SSMKE

Precision = Literal["fp32", "fp16", "bf16"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def export_weights(model: SSMKE, out: Path, precision: Precision, card: str) -> float:
    """Writes ``model`` and its ``card``, with what rounding does, to the new folder ``out``.

    Returns:
        The largest absolute difference between a coordinate of an embedding of ``model`` and of the written one.

    Raises:
        WeightsError: a weight is too large for ``precision``.
        ConfigError, DataError: ``out`` is not empty, or cannot be written.
    """
    state = {name: _rounded(name, tensor, precision) for name, tensor in model.state_dict().items()}
    with new_output(out) as folder:
        model.save_pretrained(folder, state)
        difference = largest_difference(model, SSMKE.from_pretrained(folder))
        if precision != "fp32":
            card += precision_section(precision, difference)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return difference


def largest_difference(model: SSMKE, other: SSMKE) -> float:
    """The largest absolute difference of a coordinate between the embeddings of two models, on `check_samples`."""
    found = 0.0
    for samples in check_samples(model):
        image = model.encode_image(samples.images) - other.encode_image(samples.images)
        text = model.encode_text(samples.ids, samples.mask) - other.encode_text(samples.ids, samples.mask)
        found = max(found, float(image.abs().max()), float(text.abs().max()))
    return found


def _rounded(name: str, tensor: Tensor, precision: Precision) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    rounded = tensor.to(DTYPES[precision])
    if not bool(torch.isfinite(rounded).all()):
        raise WeightsError(
            f"{name} has values that {precision} cannot hold (largest {float(tensor.abs().max()):g}): use --precision "
            "bf16 or fp32"
        )
    return rounded
