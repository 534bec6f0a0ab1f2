"""What is finetuned: an image or text encoder, alone or with the shared encoder behind it, as features for a head.

`--model` names it:

- a folder of a trained ssmke model: `--part encoder` takes the encoder alone, `--part full` the shared encoder too;
- a folder of an image encoder alone, as `launchers/distill_image.py` leaves it;
- `timm:NAME` (images), `transformers:FOLDER` (texts): a peer, with `--weights`. A peer has no shared encoder.

Everything is unfrozen: what a run had frozen is finetuned all the same, as the published comparisons do. Only what the
features depend on is kept, so a checkpoint of an image suite has no text half in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from ssmke import foreign_json
from ssmke.errors import ConfigError
from ssmke.evaluation.finetune.config import Part, Pool
from ssmke.evaluation.finetune.layer_decay import encoder_distances
from ssmke.models.image_encoders import ImageEncoder, ImageEncoderConfig, build_image_encoder
from ssmke.models.pooling import pool_tokens
from ssmke.models.student import SSMKE
from ssmke.models.text_encoders import TextEncoder, TextEncoderConfig, build_text_encoder
from ssmke.training.unimodal.encoder_folder import FORMAT as IMAGE_ENCODER
from ssmke.training.unimodal.encoder_folder import load_image_encoder


class SharedPath(nn.Module):
    """What follows an encoder in `SSMKE`: projection, modality vector and shared encoder, for one modality."""

    def __init__(self, model: SSMKE, modality: Literal["image", "text"]) -> None:
        super().__init__()
        self.pool = model.config.pool
        self.projection = getattr(model, f"{modality}_projection")
        self.modality = model.modality
        self.shared = model.shared
        self.dim = model.dim
        self._name = modality

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """[CLS] [B, D] of the shared encoder's output for an encoder's tokens [B, N, E]."""
        tokens = self.projection(pool_tokens(tokens, mask, self.pool))  # [B, N, D]
        if self.modality is not None:
            tokens = self.modality(tokens, self._name)
        output: Tensor = self.shared(tokens, mask if self.pool == "none" else None)["output"]
        return output


class ImageFeatures(nn.Module):
    """Normalised images [B, 3, S, S] -> features [B, dim]."""

    def __init__(self, encoder: ImageEncoder, shared: SharedPath | None, pool: Pool = "mean") -> None:
        super().__init__()
        encoder.frozen = False
        self.encoder = encoder
        self.shared = shared
        self.dim = encoder.dim if shared is None else shared.dim
        self._pool = pool
        self.requires_grad_(True)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.encoder(images)  # [B, N, E]
        if self.shared is not None:
            return self.shared(tokens, None)
        if self._pool == "cls":
            return tokens[:, 0]
        rows, columns = self.encoder.grid
        return tokens[:, -rows * columns :].mean(1)

    def distances(self, above: int, prefix: str) -> dict[str, int]:
        """See `layer_decay`; ``above``: layers that follow the features."""
        return _distances(self, above, prefix)


class TextFeatures(nn.Module):
    """Token ids [B, L], mask and types -> features [B, dim] at the [CLS]."""

    def __init__(self, encoder: TextEncoder, shared: SharedPath | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.shared = shared
        self.dim = encoder.dim if shared is None else shared.dim
        self.requires_grad_(True)
        self.typed = getattr(encoder.backbone.config, "type_vocab_size", 0) >= 2
        """Whether the encoder tells a pair's first sentence from its second by a vector."""

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        """``ids``, ``types`` int64 [B, L]; ``mask`` bool [B, L], true at real tokens."""
        # The backbone and not `TextEncoder`: captions are one sentence, so that has no place for types.
        extra = {"token_type_ids": types} if self.typed else {}
        tokens = self.encoder.backbone(
            input_ids=ids, attention_mask=mask[:, None, None, :], **extra
        ).last_hidden_state  # [B, L, E]
        return tokens[:, 0] if self.shared is None else self.shared(tokens, mask)

    def positions(self) -> int:
        """Longest sequence that the encoder has positions for."""
        config: Any = self.encoder.backbone.config
        limit = int(config.max_position_embeddings)
        # RoBERTa's family counts positions from behind the padding id.
        behind = config.model_type in ("roberta", "xlm-roberta", "camembert")
        return limit - int(config.pad_token_id) - 1 if behind else limit

    def distances(self, above: int, prefix: str) -> dict[str, int]:
        """See `layer_decay`; ``above``: layers that follow the features."""
        return _distances(self, above, prefix)


