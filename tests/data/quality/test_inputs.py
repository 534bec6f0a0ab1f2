"""An index is derived, so one that does not belong to its shard must cost nothing but time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ssmke.data.manifest import Manifest, Split
from ssmke.data.quality.inputs import input_shards
from ssmke.data.reshard import ReshardConfig, reshard
from ssmke.data.shards import Sample, index_path, write_shard
from ssmke.errors import DataError


@pytest.fixture
def twins(tmp_path: Path, samples: Callable[..., list[Sample]]) -> Path:
    """A dataset of two shards of one size, with the same sizes of everything in them."""
    folder = tmp_path / "twins"
    folder.mkdir()
    infos = []
    for number, prefix in enumerate("ab"):
        shard = [
            Sample(f"{prefix}{i}", sample.image, (f"caption {i} of {prefix}",), "toy", {})
            for i, sample in enumerate(samples(10))
        ]
        infos.append(write_shard(folder / f"train-{number:05d}.tar", shard, "train"))
    assert infos[0].bytes == infos[1].bytes
    Manifest("twins", {"fingerprint": "t"}, {"train": Split(tuple(infos))}).save(folder)
    return folder


def spoil(path: Path, **arrays: np.ndarray) -> None:
    with np.load(path) as index:
        columns = dict(index) | arrays
    np.savez(path, **columns)


def test_the_index_of_another_shard_loses_no_image(twins: Path, tmp_path: Path) -> None:
    wrong = index_path(twins / "train-00000.tar")
    shutil.copy(index_path(twins / "train-00001.tar"), wrong)
    before = wrong.read_bytes()
    reshard(ReshardConfig((twins,), tmp_path / "out"), workers=1)
    made = Manifest.load(tmp_path / "out")
    assert made.images == 20
    assert not made.skipped
    assert wrong.read_bytes() == before, "an input is never written to"


@pytest.mark.parametrize(
    "arrays",
    [
        {"keys": np.array(["k"] * 10)},
        {"keys": np.array([f"a{i}" for i in range(9)])},
        {"keys": np.arange(10)},
        {"captions": np.array([1, 3] * 5, np.int32)},
        {"captions": -np.ones(10, np.int32)},
    ],
    ids=["keys", "fewer keys", "no keys", "captions", "negative"],
)
def test_a_wrong_index_is_made_again_in_memory(twins: Path, arrays: dict[str, np.ndarray]) -> None:
    path = index_path(twins / "train-00000.tar")
    spoil(path, **arrays)
    before = path.read_bytes()
    index = input_shards([twins])[0].open()
    assert index.keys.tolist() == [f"a{i}" for i in range(10)]
    assert index.captions.tolist() == [1] * 10
    assert index.read(3).key == "a3"
    assert path.read_bytes() == before


def test_another_shard_of_the_same_size_is_refused(twins: Path) -> None:
    for name in (Path, index_path):
        shutil.copy(name(twins / "train-00001.tar"), name(twins / "train-00000.tar"))
    with pytest.raises(
        DataError, match=r"train-00000\.tar holds other samples than the manifest says\. Copy"
    ):
        input_shards([twins])[0].open()
