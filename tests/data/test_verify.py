from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ssmke.data.manifest import Manifest, Split
from ssmke.data.shards import Sample, index_path, write_shard
from ssmke.data.verify import verify
from ssmke.errors import DataError

MakeDataset = Callable[..., Path]


@pytest.fixture
def directory(dataset: MakeDataset) -> Path:
    return dataset()


def problems(directory: Path, workers: int = 1) -> list[str]:
    """Problems as ``file sample: what``."""
    found = verify(directory, workers).problems
    return [f"{problem.file} {problem.sample}: {problem.what}" for problem in found]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_good_dataset_is_good_and_left_alone(directory: Path, workers: int) -> None:
    before = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    totals: list[int] = []
    items: list[int] = []
    report = verify(directory, workers, totals.append, items.append)
    assert report.ok
    assert (totals, sum(items)) == ([7], 7)
    assert {path: path.stat().st_mtime_ns for path in directory.iterdir()} == before


def test_no_manifest_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        verify(tmp_path)


def member(path: Path, name: str) -> tarfile.TarInfo:
    with tarfile.open(path) as tar:
        return tar.getmember(name)


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_one_flipped_bit_is_found(directory: Path) -> None:
    path = directory / "train-00000.tar"
    offset = member(path, "toy_train0_001.json").offset_data + 16
    overwrite(path, offset, bytes([path.read_bytes()[offset] ^ 1]))
    assert any(
        "train-00000.tar : its SHA-256 is not that of the manifest" in text for text in problems(directory)
    )


def test_everything_that_is_wrong_is_listed(directory: Path) -> None:
    first, second, third = (directory / f for f in ("train-00000.tar", "train-00001.tar", "val-00000.tar"))
    image = member(first, "toy_train0_000.jpg")
    overwrite(first, image.offset_data, b"no image")
    record = member(first, "toy_train0_002.json")
    overwrite(first, record.offset_data, b"no JSON!")
    os.truncate(second, member(second, "toy_train1_001.json").offset)
    third.unlink()
    (directory / "stray.tar").write_bytes(b"")
    (directory / ".train-00003.tar.0a1b.partial").write_bytes(b"")
    found = "\n".join(problems(directory))
    for text in (
        "train-00000.tar : its SHA-256",
        "train-00000.tar toy_train0_000: not an image",
        "train-00000.tar : captions is 3, the manifest says 6",
        "train-00000.tar toy_train0_002: broken JSON",
        "train-00001.tar : has",
        "is cut short",
        "val-00000.tar : cannot be read: No such file",
        "stray.tar : not in the manifest",
        ".partial : left over",
    ):
        assert text in found
    assert problems(directory, workers=2) == problems(directory)


def test_a_caption_that_is_not_utf8_is_named(directory: Path) -> None:
    path = directory / "val-00000.tar"
    info = member(path, "toy_val0_001.json")
    text = path.read_bytes()[info.offset_data : info.offset_data + info.size]
    overwrite(path, info.offset_data + text.index(b"caption 1"), b"\xff")
    assert "val-00000.tar toy_val0_001: caption 1: caption not UTF-8" in "\n".join(problems(directory))


def rewrite(directory: Path, split: str, samples: list[Sample], written_split: str | None = None) -> None:
    """Replace the only shard of ``split``, and its entry in the manifest."""
    manifest = Manifest.load(directory)
    info = write_shard(directory / f"{split}-00000.tar", samples, written_split or split)
    Manifest(manifest.name, {}, dict(manifest.splits) | {split: Split((info,))}).save(directory)


def test_a_key_in_two_splits_is_a_leak(directory: Path, samples: Callable[..., list[Sample]]) -> None:
    rewrite(directory, "val", samples(2, "toy_train1_"))
    assert problems(directory) == [
        "val-00000.tar toy_train1_000: the key is also in train-00001.tar",
        "val-00000.tar toy_train1_001: the key is also in train-00001.tar",
    ]


def test_records_of_another_split_are_named(directory: Path, samples: Callable[..., list[Sample]]) -> None:
    rewrite(directory, "val", samples(1), written_split="train")
    assert problems(directory) == ["val-00000.tar s000: its JSON has the split 'train', not 'val'"]


def test_a_lying_manifest_is_found(directory: Path) -> None:
    manifest = Manifest.load(directory)
    lie = replace(manifest.splits["val"].shards[0], captions=99, keys_sha256="0" * 64)
    replace(manifest, splits=dict(manifest.splits) | {"val": Split((lie,))}).save(directory)
    found = problems(directory)
    assert "val-00000.tar : captions is 3, the manifest says 99" in found
    assert any("keys_sha256 is" in text for text in found)


def test_an_index_that_lies_or_lacks(directory: Path, samples: Callable[..., list[Sample]]) -> None:
    index_path(directory / "val-00000.tar").unlink()
    other = directory.parent / "other.tar"
    write_shard(other, samples(3, "toy_train0_"), "trian")  # the same size, but other text
    assert other.stat().st_size == (directory / "train-00000.tar").stat().st_size
    write_shard(other, [*samples(2, "toy_train0_"), *samples(1, "zzz_train0_")], "train")
    index_path(other).replace(index_path(directory / "train-00000.tar"))
    assert problems(directory) == [
        "train-00000.tar : its index disagrees with the tar: delete the .index.npz, it is rebuilt at the next use",
        "val-00000.tar : its index is missing or stale (it is rebuilt at the next use)",
    ]


def test_an_extension_that_lies(directory: Path) -> None:
    path = directory / "val-00000.tar"
    info = member(path, "toy_val0_000.jpg")
    with tarfile.open(path) as tar:
        members = [(m, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
    with tarfile.open(path, "w") as tar:
        for m, data in members:
            m.name = m.name.replace("toy_val0_000.jpg", "toy_val0_000.png")
            tar.addfile(m, io.BytesIO(data))
    assert info.size
    assert "toy_val0_000: its content is jpg, its name says png" in "\n".join(problems(directory))


def test_the_report_counts(directory: Path) -> None:
    content = json.loads((directory / "manifest.json").read_text())
    report = verify(directory)
    assert report.manifest.images == sum(split["images"] for split in content["splits"].values())
    assert report.seconds > 0
