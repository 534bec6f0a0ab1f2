"""Batches of images alone: every image of the shards once an epoch, captions unread.

As in `ssmke.data.stream`: a batch is a function of the step, the view of an image one of its key and the epoch, and an
image that cannot be used is replaced by another one by a fixed rule and counted. Remote shards are fetched when an
image of theirs is needed, not ahead.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, get_worker_info

from ssmke.data.augmentation import AugmentationConfig, canonical_view, show, view_box
from ssmke.data.batch import Batch
from ssmke.data.dataset import ImageTextShards
from ssmke.data.decode import EncodedImage
from ssmke.data.stream import REPLACEMENTS, StreamPlan
from ssmke.data.waiting import NOTHING, places
from ssmke.errors import BadSample, DataError


@dataclass
class ImageBatches(Dataset[Batch]):
    """Map from step to this rank's images."""

    shards: ImageTextShards
    plan: StreamPlan
    image_size: int
    augmentation: AugmentationConfig
    at: npt.NDArray[np.int64] = field(default_factory=lambda: places(0), init=False, repr=False)
    """The image that each worker is at."""

    def __len__(self) -> int:
        return self.plan.steps

    def __getitem__(self, step: int) -> Batch:
        """This rank's batch of ``step``. Raises `DataError` when too many images in a row cannot be used."""
        epoch = self.plan.epoch(step)
        order, positions = self.plan.order.epoch(epoch), self.plan.positions(step)
        pixels = torch.empty((len(positions), 3, self.image_size, self.image_size), dtype=torch.uint8)
        worker = get_worker_info()
        place = 0 if worker is None else worker.id
        skipped: list[tuple[str, str]] = []
        found = [
            self._usable(order, int(position), epoch, pixels[row], skipped, place)
            for row, position in enumerate(positions)
        ]
        self.at[place] = NOTHING
        return images_alone(pixels, [image for image, _ in found], [key for _, key in found], skipped)

    def where(self, number: int) -> str:
        """The shard that image ``number`` lies in."""
        return self.shards.place(self.shards.shard_of(number)[0])

    def _usable(
        self,
        order: npt.NDArray[np.int64],
        position: int,
        epoch: int,
        out: torch.Tensor,
        skipped: list[tuple[str, str]],
        place: int,
    ) -> tuple[int, str]:
        # Another image of another batch; with windows from the same or the next one, which is there already.
        stride = self.plan.batch_size + 1 if self.plan.order.window else len(order) // 2 + 1
        for attempt in range(REPLACEMENTS):
            image = int(order[(position + attempt * stride) % len(order)])
            self.at[place] = image
            try:
                sample = self.shards.read(image)
                choose = partial(view_box, sample.key, epoch, self.augmentation)
                show(EncodedImage(sample.image), choose, self.image_size, out=out)
                return image, sample.key
            except BadSample as error:
                skipped.append((self.shards.key(image), error.reason))
        raise DataError(
            f"{REPLACEMENTS} images in a row cannot be used ({dict(Counter(r for _, r in skipped))}), the last one "
            f"{skipped[-1][0]!r}: run `ssmke data verify` on the shards"
        )


def canonical_images(shards: ImageTextShards, images: list[int], size: int) -> Batch:
    """Canonical views of these images, without those that cannot be used."""
    pixels = torch.empty((len(images), 3, size, size), dtype=torch.uint8)
    kept: list[int] = []
    keys: list[str] = []
    for image in images:
        try:
            sample = shards.read(image)
            show(EncodedImage(sample.image), canonical_view, size, out=pixels[len(kept)])
        except BadSample:
            continue
        kept.append(image)
        keys.append(sample.key)
    return images_alone(pixels[: len(kept)], kept, keys, [])


def images_alone(
    pixels: torch.Tensor, images: list[int], keys: list[str], skipped: list[tuple[str, str]]
) -> Batch:
    """A batch of pixels [B, 3, S, S] and no text."""
    return Batch(
        images=pixels,
        ids=torch.empty((len(pixels), 0), dtype=torch.int64),
        mask=torch.empty((len(pixels), 0), dtype=torch.bool),
        image_ids=torch.tensor(images, dtype=torch.int64),
        keys=tuple(keys),
        skipped=tuple(skipped),
    )