def _distances(features: ImageFeatures | TextFeatures, above: int, prefix: str) -> dict[str, int]:
    found = {}
    if features.shared is not None:
        found = {f"{prefix}shared.{name}": above for name, _ in features.shared.named_parameters()}
        above += 1
    return found | encoder_distances(features.encoder, above, f"{prefix}encoder.")


def load_image_features(
    model: str, part: Part, pool: Pool, weights: str = "hub", image_size: int | None = None
) -> ImageFeatures:
    """The image side that ``model`` names (see the module).

    Raises:
        ConfigError: a peer with ``part`` full, or one that cannot be built.
        WeightsError: the weights are missing or do not fit.
    """
    library, colon, name = model.partition(":")
    if colon and library == "timm":
        _refuse_full(model, part)
        config = ImageEncoderConfig(name, depth=None, weights=weights, image_size=image_size)
        return ImageFeatures(build_image_encoder(config, flag="--model"), None, pool)
    if colon and library in ("transformers", "open_clip"):
        raise ConfigError(f"--model {model}: peers of image suites are timm:NAME")
    if image_size is not None:
        raise ConfigError("--image-size goes with timm:NAME only; a trained model keeps its own size")
    if _is_image_encoder(Path(model)):
        _refuse_full(model, part)
        return ImageFeatures(load_image_encoder(model), None, pool)
    student = SSMKE.from_pretrained(model)
    shared = SharedPath(student, "image") if part == "full" else None
    return ImageFeatures(student.image_encoder, shared, pool)


def load_text_features(model: str, part: Part) -> tuple[TextFeatures, TextEncoderConfig]:
    """The text side that ``model`` names (see the module), and what `load_tokenizer` takes.

    Raises:
        ConfigError: a peer with ``part`` full, or one that cannot be built.
        WeightsError: the weights are missing or do not fit.
    """
    library, colon, name = model.partition(":")
    if colon and library == "transformers":
        _refuse_full(model, part)
        if not Path(name).expanduser().is_dir():
            raise ConfigError(
                f"--model {model}: no such folder; give the folder of a downloaded transformers model"
            )
        config = TextEncoderConfig(name, depth=None, weights=name, max_tokens=3)
        return TextFeatures(build_text_encoder(config), None), config
    if colon and library in ("timm", "open_clip"):
        raise ConfigError(f"--model {model}: peers of text suites are transformers:FOLDER")
    student = SSMKE.from_pretrained(model)
    shared = SharedPath(student, "text") if part == "full" else None
    return TextFeatures(student.text_encoder, shared), student.config.text


def load_pair_features(model: str) -> tuple[ImageFeatures, TextFeatures, TextEncoderConfig]:
    """Both sides of one trained model, through its one shared encoder.

    Raises:
        ConfigError: a peer: encoders of two models have no space in common.
        WeightsError: no trained model is there.
    """
    if model.partition(":")[0] in ("timm", "transformers", "open_clip") and ":" in model:
        raise ConfigError(f"--model {model}: this suite takes the folder of a trained model")
    student = SSMKE.from_pretrained(model)
    images = ImageFeatures(student.image_encoder, SharedPath(student, "image"))
    texts = TextFeatures(student.text_encoder, SharedPath(student, "text"))
    return images, texts, student.config.text


def _is_image_encoder(folder: Path) -> bool:
    try:
        config = foreign_json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return False  # what is wrong with it is told by who reads it
    return isinstance(config, dict) and config.get("format") == IMAGE_ENCODER


def _refuse_full(model: str, part: Part) -> None:
    if part == "full":
        raise ConfigError(f"--part full: {model} has no shared encoder; give --part encoder")


def set_drop_path(encoder: ImageEncoder, rate: float) -> bool:
    """Stochastic depth that rises linearly to ``rate`` at the top block; False where the encoder has none."""
    blocks = getattr(encoder.backbone, "blocks", None)
    if not isinstance(blocks, (nn.Sequential, nn.ModuleList)):
        return False
    if not all(hasattr(block, "drop_path1") and hasattr(block, "drop_path2") for block in blocks):
        return False
    for block, p in zip(blocks, torch.linspace(0, rate, len(blocks)).tolist(), strict=True):
        for name in ("drop_path1", "drop_path2"):
            setattr(block, name, (DropPath(p) if p else nn.Identity()).train(block.training))
    return True
