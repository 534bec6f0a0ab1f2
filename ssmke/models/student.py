r"""The S-SMKE student: two pretrained unimodal halves, one shared encoder, one embedding space.

    image [B,3,H,W] -> image encoder -> tokens \
                                                + modality embedding -> shared encoder -> [CLS] -> L2 norm
    caption [B,L]   -> text encoder  -> tokens /                                             \\-> prediction head

The base recipe has 117.2M parameters: image half 43.2M, text half 66.4M, shared block 7.1M, prediction head
0.6M, modality embedding 2,304. There is no dropout and no drop path anywhere: a step is a pure function of
its batch and the weights, which is what makes resumed, accumulated and cached runs comparable bit by bit.

`SSMKE.forward` returns what the losses need; `encode_image` and `encode_text` what a user needs.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ssmke import foreign_json
from ssmke.differences import flatten
from ssmke.errors import SSMKEError, WeightsError
from ssmke.models.image_encoders import ImageEncoderConfig, build_image_encoder
from ssmke.models.pixels import normalise_pixels
from ssmke.models.shared import LayerScale, SharedConfig, build_shared
from ssmke.models.text_encoders import TextEncoderConfig, build_text_encoder, load_tokenizer
from ssmke.models.weights import first_line

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerBase

Outputs = dict[str, Tensor]
"""Student outputs by "<modality>.<level>": "image.output", "text.hidden", "image.prediction", ..."""

FORMAT = "ssmke-student/1"


@dataclass
class StudentConfig:
    """Architecture of the student and where its unimodal halves come from."""

    image: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    """The image encoder."""
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    """The text encoder."""
    shared: SharedConfig = field(default_factory=SharedConfig)
    """The shared encoder."""
    modality_embedding: bool = True
    """Add a learned vector per modality to every token after its encoder."""
    modality_scale: float = 1e-5
    """Initial LayerScale of the modality embedding (unscaled costs about 0.8 points of recall)."""
    prediction_dim: int | None = None
    """Width of the prediction head: the teacher's. None: filled in from the teacher; no teacher, no head."""


class ModalityEmbedding(nn.Module):
    """One learned vector per modality, scaled per channel, added to every token."""

    def __init__(self, dim: int, scale: float) -> None:
        super().__init__()
        self.image = nn.Parameter(torch.empty(dim).normal_(std=0.02))
        self.text = nn.Parameter(torch.empty(dim).normal_(std=0.02))
        self.scale = LayerScale(dim, scale)

    def forward(self, tokens: Tensor, modality: str) -> Tensor:
        vector = self.image if modality == "image" else self.text
        return tokens + self.scale(vector)


def _projection(encoder_dim: int, dim: int) -> nn.Module:
    if encoder_dim == dim:
        return nn.Identity()
    return nn.Sequential(nn.LayerNorm(encoder_dim, eps=1e-6), nn.Linear(encoder_dim, dim))


