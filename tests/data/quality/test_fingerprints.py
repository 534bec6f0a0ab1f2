from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy.fft import dctn

from ssmke.data.quality.fingerprints import (
    MIRROR,
    fingerprint,
    halved,
    image_digest,
    perceptual_hash,
    thumbnail,
)
from ssmke.data.quality.hamming import count_bits, near_pairs
from ssmke.data.quality.inputs import input_shards
from ssmke.data.shards import Sample, write_shard
from ssmke.errors import BadSample, DataError


def jpeg(image: Image.Image, quality: int = 92, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, **options)
    return buffer.getvalue()


def cut(image: Image.Image, share: float) -> Image.Image:
    x, y = round(image.width * share), round(image.height * share)
    return image.crop((x, y, image.width - x, image.height - y))


def hash_of(data: bytes) -> np.uint64:
    return perceptual_hash(thumbnail(data))[()]


@pytest.fixture(scope="module")
def photos(flickr8k: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((flickr8k / "images").iterdir())[:1500]]


def test_the_hash_is_the_signs_of_the_lowest_frequencies(photos: list[bytes]) -> None:
    grey = np.stack([thumbnail(photo) for photo in photos[:200]])
    # By another library, in another order of operations: bits from the highest, frequencies along diagonals.
    waves = dctn(grey.astype(np.float64), axes=(1, 2), norm="ortho")
    order = [(u, total - u) for total in range(1, 11) for u in range(total + 1)][:64]
    expected = [sum(int(wave[u, v] > 0) << (63 - i) for i, (u, v) in enumerate(order)) for wave in waves]
    assert perceptual_hash(grey).tolist() == expected
    # Bits are fair coins, or pairs of strangers would be closer than 32 bits.
    shares = [np.mean([value >> bit & 1 for value in expected]) for bit in range(64)]
    assert 0.3 < min(shares) <= max(shares) < 0.7


def test_mirrored_images_have_mirrored_hashes(photos: list[bytes]) -> None:
    grey = np.stack([thumbnail(photo) for photo in photos[:200]])
    assert np.array_equal(perceptual_hash(grey[:, :, ::-1]), perceptual_hash(grey) ^ MIRROR)
    assert count_bits(np.array([MIRROR]))[0] > 20  # else a photo would be its own mirror image


@pytest.mark.parametrize(
    ("change", "typical", "most"),
    [
        (lambda image: jpeg(image, 50), 1, 4),
        (lambda image: jpeg(image.resize((112, 112), Image.Resampling.LANCZOS)), 1, 4),
        (lambda image: jpeg(image.resize((640, 480), Image.Resampling.BICUBIC)), 2, 7),
        (lambda image: jpeg(cut(image, 0.02)), 5, 11),
        (lambda image: jpeg(ImageEnhance.Brightness(image).enhance(1.2)), 2, 9),
        (lambda image: jpeg(ImageEnhance.Brightness(image).enhance(0.8)), 1, 4),
        (lambda image: jpeg(image.convert("L")), 1, 4),
    ],
    ids=["quality 50", "half", "640x480", "2 % cut off", "brighter", "darker", "grey"],
)
def test_changed_photos_keep_their_hash(
    photos: list[bytes], change: Callable[[Image.Image], bytes], typical: int, most: int
) -> None:
    pairs = [(hash_of(photo), hash_of(change(Image.open(io.BytesIO(photo))))) for photo in photos[:60]]
    distances = count_bits(np.array([a ^ b for a, b in pairs]))
    assert np.median(distances) <= typical
    assert distances.max() <= most


def test_distinct_photos_have_distant_hashes(photos: list[bytes]) -> None:
    hashes = perceptual_hash(np.stack([thumbnail(photo) for photo in photos]))
    a, b, _ = near_pairs(hashes, hashes, 8)
    assert {(i, j) for i, j in zip(a.tolist(), b.tolist(), strict=True) if i < j} == set()
    apart = count_bits(hashes[:750] ^ hashes[750:])
    assert 31 < apart.mean() < 33


