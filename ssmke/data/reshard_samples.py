"""What a new shard is made of when datasets are resharded: samples of others, checked, perhaps made smaller.

Images are copied byte for byte, undecoded, unless they are to be made smaller (`ssmke.data.resizing`). Captions pass
the checks that they pass at every other place, which change nothing in those that an import wrote.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ssmke.data.import_state import Skip
from ssmke.data.parallel import tick
from ssmke.data.quality.cleaning import CleaningConfig, usable_captions
from ssmke.data.quality.inputs import InputShard
from ssmke.data.resizing import stored_image
from ssmke.data.shards import MAX_KEY, OpenFiles, Sample, ShardIndex
from ssmke.errors import BadSample


@dataclasses.dataclass(frozen=True)
class Origin:
    """A shard that samples are taken from."""

    shard: InputShard
    name: str
    """Of its dataset: the source of samples that do not tell theirs."""
    number: int
    """Of its dataset among the inputs."""

    def place(self, key: str) -> str:
        """How an image is named in reports."""
        return f"{self.shard.directory.name}/{key}"

    def other_key(self, key: str) -> str:
        """A key for a sample whose own is taken; no other sample of the inputs gets the same."""
        digest = hashlib.sha256(f"{self.number}/{self.shard.info.file}/{key}".encode()).hexdigest()[:16]
        return f"{key[: MAX_KEY - 17]}-{digest}"


@dataclasses.dataclass(frozen=True)
class Rules:
    """What happens to each sample of a shard."""

    max_side: int
    short_side: int
    clean: CleaningConfig


@dataclasses.dataclass(frozen=True)
class ReshardedShard:
    """What a new shard is made of; the arrays have a row an image."""

    origins: tuple[Origin, ...]
    """The shards that it takes from."""
    images: NDArray[np.int64]
    """Numbers for reports."""
    shard: NDArray[np.int64]
    """Which of ``origins``..."""
    position: NDArray[np.int64]
    """...and which of its samples."""
    renamed: NDArray[np.bool_]
    joined: Mapping[int, Sequence[tuple[int, int]]]
    """Shard and position of the duplicates of an image, by its number."""
    rules: Rules

    def samples(self, skips: list[Skip]) -> Iterator[Sample]:
        files = OpenFiles(16)
        # Images come in the order of the inputs; only duplicates are somewhere else.
        index = functools.lru_cache(maxsize=16)(lambda shard: self.origins[shard].shard.open(files))
        rows = zip(
            *(array.tolist() for array in (self.images, self.shard, self.position, self.renamed)), strict=True
        )
        for image, shard, position, renamed in rows:
            others = [(index(there), i) for there, i in self.joined.get(image, ())]
            sample = self._sample(image, shard, index(shard), position, renamed, others, skips)
            if sample is not None:
                yield sample
            tick()

    def _sample(
        self,
        image: int,
        shard: int,
        index: ShardIndex,
        position: int,
        renamed: bool,
        others: Sequence[tuple[ShardIndex, int]],
        skips: list[Skip],
    ) -> Sample | None:
        origin = self.origins[shard]
        place = Skip(image, origin.place(str(index.keys[position])), origin.shard.split, "")
        try:
            sample = index.read(position)
            captions, dropped = _captions(sample, [there.read(i) for there, i in others], self.rules.clean)
            skips.extend(
                dataclasses.replace(place, reason=error.reason, detail=error.detail, caption=number)
                for number, error in dropped
            )
            if not captions:
                raise BadSample("no usable caption")
            rules = self.rules
            data = stored_image(
                sample.image, rules.clean, max_side=rules.max_side, short_side=rules.short_side, decodes=True
            )
        except BadSample as error:
            skips.append(dataclasses.replace(place, reason=error.reason, detail=error.detail))
            return None
        key = origin.other_key(sample.key) if renamed else sample.key
        return Sample(key, data, tuple(captions), sample.source or origin.name, sample.extra)


def _captions(
    sample: Sample, others: Sequence[Sample], clean: CleaningConfig
) -> tuple[list[str], list[tuple[int, BadSample]]]:
    """The image's own captions, then those of its duplicates that are new."""
    captions, dropped = usable_captions(sample.captions, clean)
    number = len(sample.captions)
    for other in others:
        more, unusable = usable_captions(other.captions, clean)
        dropped += [(number + i, error) for i, error in unusable]
        numbers = [i for i in range(len(other.captions)) if i not in {bad for bad, _ in unusable}]
        for i, caption in zip(numbers, more, strict=True):
            if caption in captions:
                dropped.append((number + i, BadSample("repeated caption")))
            else:
                captions.append(caption)
        number += len(other.captions)
    return captions, dropped
