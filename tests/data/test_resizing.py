"""One way to store an image: fast, refusing what is damaged, the same bytes wherever shards are made."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssmke.data.decode import EncodedImage, decode_image
from ssmke.data.import_state import Skip
from ssmke.data.importing import Checks, StorageConfig
from ssmke.data.manifest import Manifest, Split
from ssmke.data.quality.cleaning import CleaningConfig
from ssmke.data.reshard import ReshardConfig, reshard
from ssmke.data.resizing import stored_image
from ssmke.data.shards import Sample, ShardIndex, write_shard
from ssmke.errors import BadSample

Encode = Callable[..., bytes]
KEEP = CleaningConfig()


def test_sizes_and_that_small_images_are_untouched(encode: Encode) -> None:
    photo = encode(400, 300)
    for options, size in (
        ({"max_side": 100}, (100, 75)),
        ({"short_side": 100}, (133, 100)),
        ({"max_side": 100, "short_side": 90}, (100, 75)),
    ):
        assert decode_image(stored_image(photo, KEEP, **options)).size == size
    for decodes in (False, True):
        assert stored_image(photo, KEEP, max_side=400, short_side=300, decodes=decodes) is photo
        with pytest.raises(BadSample, match="too small"):
            stored_image(photo, CleaningConfig(min_side=301), decodes=decodes)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_smaller_picture_is_the_same_picture(encode: Encode, format: str) -> None:
    photo = encode(1000, 700, format)
    small = decode_image(stored_image(photo, KEEP, max_side=100))
    exact = decode_image(photo).resize(small.size, Image.Resampling.LANCZOS)
    off = np.abs(np.asarray(small, np.int16) - np.asarray(exact, np.int16))
    assert off.mean() < 2, off.mean()


def test_a_large_jpeg_is_never_decoded_whole(encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[tuple[int, ...]] = []
    pixels = EncodedImage.pixels

    def seen(self: EncodedImage, shrink: float = 1.0) -> np.ndarray:
        decoded.append(pixels(self, shrink).shape[:2])
        return pixels(self, shrink)

    monkeypatch.setattr(EncodedImage, "pixels", seen)
    photo = encode(1600, 1200)
    stored_image(photo, KEEP, max_side=200)
    stored_image(photo, KEEP, max_side=100)
    stored_image(photo, KEEP)
    assert decoded == [(300, 400), (150, 200), (150, 200)]


@pytest.mark.parametrize("progressive", [False, True])
def test_damage_is_found_as_by_decoding_all(encode: Encode, progressive: bool) -> None:
    """Whatever is cut off, or overwritten, of a JPEG: stored as it came or smaller, it is judged alike."""
    buffer = io.BytesIO()
    decode_image(encode(320, 240, "PNG")).save(buffer, "JPEG", progressive=progressive, quality=90)
    photo = buffer.getvalue()
    rng = np.random.default_rng(0)
    damaged = [photo[:end] for end in range(4, len(photo), len(photo) // 40)]
    for place in rng.integers(0, len(photo) - 8, 60).tolist():
        damaged.append(photo[:place] + rng.bytes(8) + photo[place + 8 :])

    def judged(store: Callable[[bytes], object], data: bytes) -> str:
        try:
            store(data)
        except BadSample as error:
            return error.reason
        return "good"

    whole = [judged(decode_image, data) for data in damaged]
    assert {"good", "truncated image"} <= set(whole)
    for options in ({}, {"max_side": 64}):
        mine = [judged(lambda data, o=options: stored_image(data, KEEP, **o), data) for data in damaged]  # type: ignore[misc]
        assert mine == whole


def test_importing_smaller_is_importing_and_resharding_smaller(tmp_path: Path, encode: Encode) -> None:
    photo = encode(640, 480)
    skips: list[Skip] = []
    checks = Checks("toy", "train", 128, KEEP)
    sample = checks.sample(Skip(0, "", "train", ""), "a", ["a caption"], lambda: photo, {}, skips)
    (tmp_path / "in").mkdir()
    info = write_shard(
        tmp_path / "in" / "train-00000.tar", [Sample("a", photo, ("a caption",), "toy")], "train"
    )
    Manifest("toy", {"fingerprint": "x"}, {"train": Split((info,))}).save(tmp_path / "in")
    reshard(ReshardConfig((tmp_path / "in",), tmp_path / "out", storage=StorageConfig(max_side=128)))
    assert sample is not None
    assert ShardIndex.load(tmp_path / "out" / "train-00000.tar").read(0).image == sample.image
