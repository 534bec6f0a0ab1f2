"""A folder with an image encoder alone: what image distillation gives.

    config.json         {"format": "ssmke-image-encoder/1", "image": {...}}: the fields of `ImageEncoderConfig`
    model.safetensors   fp32, timm's names; for data2vec 2.0, which timm does not have, those of its published file

``--model.image.weights FOLDER`` (or the file) loads it in pretraining, with the same ``--model.image.name`` and
``.depth``; `load_image_encoder` does without being told either.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ssmke import foreign_json
from ssmke.errors import SSMKEError, WeightsError
from ssmke.models.image_encoders import DATA2VEC2, ImageEncoder, ImageEncoderConfig, build_image_encoder

FORMAT = "ssmke-image-encoder/1"
_BACKBONE = "backbone."
_D2V2 = {
    "cls_token": "extra_tokens",
    "patch_embed.weight": "local_encoder.proj.weight",
    "patch_embed.bias": "local_encoder.proj.bias",
    "positions": "fixed_positional_encoder.positions",
    "norm.weight": "context_encoder.norm.weight",
    "norm.bias": "context_encoder.norm.bias",
}


def save_image_encoder(folder: Path, config: ImageEncoderConfig, state: dict[str, Tensor]) -> None:
    """Writes the folder; ``state``: weights of an `ImageEncoder` of ``config``, under its names."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {name.removeprefix(_BACKBONE): value.contiguous() for name, value in state.items()}
    if config.name == DATA2VEC2:
        named = {
            f"modality_encoders.IMAGE.{_D2V2[name]}" if name in _D2V2 else name: value
            for name, value in named.items()
        }
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    image = dataclasses.asdict(dataclasses.replace(config, weights="none", frozen=False, freeze_blocks=0))
    text = json.dumps({"format": FORMAT, "image": image}, indent=2, sort_keys=True)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def load_image_encoder(folder: str | Path) -> ImageEncoder:
    """The encoder of a folder that `save_image_encoder` wrote.

    Raises:
        WeightsError: it is none, or damaged.
    """
    folder = Path(folder)
    try:
        saved = foreign_json.loads((folder / "config.json").read_bytes())
        if saved.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        config = ImageEncoderConfig(**(saved["image"] | {"weights": str(folder)}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SSMKEError) as error:
        raise WeightsError(
            f"{folder} is no folder of an image encoder ({type(error).__name__}: {error}): give RUN/model of a run of "
            "distill_image.py"
        ) from None
    return build_image_encoder(config)
