"""What `ssmke.data.statistics` has counted by its workers: samples and the headers of their images.

Of an image only the header is read; its upright size is told as decoding would tell it. A shard of an address is
fetched when its turn comes, opened, and then stays readable though it may have to make room for the next.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ssmke.data.captions import clean_caption
from ssmke.data.dataset import MAKING_ROOM
from ssmke.data.decode import MAX_PIXELS, MIN_SIDE, image_extension
from ssmke.data.manifest import ShardInfo
from ssmke.data.parallel import tick
from ssmke.data.remote.mirror import Mirror, gave_way
from ssmke.data.shard_scan import parse_record
from ssmke.data.shards import ShardIndex
from ssmke.data.tally import Histogram, Tally, coarse
from ssmke.errors import BadSample, ConfigError, DataError

_HEAD = 16 << 10
_ORIENTATION_TAG = 0x0112
_TURNED = (5, 6, 7, 8)  # EXIF's orientations that swap width and height; other numbers say nothing
_PIL_FORMAT = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


@dataclasses.dataclass(frozen=True)
class CountedShard:
    path: Path
    info: ShardInfo
    mirror: Mirror | None
    """Where it is fetched from, if it is remote."""
    chosen: tuple[int, ...] | None = None
    """Which of its images are read; None: all."""

    @property
    def images(self) -> int:
        return self.info.images if self.chosen is None else len(self.chosen)

    @contextlib.contextmanager
    def open(self) -> Iterator[tuple[ShardIndex, int]]:
        """Its index and a descriptor of its tar, which stays readable if the tar makes room for another."""
        index, descriptor = self._opened()
        try:
            yield index, descriptor
        finally:
            os.close(descriptor)

    def _opened(self) -> tuple[ShardIndex, int]:
        attempts = 1 if self.mirror is None else MAKING_ROOM
        while True:
            attempts -= 1
            if self.mirror is not None:
                self.mirror.indexes([self.info])
                self.mirror.ensure(self.info)
            try:
                try:
                    return ShardIndex.load(self.path), os.open(self.path, os.O_RDONLY)
                except OSError as error:
                    raise DataError(f"cannot read {self.path}: {error.strerror or error}.") from error
            except DataError as error:
                if not attempts or not gave_way(error):
                    raise


@dataclasses.dataclass(frozen=True)
class CountJob:
    """Some shards of one split."""

    split: str
    shards: tuple[CountedShard, ...]
    tokenizer: str

    @property
    def images(self) -> int:
        return sum(shard.images for shard in self.shards)


def count_shards(job: CountJob) -> Tally:
    found = Tally()
    for shard in job.shards:
        texts: list[str] = []
        with shard.open() as (index, descriptor):
            if len(index) != shard.info.images:
                raise DataError(
                    f"the shard {shard.path} has {len(index):,} images, the manifest says {shard.info.images:,}: "
                    f"`ssmke data verify {shard.path.parent}` says what else is wrong."
                )
            try:
                for row in index.rows if shard.chosen is None else index.rows[list(shard.chosen)]:
                    _count_sample(descriptor, row.tolist(), found, texts)
                    tick()
            except OSError as error:
                raise DataError(f"cannot read {shard.path}: {error.strerror or error}.") from error
        digests = [hashlib.blake2b(_folded(text), digest_size=8).digest() for text in texts]
        found.digests.append(np.frombuffer(b"".join(digests), np.uint64))
        if job.tokenizer and texts:
            encoded = load_tokenizer(job.tokenizer)(texts, verbose=False)["input_ids"]
            found.tokens.merge(Histogram(Counter(map(len, encoded))))
    return found


def _count_sample(descriptor: int, row: Sequence[int], found: Tally, texts: list[str]) -> None:
    image_offset, image_size, json_offset, json_size, _ = row
    found.bytes.add(coarse(image_size))
    found.image_bytes += image_size
    captions: Sequence[str] = ()
    try:
        record = parse_record(os.pread(descriptor, json_size, json_offset))
    except BadSample as error:
        found.unusable[error.reason] += 1
    else:
        captions = record["captions"]
        found.sources[str(record.get("source", ""))] += 1
    found.captions_per_image.add(len(captions))
    for raw in captions:
        try:
            text = clean_caption(raw)
        except BadSample as error:
            found.unusable[error.reason] += 1
        else:
            found.words.add(text.count(" ") + 1)
            texts.append(text)
    try:
        extension, width, height = _read_size(descriptor, image_offset, image_size)
    except BadSample as error:
        found.unusable[error.reason] += 1
    else:
        found.formats[extension] += 1
        found.width.add(width)
        found.height.add(height)
        found.short_side.add(min(width, height))
        found.aspect.add(round(100 * width / height))
        if min(width, height) < MIN_SIDE:
            found.unusable["too small"] += 1
        elif width * height > MAX_PIXELS:
            found.unusable["too many pixels"] += 1


def _read_size(descriptor: int, offset: int, size: int) -> tuple[str, int, int]:
    """Format and upright size, from the header."""
    head = os.pread(descriptor, min(size, _HEAD), offset)
    extension = image_extension(head)
    try:
        return extension, *image_size(head, extension)
    except BadSample:
        if size <= _HEAD:
            raise
    # A colour profile or a thumbnail may stand before the size.
    return extension, *image_size(os.pread(descriptor, size, offset), extension)


def image_size(data: bytes, extension: str) -> tuple[int, int]:
    """Width and height of the upright image, from its first bytes; nothing is decoded.

    Raises:
        BadSample: "too many pixels", or "truncated image": the header is not whole.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=(_PIL_FORMAT[extension],))
        width, height = image.size
    except Image.DecompressionBombError as error:
        raise BadSample("too many pixels", str(error)) from None
    except MemoryError:
        raise
    except Exception as error:  # PIL's readers raise nearly everything on damaged content
        raise BadSample("truncated image", str(error)) from None
    turned = False
    if "exif" in image.info:
        with contextlib.suppress(Exception):  # a damaged EXIF block says nothing of the pixels
            turned = image.getexif().get(_ORIENTATION_TAG) in _TURNED
    return (height, width) if turned else (width, height)


def _folded(text: str) -> bytes:
    return text.casefold().encode()


@functools.lru_cache(maxsize=1)
def load_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"--tokenizer {name}: {reason} Give the folder of a tokenizer, or its name on the hub."
        ) from None
