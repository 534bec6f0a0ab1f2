"""Training batches from shards behind a web server: the same ones as from the disk."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssmke.data.augmentation import AugmentationConfig
from ssmke.data.dataset import ImageTextShards
from ssmke.data.manifest import Manifest, Split
from ssmke.data.order import EpochOrder, Source
from ssmke.data.remote.fetch import RemoteConfig
from ssmke.data.shards import Sample, write_shard
from ssmke.data.stream import BatchStream, PairBatches, StreamConfig, StreamPlan
from ssmke.data.verify import verify
from ssmke.errors import ConfigError, DataError
from ssmke.models.student import SSMKE
from ssmke.recipes import RECIPES
from ssmke.training.prepare import epoch_order
from tests.data.remote.server import MisbehavingServer, at_random

SHARDS = 8


@pytest.fixture
def folder(dataset: Callable[..., Path]) -> Path:
    return dataset("far", {"train": [6] * SHARDS, "val": [3]})


@pytest.fixture
def server(folder: Path) -> Iterator[MisbehavingServer]:
    with MisbehavingServer(folder.parent) as running:
        yield running


def batches(shards: ImageTextShards, model: SSMKE, window: int) -> PairBatches:
    order = EpochOrder([Source(shards.pairs)], 7, shards.first_pairs, window)
    return PairBatches(shards, StreamPlan(order, 5, 2), model.tokenizer(), 16, 32, AugmentationConfig())


def room_for(folder: Path, shards: float) -> float:
    return shards * max(path.stat().st_size for path in folder.glob("*.tar")) / 1e9


@pytest.mark.parametrize("workers", [0, 2])
def test_remote_batches_are_those_of_the_disk(
    workers: int, folder: Path, server: MisbehavingServer, model: SSMKE, tmp_path: Path
) -> None:
    server.misbehave = at_random(workers, 0.15, ("cut", "500", "reset", "page", "whole"))
    config = RemoteConfig(str(tmp_path / "cache"), room_for(folder, 5), retries=12, timeout_seconds=2)
    near = batches(ImageTextShards.open([folder], "train"), model, window=2)
    far = batches(ImageTextShards.open([f"{server.url}/far"], "train", config), model, window=2)
    start = 3
    stream = BatchStream(far, StreamConfig(workers=workers), start, pin=False)
    for step, batch in enumerate(stream, start):
        expected = near[step]
        assert batch.keys == expected.keys
        assert torch.equal(batch.images, expected.images)
        assert torch.equal(batch.ids, expected.ids)
        here = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.tar"))
        assert here <= config.cache_gigabytes * 1e9
    assert step + 1 == len(far)
    assert server.faults.total() > server.faults[""]


def test_an_epoch_fetches_every_shard_once(
    folder: Path, server: MisbehavingServer, model: SSMKE, tmp_path: Path
) -> None:
    config = RemoteConfig(str(tmp_path / "cache"), room_for(folder, 5))
    data = batches(ImageTextShards.open([f"{server.url}/far"], "train", config), model, window=2)
    for step in range(data.plan.steps_per_epoch):
        data[step]
    fetched = [server.served[f"far/train-{shard:05d}.tar"] for shard in range(SHARDS)]
    sizes = [(folder / f"train-{shard:05d}.tar").stat().st_size for shard in range(SHARDS)]
    assert sum(fetched) <= sum(sizes) + 2 * max(sizes)  # the next epoch's first window may be on its way


def test_a_shard_that_made_room_comes_again(folder: Path, server: MisbehavingServer, tmp_path: Path) -> None:
    config = RemoteConfig(str(tmp_path / "cache"), room_for(folder, 1.5))
    shards = ImageTextShards.open([f"{server.url}/far"], "train", config)
    there = ImageTextShards.open([folder], "train")
    for image in [0, 7, 1, 13, 2, 45, 0]:
        assert shards.read(image).image == there.read(image).image
    elsewhere = pickle.loads(pickle.dumps(shards))  # a worker that has none of the files open
    assert elsewhere.read(0).image == there.read(0).image
    assert server.requests["far/train-00000.tar"] >= 2


def test_a_server_that_is_gone_is_one_error(folder: Path, server: MisbehavingServer, tmp_path: Path) -> None:
    config = RemoteConfig(str(tmp_path / "cache"), retries=1, timeout_seconds=0.5)
    shards = ImageTextShards.open([f"{server.url}/far"], "train", config)
    server.misbehave = lambda name, number: "500"
    with pytest.raises(DataError, match=r"/far/train-00000\.tar"):
        shards.read(0)


def recipe(tmp_path: Path, *places: str, gigabytes: float = 50.0, window: int | None = None) -> Any:
    made = RECIPES["ssmke-base"]()
    made.data.shards = places
    made.data.stream = StreamConfig(window=window)
    made.data.remote = RemoteConfig(str(tmp_path / "cache"), gigabytes)
    return made


def test_remote_shards_have_windows_and_local_ones_have_none(
    folder: Path, server: MisbehavingServer, tmp_path: Path
) -> None:
    far = recipe(tmp_path, f"{server.url}/far")
    near = recipe(tmp_path, str(folder))
    for made, window in ((far, 16), (near, 0), (recipe(tmp_path, str(folder), window=3), 3)):
        shards = ImageTextShards.open(made.data.places, "train", made.data.remote)
        assert epoch_order(made, shards).window == window
        assert epoch_order(made, shards, reads_shards=False).window == (0 if made is far else window)


def test_windows_that_do_not_fit_are_refused_before_anything_is_fetched(
    folder: Path, server: MisbehavingServer, tmp_path: Path
) -> None:
    made = recipe(tmp_path, f"{server.url}/far", gigabytes=room_for(folder, 3), window=2)
    shards = ImageTextShards.open(made.data.places, "train", made.data.remote)
    with pytest.raises(ConfigError, match=r"--data\.stream\.window 2 .*--data\.remote\.cache-gigabytes"):
        epoch_order(made, shards)
    assert epoch_order(made, shards, reads_shards=False).window == 2
    made.data.stream = StreamConfig(window=1)
    assert epoch_order(made, shards).window == 1
    assert not server.requests["far/train-00000.tar"]


def test_local_shards_do_not_count_as_remote_ones(
    folder: Path, server: MisbehavingServer, dataset: Callable[..., Path], tmp_path: Path
) -> None:
    large = dataset("large", {"train": [60, 60, 60]})
    made = recipe(tmp_path, f"{server.url}/far", str(large), gigabytes=room_for(folder, 4), window=2)
    shards = ImageTextShards.open(made.data.places, "train", made.data.remote)
    assert epoch_order(made, shards).window == 2


def test_a_local_shard_that_is_lost_is_named_as_such(
    server: MisbehavingServer, dataset: Callable[..., Path], tmp_path: Path
) -> None:
    near = dataset("near", {"train": [3]})
    shards = ImageTextShards.open([f"{server.url}/far", near], "train", RemoteConfig(str(tmp_path / "cache")))
    (near / "train-00000.tar").unlink()
    with pytest.raises(DataError, match=r"near/train-00000\.tar is missing"):
        shards.read(shards.images - 1)


def test_a_bad_sample_is_replaced_from_shards_that_are_near(
    dataset: Callable[..., Path], samples: Callable[..., list[Sample]], model: SSMKE, tmp_path: Path
) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    infos = []
    for number in range(12):
        rows = samples(8, f"b{number}_")
        rows[3] = Sample(rows[3].key, rows[3].image[:300], rows[3].captions)
        infos.append(write_shard(folder / f"train-{number:05d}.tar", rows, "train"))
    Manifest("bad", {"fingerprint": "bad"}, {"train": Split(tuple(infos))}).save(folder)
    with MisbehavingServer(tmp_path) as server:
        config = RemoteConfig(str(tmp_path / "cache"), room_for(folder, 4.5))
        data = batches(ImageTextShards.open([f"{server.url}/bad"], "train", config), model, window=2)
        skipped = sum(len(data[step].skipped) for step in range(data.plan.steps_per_epoch))
        fetched = sum(server.requests[f"bad/{info.file}"] for info in infos)
    assert skipped >= 12
    assert fetched <= len(infos) + 4  # at most once each, and what the next epoch begins with


def test_a_shard_that_was_opened_can_be_read_whatever_makes_room(
    folder: Path, server: MisbehavingServer, tmp_path: Path
) -> None:
    config = RemoteConfig(str(tmp_path / "cache"), room_for(folder, 1.2))
    shards = ImageTextShards.open([f"{server.url}/far"], "train", config)
    first = shards.open_shard(0)
    for number in range(1, SHARDS):
        assert shards.fetch(number).exists()
    assert not first.path.exists()
    there = ImageTextShards.open([folder], "train")
    assert [first.read(i).key for i in range(len(first))] == [there.key(i) for i in range(len(first))]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_address_is_verified_with_little_room(
    workers: int, folder: Path, server: MisbehavingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    report = verify(f"{server.url}/far", workers)
    assert report.ok, report.problems
    assert report.manifest.images == 6 * SHARDS + 3


def test_an_address_with_a_damaged_shard_has_a_problem_and_no_more(
    folder: Path, server: MisbehavingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    victim = folder / "train-00002.tar"
    content = bytearray(victim.read_bytes())
    content[700] ^= 1
    victim.write_bytes(content)
    report = verify(f"{server.url}/far")
    assert [problem.file for problem in report.problems] == ["train-00002.tar"]


def test_weights_go_to_the_dataset_that_they_are_said_of(
    folder: Path, server: MisbehavingServer, dataset: Callable[..., Path], tmp_path: Path
) -> None:
    other = dataset("near", {"train": [9]})
    made = recipe(tmp_path, f"far={server.url}/far*0.5", f"near={other}*2")
    shards = ImageTextShards.open(made.data.places, "train", made.data.remote)
    order = epoch_order(made, shards)
    far_pairs, near_pairs = shards.pairs_by_directory
    counts = np.bincount(order.epoch(0), minlength=shards.pairs)
    assert counts[:far_pairs].sum() == round(far_pairs / 2)
    assert counts[far_pairs:].tolist() == [2] * near_pairs