class SSMKE(nn.Module):
    """Image and text encoder halves, shared encoder, prediction head."""

    def __init__(self, config: StudentConfig, *, quiet: bool = False) -> None:
        super().__init__()
        self.config = config
        dim = config.shared.dim
        self.image_encoder = build_image_encoder(config.image, quiet=quiet)
        self.text_encoder = build_text_encoder(config.text, quiet=quiet)
        self.image_projection = _projection(self.image_encoder.dim, dim)
        self.text_projection = _projection(self.text_encoder.dim, dim)
        self.modality = ModalityEmbedding(dim, config.modality_scale) if config.modality_embedding else None
        self.shared = build_shared(config.shared)
        self.prediction = (
            nn.Sequential(nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, config.prediction_dim))
            if config.prediction_dim
            else None
        )

    @property
    def dim(self) -> int:
        """Width of the embedding."""
        return self.config.shared.dim

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.image_encoder.image_size

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels that the contrast can use, "output" first."""
        return self.shared.levels

    @property
    def dtype(self) -> torch.dtype:
        """Dtype that the student computes in: that of its shared encoder."""
        return next(self.shared.parameters()).dtype

    def forward(
        self,
        images: Tensor | None = None,
        ids: Tensor | None = None,
        mask: Tensor | None = None,
        packing: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Outputs:
        """``images`` uint8 [B,3,H,W], or the image encoder's own tokens [B,N*D] (floating point);
        ``ids`` int64 and ``mask`` bool [B,L]; ``packing`` int64 [R,W]: compute the captions in packed rows;
        ``kept`` int64 [B,K]: see only these patches. Either modality may be absent."""
        outputs: Outputs = {}
        if images is not None:
            tokens = self.image_projection(self._image_tokens(images, kept))  # [B, N, D]
            outputs |= self._shared_levels(tokens, None, "image")
        if ids is not None:
            assert mask is not None
            tokens = self.text_projection(self.text_encoder(ids, mask, packing))  # [B, L, D]
            outputs |= self._shared_levels(tokens, mask, "text")
        return outputs

    def _shared_levels(self, tokens: Tensor, mask: Tensor | None, modality: str) -> Outputs:
        if self.modality is not None:
            tokens = self.modality(tokens, modality)
        outputs = {f"{modality}.{level}": value for level, value in self.shared(tokens, mask).items()}
        if self.prediction is not None:
            outputs[f"{modality}.prediction"] = self.prediction(outputs[f"{modality}.output"])
        return outputs

    def _image_tokens(self, images: Tensor, kept: Tensor | None) -> Tensor:
        encoder = self.image_encoder
        if images.is_floating_point():
            return images.view(images.shape[0], -1, encoder.dim).to(self.dtype)
        pixels = normalise_pixels(images, encoder.mean, encoder.std).to(self.dtype)
        tokens: Tensor = encoder(pixels, kept)
        return tokens

    @torch.no_grad()
    def encode_image(self, images: Tensor | Sequence[Image]) -> Tensor:
        """Embeddings [B, D], L2-normalised fp32, of uint8 crops [B,3,S,S] or of PIL images of any size."""
        if not isinstance(images, Tensor):
            from ssmke.data.augmentation import canonical_box, render

            crops = [
                render(np.array(image), canonical_box(*image.size), False, self.image_size)
                for image in images
            ]
            images = torch.from_numpy(np.stack(crops))
        device = next(self.parameters()).device
        return F.normalize(self(images=images.to(device))["image.output"].float(), dim=-1)

    @torch.no_grad()
    def encode_text(self, ids: Tensor | Sequence[str], mask: Tensor | None = None) -> Tensor:
        """Embeddings [B, D], L2-normalised fp32, of token ids with their mask, or of captions."""
        if not isinstance(ids, Tensor):
            from ssmke.data.tokens import tokenize

            ids, mask = tokenize(self.tokenizer(), ids, self.config.text.max_tokens)
        assert mask is not None
        device = next(self.parameters()).device
        return F.normalize(self(ids=ids.to(device), mask=mask.to(device))["text.output"].float(), dim=-1)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the text encoder."""
        return load_tokenizer(self.config.text)

    def parameter_table(self) -> dict[str, int]:
        """Number of parameters by part, and "total"."""
        parts = {name: sum(p.numel() for p in part.parameters()) for name, part in self.named_children()}
        return {**parts, "total": sum(parts.values())}

    def save_pretrained(self, folder: str | Path, state: dict[str, Tensor] | None = None) -> None:
        """Writes config.json, model.safetensors and the tokenizer; ``state`` replaces the module's own."""
        target = Path(folder)
        folder = target.with_name(f".{target.name}.partial")
        state = self.state_dict() if state is None else state
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            self._write_into(folder, state)
            if target.exists():
                shutil.rmtree(target)
            folder.replace(target)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise WeightsError(
                f"the model cannot be written to {target} ({error}): free space, or choose another"
            ) from error

    def _write_into(self, folder: Path, state: dict[str, Tensor]) -> None:
        save_file(
            {name: value.contiguous().cpu() for name, value in state.items()}, folder / "model.safetensors"
        )
        self.tokenizer().save_pretrained(str(folder / "tokenizer"))
        config = dataclasses.asdict(self.config)
        config["image"]["weights"] = "none"
        config["text"] |= {
            "weights": "none",
            "architecture": self.text_encoder.architecture(),
            "tokenizer": "tokenizer",
        }
        text = json.dumps({"format": FORMAT, "student": config}, indent=2, sort_keys=True)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> SSMKE:
        """Loads what `save_pretrained` wrote, offline; raises `WeightsError` naming what is missing."""
        folder = Path(folder)
        try:
            saved = foreign_json.loads((folder / "config.json").read_bytes())
        except FileNotFoundError:
            raise WeightsError(
                f"{folder} has no config.json: give the folder of a trained model "
                "(RUN/model, which training writes at its end)"
            ) from None
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"{folder / 'config.json'} is not JSON ({error}): copy the model again"
            ) from None
        if not isinstance(saved, dict) or saved.get("format") != FORMAT:
            raise WeightsError(
                f"{folder / 'config.json'} is not of format {FORMAT}: not an ssmke model folder"
            )
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
                _match(cls(config, quiet=True), state)
            model = cls(config, quiet=True)
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
