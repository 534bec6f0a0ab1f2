"""Rows of a cache that come from images: a teacher's targets, or a frozen encoder's tokens.

Images are decoded by a thread pool (Pillow releases the interpreter lock) one batch ahead of the model, so that the
slower of decode and forward sets the pace.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from ssmke.data.augmentation import AugmentationConfig, canonical_view, show, view_box
from ssmke.data.decode import EncodedImage
from ssmke.data.shards import ShardIndex
from ssmke.errors import BadSample
from ssmke.targets.cache import CacheIdentity

Pixels = npt.NDArray[np.uint8]


class ImageModel(Protocol):
    """What is cached: a `Teacher`, or a frozen encoder (`FrozenTokens`)."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, S, S] -> rows [B, D]."""
        ...

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Its weights, for their device."""
        ...


@dataclass(frozen=True)
class ImageRows:
    """What ``model`` says of each view of each image."""

    model: ImageModel
    identity: CacheIdentity
    augmentation: AugmentationConfig
    batch_size: int
    """Images per forward."""

    def row(self, index: ShardIndex, number: int) -> torch.Tensor:
        """See `ssmke.targets.build.RowSource`."""
        return _forward(
            self.model, torch.from_numpy(views_of(index, number, self.identity, self.augmentation))
        )

    def batches(
        self, index: ShardIndex, bad: dict[str, str]
    ) -> Iterator[tuple[list[int], torch.Tensor, int]]:
        """See `ssmke.targets.build.RowSource`: a row an image."""
        for images, crops in _crops(index, self.identity, self.augmentation, self.batch_size, bad):
            pixels = torch.from_numpy(np.concatenate(crops))  # [B * V, 3, S, S]
            rows = torch.cat([_forward(self.model, part) for part in pixels.split(self.batch_size)])
            yield images, rows.reshape(len(images), self.identity.views, -1), len(images)


def _forward(model: ImageModel, pixels: torch.Tensor) -> torch.Tensor:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    rows: torch.Tensor = model(pixels.to(device, non_blocking=True))
    return rows


def _crops(
    index: ShardIndex,
    identity: CacheIdentity,
    augmentation: AugmentationConfig,
    batch_size: int,
    bad: dict[str, str],
) -> Iterator[tuple[list[int], list[Pixels]]]:
    """Batches of (image numbers, their views [V, 3, S, S]), decoded one batch ahead."""

    def decode(image: int) -> Pixels | BadSample:
        try:
            return views_of(index, image, identity, augmentation)
        except BadSample as error:
            return error

    starts = range(0, len(index.keys), batch_size)
    with ThreadPoolExecutor(max_workers=max(1, torch.get_num_threads())) as pool:

        def submit(start: int) -> list[Future[Pixels | BadSample]]:
            return [pool.submit(decode, i) for i in range(start, min(start + batch_size, len(index.keys)))]

        ahead = submit(0)
        for start in starts:
            decoded, ahead = ahead, submit(start + batch_size)
            images, crops = [], []
            for image, future in enumerate(decoded, start):
                result = future.result()
                if isinstance(result, BadSample):
                    bad[str(index.keys[image])] = result.reason
                else:
                    images.append(image)
                    crops.append(result)
            if images:
                yield images, crops


def views_of(
    index: ShardIndex, image: int, identity: CacheIdentity, augmentation: AugmentationConfig
) -> Pixels:
    """All cached views of one image, uint8 [V, 3, S, S]; raises `BadSample`."""
    sample = index.read(image)
    picture = EncodedImage(sample.image)
    if identity.views == 1:
        return show(picture, canonical_view, identity.image_size)[None]
    return np.stack(
        [
            show(picture, partial(view_box, sample.key, view, augmentation), identity.image_size)
            for view in range(identity.views)
        ]
    )
