"""The two encoders as ONNX files, compared with torch by onnxruntime before they are kept.

    image.onnx         images uint8 [batch,3,S,S]                                 -> embeddings float32 [batch,D]
    text.onnx          input_ids, attention_mask int64 [batch,length]             -> embeddings float32 [batch,D]
    preprocessing.json how a picture becomes `images` and a text `input_ids`
    tokenizer/         for the `tokenizers` library or transformers

Normalisation of pixels and of embeddings is part of the graphs, so that there is little to get wrong outside of them: a
dot product of two outputs is a cosine. Batch and length are dynamic. Traced by `torch.onnx.export` (dynamo) from the
very modules that train; captions are padded, not packed. An export takes some seconds a file.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmke.data.atomic import write_json
from ssmke.errors import ConfigError, WeightsError
from ssmke.export.output import new_output
from ssmke.export.samples import check_samples
from ssmke.models.student import SSMKE
from ssmke.models.weights import first_line, weights_digest

FORMAT = "ssmke-onnx/1"
IMAGE_FILE, TEXT_FILE = "image.onnx", "text.onnx"
TOLERANCE = 1e-4
"""Largest absolute difference of a coordinate of a unit vector that counts as the same; fp32 gives some 1e-6."""
NEEDS = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Difference:
    """What onnxruntime and torch made of the same input."""

    file: str
    """Name of the ONNX file."""
    samples: str
    """What kind of input."""
    largest: float
    """Largest absolute difference of a coordinate."""


class _Images(nn.Module):
    def __init__(self, model: SSMKE) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.model(images=images)["image.output"].float(), dim=-1)


class _Texts(nn.Module):
    def __init__(self, model: SSMKE) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        outputs = self.model(ids=input_ids, mask=attention_mask.to(torch.bool))
        return F.normalize(outputs["text.output"].float(), dim=-1)


def export_onnx(model: SSMKE, out: Path, card: str, tolerance: float = TOLERANCE) -> list[Difference]:
    """Writes both encoders to the new folder ``out``, if onnxruntime gives what torch gives.

    Raises:
        ConfigError: onnx, onnxscript or onnxruntime is not installed, or ``out`` is not empty.
        WeightsError: this architecture cannot be exported, or the files compute something else: nothing is kept.
    """
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"export to ONNX needs {', '.join(missing)}: pip install 'ssmke[onnx]'")
    if not tolerance > 0:
        raise ConfigError(f"--tolerance {tolerance}: must be more than 0")
    model = model.eval()
    side, longest = model.image_size, model.config.text.max_tokens
    images = torch.zeros(2, 3, side, side, dtype=torch.uint8)
    ids = torch.ones(2, min(7, longest), dtype=torch.int64)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=2, max=longest)
    with new_output(out) as folder:
        _trace(_Images(model), {"images": images}, {"images": {0: batch}}, folder / IMAGE_FILE)
        # Of their own each: one tensor given twice would be traced as one input.
        names = ("input_ids", "attention_mask")
        _trace(
            _Texts(model),
            {name: ids.clone() for name in names},
            {key: {0: batch, 1: length} for key in names},
            folder / TEXT_FILE,
        )
        found = differences(model, folder)
        wrong = max(found, key=lambda difference: difference.largest)
        if not wrong.largest <= tolerance:  # not a number is no match either
            raise WeightsError(
                f"{wrong.file} differs from torch by {wrong.largest:.2g} on {wrong.samples}, more than --tolerance "
                f"{tolerance:g}: nothing was kept"
            )
        write_json(folder / "preprocessing.json", preprocessing(model, found))
        model.tokenizer().save_pretrained(str(folder / "tokenizer"))
        (folder / "README.md").write_text(card, encoding="utf-8")
    return found


def differences(model: SSMKE, folder: Path) -> list[Difference]:
    """What the files in ``folder`` and ``model`` make of `check_samples`, by file and kind of input."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    image, text = (
        onnxruntime.InferenceSession(str(folder / file), options, providers=["CPUExecutionProvider"])
        for file in (IMAGE_FILE, TEXT_FILE)
    )
    found = []
    for samples in check_samples(model):
        (ours,) = image.run(None, {"images": samples.images.numpy()})
        expected = model.encode_image(samples.images)
        found.append(Difference(IMAGE_FILE, samples.kind, _largest(ours, expected)))
        mask = samples.mask.to(torch.int64)
        (ours,) = text.run(None, {"input_ids": samples.ids.numpy(), "attention_mask": mask.numpy()})
        expected = model.encode_text(samples.ids, samples.mask)
        found.append(Difference(TEXT_FILE, samples.kind, _largest(ours, expected)))
    return found


def preprocessing(model: SSMKE, found: list[Difference]) -> dict[str, Any]:
    """All that a program in another language has to know, JSON-able."""
    tokenizer = model.tokenizer()
    return {
        "format": FORMAT,
        "weights_sha256": weights_digest(model),
        "embedding": {
            "dim": model.dim,
            "dtype": "float32",
            "l2_normalised": True,
            "compare_with": "dot product",
        },
        "image": {
            "file": IMAGE_FILE,
            "input": {
                "images": {"dtype": "uint8", "shape": ["batch", 3, model.image_size, model.image_size]}
            },
            "colours": "RGB, 0 to 255; transparency laid on white, EXIF orientation applied",
            "crop": "largest centred square",
            "resize": {
                "side": model.image_size,
                "filter": "bicubic (a = -0.5), antialiased, rounded to uint8",
            },
            "normalisation": {
                "inside_the_graph": True,
                "mean": list(model.image_encoder.mean),
                "std": list(model.image_encoder.std),
            },
        },
        "text": {
            "file": TEXT_FILE,
            "input": {
                name: {"dtype": "int64", "shape": ["batch", "length"]}
                for name in ("input_ids", "attention_mask")
            },
            "tokenizer": "tokenizer/tokenizer.json",
            "max_tokens": model.config.text.max_tokens,
            "pad_token_id": tokenizer.pad_token_id,
            "attention_mask": "1 at real tokens, 0 at padding, padding on the right",
        },
        "largest_difference_from_torch": {
            file: max(d.largest for d in found if d.file == file) for file in (IMAGE_FILE, TEXT_FILE)
        },
    }


def _trace(module: nn.Module, inputs: dict[str, Tensor], shapes: dict[str, Any], file: Path) -> None:
    try:
        with _silence(), torch.no_grad():
            torch.onnx.export(
                module.eval(),
                kwargs=inputs,
                f=str(file),
                input_names=list(inputs),
                output_names=["embeddings"],
                dynamic_shapes=shapes,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except OSError:
        raise
    except Exception as error:  # the exporter's own kinds, and what an operator runs into
        raise WeightsError(
            f"{file.name}: this architecture cannot be exported to ONNX ({type(error).__name__}: {first_line(error)})"
        ) from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The exporter tells of its own workings, on standard output, as warnings and in logs."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)


def _largest(ours: Any, expected: Tensor) -> float:
    return float(np.abs(np.asarray(ours, np.float32) - expected.cpu().numpy()).max())
