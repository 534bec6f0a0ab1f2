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

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmke.data.tokens import by_length
from ssmke.errors import ConfigError, DataError
from ssmke.models.image_encoders import ImageEncoderConfig, build_image_encoder
from ssmke.models.pixels import normalise_pixels
from ssmke.models.pooling import POOLS, Pool, pool_tokens, pooled_width
from ssmke.models.shared import LayerScale, SharedConfig, build_shared
from ssmke.models.text_encoders import TextEncoderConfig, build_text_encoder, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ssmke.models.processor import Pictures, Processor

Outputs = dict[str, Tensor]
"""Student outputs by "<modality>.<level>": "image.output", "text.hidden", "image.prediction", ..."""

IMAGE_BATCH = 64
"""Images that `SSMKE.encode_image` embeds at a time."""
TEXT_BATCH = 256
"""Texts that `SSMKE.encode_text` embeds at a time."""
SORTED_BATCHES = 64
"""Batches of texts that are sorted by length together, so that little is padded."""


@dataclass
class StudentConfig:
    """Architecture of the student and where its unimodal halves come from."""

    image: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    """The image encoder."""
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    """The text encoder."""
    shared: SharedConfig = field(default_factory=SharedConfig)
    """The shared encoder."""
    pool: Pool = "none"
    """What of an encoder's tokens goes on: `none`: all; `cls`, `mean` or `cls+mean` (side by side): one vector."""
    modality_embedding: bool = True
    """Add a learned vector per modality to every token after its encoder."""
    modality_scale: float = 1e-5
    """Initial LayerScale of the modality embedding (unscaled costs about 0.8 points of recall)."""
    prediction_dim: int | None = None
    """Width of the prediction head: the teacher's. None: filled in from the teacher; no teacher, no head."""

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise ConfigError(f"--model.pool {self.pool!r}: must be one of {', '.join(POOLS)}")


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


def _projection(encoder_dim: int, pool: Pool, dim: int) -> nn.Module:
    width = pooled_width(encoder_dim, pool)
    # A pooled vector is always projected: without a shared encoder nothing else could learn above a frozen tower.
    if width == dim and pool == "none":
        return nn.Identity()
    return nn.Sequential(nn.LayerNorm(width, eps=1e-6), nn.Linear(width, dim))


