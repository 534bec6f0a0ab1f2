"""Rows of a cache that come from captions: a frozen text encoder's pooled features, one row a pair."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ssmke.data.captions import clean_caption
from ssmke.data.shards import ShardIndex
from ssmke.errors import BadSample
from ssmke.targets.cache import CacheIdentity
from ssmke.targets.frozen import FrozenText

SORTED_BATCHES = 16
"""Batches of captions that are sorted by length together, so that little is padded."""


@dataclass(frozen=True)
class CaptionRows:
    """What ``encoder`` says of each caption."""

    encoder: FrozenText
    batch_size: int
    """Captions per forward."""

    @property
    def identity(self) -> CacheIdentity:
        """What the rows depend on: not on images."""
        return CacheIdentity(self.encoder.describe(), image_size=0, views=1, augmentation={})

    def row(self, index: ShardIndex, number: int) -> torch.Tensor:
        """See `ssmke.targets.build.RowSource`."""
        ends = np.cumsum(index.captions)
        image = int(np.searchsorted(ends, number, side="right"))
        caption = number - int(ends[image]) + int(index.captions[image])
        captions = index.read(image).captions
        if caption >= len(captions):
            raise BadSample("not as indexed")
        return self.encoder([clean_caption(captions[caption])], 1)

    def batches(
        self, index: ShardIndex, bad: dict[str, str]
    ) -> Iterator[tuple[list[int], torch.Tensor, int]]:
        """See `ssmke.targets.build.RowSource`: a row a caption, in the order of the pairs."""
        numbers: list[int] = []
        texts: list[str] = []
        images = 0
        for image, first in enumerate(np.cumsum(index.captions) - index.captions):
            for number, text in self._texts(index, image, int(first), bad):
                numbers.append(number)
                texts.append(text)
            images += 1
            if len(texts) >= SORTED_BATCHES * self.batch_size:
                yield numbers, self.encoder(texts, self.batch_size)[:, None], images
                numbers, texts, images = [], [], 0
        if texts:
            yield numbers, self.encoder(texts, self.batch_size)[:, None], images

    @staticmethod
    def _texts(index: ShardIndex, image: int, first: int, bad: dict[str, str]) -> Iterator[tuple[int, str]]:
        """(row in the shard, cleaned caption) of an image's captions."""
        try:
            sample = index.read(image)
        except BadSample as error:
            bad[str(index.keys[image])] = error.reason
            return
        count = int(index.captions[image])
        if len(sample.captions) < count:
            bad[sample.key] = "not as indexed"
        for number, caption in enumerate(sample.captions[:count]):
            try:
                yield first + number, clean_caption(caption)
            except BadSample as error:
                bad[f"{sample.key}#{number}"] = error.reason
