"""What a model takes, made of what people have: pictures and texts to tensors.

A picture may be a file (JPEG, PNG, WebP), a PIL image of any mode or a uint8 array. It is brought upright as its EXIF
says, its transparency laid on white, and cut to the canonical view that the model was evaluated on: the largest centred
square, scaled by torch's antialiased bicubic filter to the model's side. Pixels stay uint8: the model normalises them.
Texts are tokenized and cut to the length that the model was trained with.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ssmke.data.augmentation import canonical_pixels
from ssmke.data.decode import decode_image, upright_rgb
from ssmke.data.tokens import tokenize
from ssmke.errors import BadSample, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Picture = Image.Image | str | os.PathLike[str] | npt.NDArray[np.uint8]
"""A PIL image, the path of a JPEG, PNG or WebP file, or a uint8 array [H, W], [H, W, 3] or [H, W, 4]."""
Pictures = Picture | Sequence[Picture]
"""One or several."""


@dataclass(frozen=True)
class Processor:
    """Pictures and texts to the tensors of `SSMKE.forward`: ``model(**model.processor()(images, texts))``."""

    image_size: int
    """Side S of the square that the image encoder takes, in pixels."""
    tokenizer: PreTrainedTokenizerBase
    """Of the text encoder."""
    max_tokens: int
    """Longer texts are cut to so many tokens."""

    def __call__(
        self, images: Pictures | None = None, texts: str | Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """``images`` uint8 [B,3,S,S] of pictures, ``ids`` int64 and ``mask`` bool [T,L] of texts; what is given.

        Raises:
            DataError: a picture or text cannot be used; the message says which and why.
        """
        made: dict[str, Tensor] = {}
        if images is not None:
            made["images"] = self.images(listed(images))
        if texts is not None:
            made["ids"], made["mask"] = self.texts([texts] if isinstance(texts, str) else texts)
        return made

    def images(self, pictures: Sequence[Picture], first: int = 0) -> Tensor:
        """Canonical views uint8 [B,3,S,S]; ``first``: what the messages call the number of the first picture."""
        views = torch.empty(len(pictures), 3, self.image_size, self.image_size, dtype=torch.uint8)
        for i, picture in enumerate(pictures):
            canonical_pixels(_rgb(picture, f"picture {first + i}"), self.image_size, views[i])
        return views

    def texts(self, texts: Sequence[str], first: int = 0) -> tuple[Tensor, Tensor]:
        """``ids`` int64 [T,L] and ``mask`` bool [T,L]; ``first``: as for `images`."""
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"text {first + i} is of type {type(text).__name__}: texts are str")
        if not texts:
            return torch.empty(0, 0, dtype=torch.int64), torch.empty(0, 0, dtype=torch.bool)
        return tokenize(self.tokenizer, texts, self.max_tokens)

    def crops(self, images: Tensor) -> Tensor:
        """``images`` as they are, if they are what the image encoder takes.

        Raises:
            DataError: they are not uint8 [B,3,S,S].
        """
        side = self.image_size
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != (3, side, side):
            raise DataError(
                f"a tensor of images must be uint8 [B, 3, {side}, {side}], RGB 0..255, not {_kind(images.dtype)} "
                f"{list(images.shape)}; pictures of other sizes go in as PIL images, files or arrays"
            )
        return images


def listed(pictures: Pictures) -> Sequence[Picture]:
    """Always several: an array of four axes is a batch, anything else that is no list or tuple one picture."""
    if isinstance(pictures, np.ndarray):
        return list(pictures) if pictures.ndim == 4 else [pictures]
    if isinstance(pictures, (Image.Image, str, os.PathLike)):
        return [pictures]
    try:
        return list(pictures)
    except TypeError:
        raise DataError(
            f"a picture is a PIL image, a file or an array, not {type(pictures).__name__}"
        ) from None


def _rgb(picture: Picture | Any, name: str) -> Image.Image:
    try:
        if isinstance(picture, Image.Image):
            return upright_rgb(picture)
        if isinstance(picture, (str, os.PathLike)):
            name = f"{name}, {os.fspath(picture)}"
            return decode_image(Path(picture).read_bytes())
    except (BadSample, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(f"{name}: {reason}") from None
    if not isinstance(picture, np.ndarray):
        raise DataError(f"{name}: a picture is a PIL image, a file or an array, not {type(picture).__name__}")
    grey, coloured = picture.ndim == 2, picture.ndim == 3 and picture.shape[2] in (3, 4)
    if picture.dtype != np.uint8 or not (grey or coloured) or picture.size == 0:
        raise DataError(
            f"{name}: an array must be uint8 [H, W], [H, W, 3] or [H, W, 4], 0..255, not {picture.dtype} "
            f"{list(picture.shape)}"
        )
    return upright_rgb(Image.fromarray(picture))


def _kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
