from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssmke.data.dataset import ImageTextShards
from ssmke.data.manifest import Manifest, ShardInfo, Split
from ssmke.errors import DataError

MakeDataset = Callable[..., Path]


def test_directories_are_numbered_through(dataset: MakeDataset) -> None:
    one, two = dataset("one", {"train": [3, 2]}), dataset("two", {"train": [4], "val": [1]})
    shards = ImageTextShards.open([one, two], "train")
    assert (shards.images, len(shards)) == (9, 9)
    assert [first for _, _, first in shards.shards] == [0, 3, 5]
    assert [path for path, _, _ in shards.shards] == [
        one / "train-00000.tar", one / "train-00001.tar", two / "train-00000.tar"
    ]  # fmt: skip
    keys = [shards.key(i) for i in range(9)]
    assert keys[2:6] == ["one_train0_002", "one_train1_000", "one_train1_001", "two_train0_000"]
    samples = [shards.read(i) for i in range(9)]
    assert [sample.key for sample in samples] == keys
    # Pair by pair, as a reader would spell it out.
    expected = [(i, j) for i, sample in enumerate(samples) for j in range(len(sample.captions))]
    assert shards.pairs == len(expected)
    assert [shards.pair(p) for p in range(shards.pairs)] == expected
    assert list(zip(shards.pair_image.tolist(), shards.pair_caption.tolist(), strict=True)) == expected
    for number in (-1, 9):
        with pytest.raises(IndexError):
            shards.read(number)
    with pytest.raises(IndexError):
        shards.pair(shards.pairs)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(1, 40))
def test_pairs_are_those_of_a_plain_loop(counts: list[int], per_shard: int) -> None:
    infos = [
        (Path(f"{i}.tar"), ShardInfo(f"{i}.tar", len(part), sum(part), 0, "", ""))
        for i, part in enumerate(counts[i : i + per_shard] for i in range(0, len(counts), per_shard))
    ]
    shards = ImageTextShards(infos, np.array(counts, np.int32))
    expected = [(i, j) for i, count in enumerate(counts) for j in range(count)]
    images, captions = shards.pairs_at(np.arange(shards.pairs))
    assert list(zip(images.tolist(), captions.tolist(), strict=True)) == expected
    assert list(zip(shards.pair_image.tolist(), shards.pair_caption.tolist(), strict=True)) == expected
    assert [shards.shard_of(i) for i in range(shards.images)] == [
        divmod(i, per_shard) for i in range(len(counts))
    ]


def test_no_directory_no_manifest_no_split(dataset: MakeDataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no dataset directories"):
        ImageTextShards.open([], "train")
    with pytest.raises(DataError, match="does not exist"):
        ImageTextShards.open([tmp_path / "nowhere"], "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no manifest\.json"):
        ImageTextShards.open([tmp_path / "empty"], "train")
    with pytest.raises(DataError, match="has no split 'test'; its splits: train, val"):
        ImageTextShards.open([dataset()], "test")
    Manifest("none", {}, {"train": Split(())}).save(tmp_path / "empty")
    with pytest.raises(DataError, match=r"'train' of .* is empty"):
        ImageTextShards.open([tmp_path / "empty"], "train")


def test_a_shard_that_is_missing_cut_or_replaced_is_noticed_when_opening(dataset: MakeDataset) -> None:
    directory = dataset()
    path = directory / "train-00001.tar"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(DataError, match=rf"{path} was cut short: it has .* bytes, the manifest says"):
        ImageTextShards.open([directory], "train")
    path.write_bytes((directory / "train-00000.tar").read_bytes() + data)
    with pytest.raises(DataError, match="was replaced"):
        ImageTextShards.open([directory], "train")
    path.unlink()
    with pytest.raises(DataError, match=rf"{path} .* cannot be read \(No such file"):
        ImageTextShards.open([directory], "train")
    assert ImageTextShards.open([directory], "val").images == 2


def _keys(shards: ImageTextShards, queue: multiprocessing.Queue[list[str]]) -> None:
    queue.put([shards.read(i).key for i in range(shards.images)])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_read_what_the_parent_reads(dataset: MakeDataset, method: str) -> None:
    shards = ImageTextShards.open([dataset("big", {"train": [2] * 5})], "train")
    expected = [shards.read(i).key for i in range(10)]
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_keys, args=(shards, queue))
    process.start()
    assert queue.get(timeout=60) == expected
    process.join()
    assert [shards.read(i).key for i in range(10)] == expected


def test_a_copy_is_small_and_equal(dataset: MakeDataset) -> None:
    shards = ImageTextShards.open([dataset()], "train")
    shards.read(0)
    shards.pair_image  # noqa: B018 - to be left behind
    copy = pickle.loads(pickle.dumps(shards))
    assert (copy.shards, copy.pairs) == (shards.shards, shards.pairs)
    assert copy.read(4) == shards.read(4)
    assert "pair_image" not in vars(copy)


def test_more_shards_than_open_files(dataset: MakeDataset) -> None:
    shards = ImageTextShards.open([dataset("many", {"train": [1] * 150})], "train")
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert len({shards.read(i).key for i in range(150)}) == 150
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 132