def test_thumbnails_are_upright_and_any_format(encode: Callable[..., bytes]) -> None:
    image = Image.open(io.BytesIO(encode(96, 64, "PNG", seed=3)))
    expected = hash_of(jpeg(image))
    turned, exif = image.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6
    assert count_bits(np.array([hash_of(jpeg(turned, exif=exif)) ^ expected]))[0] <= 2
    assert count_bits(np.array([hash_of(jpeg(turned)) ^ expected]))[0] > 11
    for name in ("PNG", "WEBP"):
        buffer = io.BytesIO()
        image.save(buffer, name)
        assert count_bits(np.array([hash_of(buffer.getvalue()) ^ expected]))[0] <= 4
    with pytest.raises(BadSample, match="truncated"):
        thumbnail(jpeg(image)[:700])
    assert halved(thumbnail(jpeg(image))).shape == (16, 16)


def test_shards_are_fingerprinted_in_order_by_any_number_of_workers(dataset: Callable[..., Path]) -> None:
    directory = dataset("toy", {"train": [3, 2], "val": [2]})
    shards = input_shards([directory])
    ticks: list[int] = []
    prints = fingerprint(shards, 1, ticks.append)
    assert sum(ticks) == 7
    assert prints.first.tolist() == [0, 3, 5, 7]
    images = [shard.open().read(i).image for shard in shards for i in range(shard.info.images)]
    assert [row.tobytes() for row in prints.digests] == [hashlib.sha256(image).digest() for image in images]
    assert prints.hashes.tolist() == [int(hash_of(image)) for image in images]
    assert prints.comparable.all()
    again = fingerprint(shards, 2)
    for name in ("first", "digests", "hashes", "comparable"):
        assert np.array_equal(getattr(prints, name), getattr(again, name))


def test_what_cannot_be_compared_is_known_by_its_bytes(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    grid = np.indices((64, 64)).sum(0) % 2 * 255  # its thumbnail is flat
    images = [
        encode(seed=1),
        encode(seed=1)[:500],
        jpeg(Image.new("RGB", (64, 64), "teal")),
        jpeg(Image.fromarray(grid.astype(np.uint8)), 100),
        jpeg(Image.effect_noise((64, 64), 3).resize((300, 300), Image.Resampling.BICUBIC)),
    ]
    from ssmke.data.manifest import Manifest, Split

    info = write_shard(
        tmp_path / "train-00000.tar", [Sample(f"k{i}", x, ("c",)) for i, x in enumerate(images)], "train"
    )
    Manifest("toy", {}, {"train": Split((info,))}).save(tmp_path)
    prints = fingerprint(input_shards([tmp_path]))
    assert prints.comparable.tolist() == [True, False, False, False, False]
    assert prints.unreadable == {"truncated image": 1}
    assert np.array_equal(prints.digests[1], image_digest(images[1]))


def test_inputs_are_checked_and_never_written_to(dataset: Callable[..., Path]) -> None:
    directory = dataset("toy", {"train": [3, 2]})
    (directory / "train-00000.index.npz").unlink()
    shard, other = input_shards([directory])
    assert shard.open().keys.tolist() == [f"toy_train0_{i:03d}" for i in range(3)]
    assert not (directory / "train-00000.index.npz").exists()
    with other.path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=r"train-00001.tar has .* bytes, the manifest says"):
        other.open()
    with pytest.raises(DataError, match="has no split 'val' or 'test'; its splits: train"):
        input_shards([directory], ["val", "test"])


def test_contrast_does_not_matter(photos: list[bytes]) -> None:
    image = ImageOps.autocontrast(Image.open(io.BytesIO(photos[0])), cutoff=1)
    assert count_bits(np.array([hash_of(jpeg(image)) ^ hash_of(photos[0])]))[0] <= 6