class SSMKE(nn.Module):
    """Image and text encoder halves, shared encoder, prediction head."""

    def __init__(self, config: StudentConfig, *, quiet: bool = False) -> None:
        super().__init__()
        self.config = config
        dim = config.shared.dim
        self.image_encoder = build_image_encoder(config.image, quiet=quiet)
        self.text_encoder = build_text_encoder(config.text, quiet=quiet)
        self.image_projection = _projection(self.image_encoder.dim, config.pool, dim)
        self.text_projection = _projection(self.text_encoder.dim, config.pool, dim)
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
        """Dtype that the student computes in: that of what lies above its encoders."""
        above = (self.shared, self.image_projection, self.image_encoder)
        return next(parameter for part in above for parameter in part.parameters()).dtype

    def forward(
        self,
        images: Tensor | None = None,
        ids: Tensor | None = None,
        mask: Tensor | None = None,
        packing: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Outputs:
        """``images`` uint8 [B,3,H,W], or what the image encoder gives [B,N*D] (floating point); ``ids`` int64 and
        ``mask`` bool [B,L], or what the text encoder gives, pooled [B,W] (floating point); ``packing`` int64 [R,W]:
        compute the captions in packed rows; ``kept`` int64 [B,K]: see only these patches. Either modality may be
        absent."""
        outputs: Outputs = {}
        if images is not None:
            tokens = self.image_projection(self.image_tokens(images, kept))  # [B, N, D]
            outputs |= self._shared_levels(tokens, None, "image")
        if ids is not None:
            assert mask is not None
            tokens = self.text_projection(self.text_tokens(ids, mask, packing))  # [B, L, D]
            # A pooled vector has no padding left.
            outputs |= self._shared_levels(tokens, mask if self.config.pool == "none" else None, "text")
        return outputs

    def _shared_levels(self, tokens: Tensor, mask: Tensor | None, modality: str) -> Outputs:
        if self.modality is not None:
            tokens = self.modality(tokens, modality)
        outputs = {f"{modality}.{level}": value for level, value in self.shared(tokens, mask).items()}
        if self.prediction is not None:
            outputs[f"{modality}.prediction"] = self.prediction(outputs[f"{modality}.output"])
        return outputs

    def image_tokens(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """What goes on of the image encoder's tokens, [B, N, D] or pooled [B, 1, W]; arguments as in `forward`."""
        encoder, pool = self.image_encoder, self.config.pool
        if images.is_floating_point():
            return images.view(images.shape[0], -1, pooled_width(encoder.dim, pool)).to(self.dtype)
        pixels = normalise_pixels(images, encoder.mean, encoder.std).to(self.dtype)
        return pool_tokens(encoder(pixels, kept), None, pool)

    def text_tokens(self, ids: Tensor, mask: Tensor, packing: Tensor | None = None) -> Tensor:
        """What goes on of the text encoder's tokens, [B, L, D] or pooled [B, 1, W]; arguments as in `forward`."""
        if ids.is_floating_point():
            return ids[:, None].to(self.dtype)
        return pool_tokens(self.text_encoder(ids, mask, packing), mask, self.config.pool)

    @torch.no_grad()
    def encode_image(self, images: Tensor | Pictures, batch_size: int = IMAGE_BATCH) -> Tensor:
        """Embeddings [B, D], L2-normalised fp32, on the model's device.

        Args:
            images: uint8 crops [B,3,S,S], embedded in one batch; or pictures of any size, one or several: PIL images,
                files or uint8 arrays, read and embedded ``batch_size`` at a time.

        Raises:
            DataError: a picture cannot be used; the message says which and why.
        """
        if isinstance(images, Tensor):
            return self._embed_crops(self.processor().crops(images))
        from ssmke.models.processor import listed

        pictures, processor = listed(images), self.processor()
        found = [torch.empty(0, self.dim, device=self.device)]
        for start in range(0, len(pictures), _at_least_one(batch_size)):
            found.append(
                self._embed_crops(processor.images(pictures[start : start + batch_size], first=start))
            )
        return torch.cat(found)

    def _embed_crops(self, crops: Tensor) -> Tensor:
        return F.normalize(self(images=crops.to(self.device))["image.output"].float(), dim=-1)

    @torch.no_grad()
    def encode_text(
        self, texts: Tensor | str | Sequence[str], mask: Tensor | None = None, batch_size: int = TEXT_BATCH
    ) -> Tensor:
        """Embeddings [B, D], L2-normalised fp32, on the model's device.

        Args:
            texts: token ids int64 [B,L], embedded in one batch; or one text or several, embedded ``batch_size`` at
                a time, those of like length together.
            mask: with ids, bool [B,L], true where a token is real.

        Raises:
            DataError: ids without their mask, or a text that is none.
        """
        if isinstance(texts, Tensor):
            if mask is None or mask.shape != texts.shape:
                raise DataError(
                    "encode_text: token ids [B, L] need their mask, bool [B, L], true at real tokens"
                )
            return self._embed_ids(texts, mask)
        texts = [texts] if isinstance(texts, str) else list(texts)
        processor, run = self.processor(), SORTED_BATCHES * _at_least_one(batch_size)
        found = torch.empty(len(texts), self.dim, device=self.device)
        for start in range(0, len(texts), run):
            ids, mask = processor.texts(texts[start : start + run], first=start)  # [R, L]
            for rows, longest in by_length(mask, batch_size):
                found[start + rows.to(found.device)] = self._embed_ids(
                    ids[rows, :longest], mask[rows, :longest]
                )
        return found

    def _embed_ids(self, ids: Tensor, mask: Tensor) -> Tensor:
        outputs = self(ids=ids.to(self.device), mask=mask.to(self.device))
        return F.normalize(outputs["text.output"].float(), dim=-1)

    def similarity(self, images: Tensor | Pictures, texts: Tensor | str | Sequence[str]) -> Tensor:
        """Cosine similarity [I, T] of images and texts: what `encode_image` and `encode_text` take, or gave (fp32)."""
        image = images if _embedded(images, self.dim) else self.encode_image(images)
        text = texts if _embedded(texts, self.dim) else self.encode_text(texts)
        assert isinstance(image, Tensor)
        assert isinstance(text, Tensor)
        return F.normalize(image, dim=-1) @ F.normalize(text.to(image.device), dim=-1).T

    def processor(self) -> Processor:
        """Turns pictures and texts into the tensors that the model takes; kept, as its tokenizer takes time to read."""
        from ssmke.models.processor import Processor

        known: Processor | None = self.__dict__.get("_processor")
        if known is None:
            known = Processor(self.image_size, self.tokenizer(), self.config.text.max_tokens)
            self.__dict__["_processor"] = known
        return known

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the text encoder."""
        return load_tokenizer(self.config.text)

    def parameter_table(self) -> dict[str, int]:
        """Number of parameters by part, and "total"."""
        parts = {name: sum(p.numel() for p in part.parameters()) for name, part in self.named_children()}
        return {**parts, "total": sum(parts.values())}

    def save_pretrained(self, folder: str | Path, state: dict[str, Tensor] | None = None) -> None:
        """Writes config.json, model.safetensors and the tokenizer; ``state`` replaces the module's own."""
        from ssmke.models import pretrained

        pretrained.save(self, Path(folder), state)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> SSMKE:
        """Loads what `save_pretrained` wrote: a folder, offline; else OWNER/NAME[@REVISION] from the Hugging Face hub.

        Raises:
            WeightsError: what is missing or damaged, or why the hub did not give it.
        """
        from ssmke.models import pretrained

        return pretrained.load(source)


def _embedded(given: object, dim: int) -> bool:
    return (
        isinstance(given, Tensor) and given.is_floating_point() and given.ndim == 2 and given.shape[1] == dim
    )


def _at_least_one(batch_size: int) -> int:
    if batch_size < 1:
        raise DataError(f"batch_size {batch_size}: must be at least 1")
    return batch_size
