"""A bounded local copy of a remote dataset, shared by processes, from servers that misbehave."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssmke.data.dataset import ImageTextShards
from ssmke.data.manifest import Manifest, ShardInfo, Split
from ssmke.data.remote.fetch import RemoteConfig
from ssmke.data.remote.mirror import Mirror, gave_way
from ssmke.data.remote.room import listing_lock
from ssmke.data.shards import ShardIndex
from ssmke.errors import ConfigError, DataError
from tests.data.remote.server import MisbehavingServer, at_random

ROOT = Path(__file__).resolve().parents[3]
SIZE = 400_000


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., RemoteConfig]:
    """``config(shards=2)``: room for so many shards of `raw`."""

    def make(shards: float | None = None, **options: Any) -> RemoteConfig:
        options = {"retries": 6, "timeout_seconds": 0.4} | options
        if shards is not None:
            options["cache_gigabytes"] = shards * SIZE / 1e9
        return RemoteConfig(cache_dir=str(tmp_path / "cache"), **options)

    return make


@pytest.fixture
def raw(tmp_path: Path) -> Callable[..., list[ShardInfo]]:
    """``raw(count, seed)``: a remote folder ``remote/raw`` of tars of `SIZE` random bytes, with their manifest."""

    def make(count: int = 4, seed: int = 0, size: int = SIZE) -> list[ShardInfo]:
        folder = tmp_path / "remote" / "raw"
        folder.mkdir(parents=True, exist_ok=True)
        infos = []
        for number in range(count):
            content = random.Random(f"{seed} {number}").randbytes(size)
            path = folder / f"train-{number:05d}.tar"
            path.write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            infos.append(ShardInfo(path.name, 1, 1, len(content), digest, "0" * 64))
        Manifest("raw", {}, {"train": Split(tuple(infos))}).save(folder)
        return infos

    return make


def tars(mirror: Mirror) -> list[str]:
    return sorted(path.name for path in mirror.folder.glob("*.tar"))


def partials(mirror: Mirror) -> list[Path]:
    return sorted(mirror.folder.glob(".*.partial"))


def right(mirror: Mirror, info: ShardInfo) -> bool:
    return hashlib.sha256((mirror.folder / info.file).read_bytes()).hexdigest() == info.sha256


def infos_of(folder: Path) -> list[ShardInfo]:
    return [info for split in Manifest.load(folder).splits.values() for info in split.shards]


def unreliable(seed: int, share: float) -> Callable[[str, int], str]:
    """Faults at random, but a manifest whose bytes are right: nothing else vouches for them."""
    draw = at_random(seed, share)
    return lambda name, number: (
        fault if (fault := draw(name, number)) != "wrong" or "json" not in name else ""
    )


@pytest.mark.parametrize("seed", [0, 4])
def test_a_dataset_comes_whole_from_a_server_that_misbehaves(
    dataset: Callable[..., Path], config: Callable[..., RemoteConfig], seed: int
) -> None:
    folder = dataset("toy", {"train": [3, 2, 4], "val": [2]})
    patient = config(retries=12, timeout_seconds=0.3)
    with MisbehavingServer(folder.parent, unreliable(seed, 0.6)) as server:
        mirror = Mirror.open(f"{server.url}/toy", patient)
        infos = infos_of(mirror.folder)
        counts = mirror.indexes(infos)
        for info in infos:
            mirror.ensure(info)
    assert sum(server.faults.values()) - server.faults[""] >= 4
    for path in folder.iterdir():
        assert (mirror.folder / path.name).read_bytes() == path.read_bytes(), path.name
    assert [array.tolist() for array in counts] == [[1, 2, 3], [1, 2], [1, 2, 3, 1], [1, 2]]
    here, there = (ImageTextShards.open([place], "train") for place in (mirror.folder, folder))
    assert [here.read(i) for i in range(here.images)] == [there.read(i) for i in range(there.images)]


def test_a_tar_that_is_here_is_not_asked_for_again(
    raw: Callable[..., list[ShardInfo]], config: Callable[..., RemoteConfig], tmp_path: Path
) -> None:
    infos = raw(2)
    with MisbehavingServer(tmp_path / "remote") as server:
        mirror = Mirror.open(f"{server.url}/raw/", config())
        for _ in range(3):
            assert mirror.ensure(infos[0]) == mirror.folder / infos[0].file
        again = pickle.loads(pickle.dumps(Mirror.open(f"{server.url}/raw", config())))
        again.ensure(infos[0])
        assert server.requests["raw/train-00000.tar"] == 1
        (mirror.folder / infos[0].file).write_bytes(b"cut")
        again.ensure(infos[0])
        assert server.requests["raw/train-00000.tar"] == 2
    assert right(mirror, infos[0])


def test_the_least_recently_used_gives_way(
    raw: Callable[..., list[ShardInfo]], config: Callable[..., RemoteConfig], tmp_path: Path
) -> None:
    a, b, c, _ = raw(4)
    with MisbehavingServer(tmp_path / "remote") as server:
        mirror = Mirror.open(f"{server.url}/raw", config(2.5))
        (mirror.folder / "targets").mkdir()
        (mirror.folder / "targets" / "old.tar").write_bytes(b"not a shard of ours")
        for info in (a, b, a):
            mirror.ensure(info)
        with (mirror.folder / b.file).open("rb") as file:
            mirror.ensure(c)
            assert tars(mirror) == [a.file, c.file]
            assert hashlib.sha256(file.read()).hexdigest() == b.sha256, "who has it open reads on"
    for read in (
        ShardIndex.load,
        lambda path: ShardIndex(path, *[np.zeros((1, 5), np.int64)] * 2, None).read_bytes(0),
    ):
        with pytest.raises(DataError) as gone:
            read(mirror.folder / b.file)
        assert gave_way(gone.value)
    with pytest.raises(DataError) as damaged:
        ShardIndex.load(mirror.folder / a.file)
    assert not gave_way(damaged.value)
    assert (mirror.folder / "targets" / "old.tar").exists()
    assert (mirror.folder / "manifest.json").exists()


def test_a_shard_larger_than_the_bound(
    raw: Callable[..., list[ShardInfo]], config: Callable[..., RemoteConfig], tmp_path: Path
) -> None:
    infos = raw(1)
    with MisbehavingServer(tmp_path / "remote") as server:
        mirror = Mirror.open(f"{server.url}/raw", config(0.9))
        with pytest.raises(ConfigError, match=r"train-00000.tar .*--data.remote.cache-gigabytes"):
            mirror.ensure(infos[0])
        assert server.requests["raw/train-00000.tar"] == 0


def ensure_all(mirror: Mirror, infos: Sequence[ShardInfo], failed: Any) -> None:
    """What a worker does: opens each shard, and asks again for one that gave way before it was open."""
    for info in infos:
        while True:
            try:
                content = mirror.ensure(info).read_bytes()
            except FileNotFoundError:
                continue
            break
        if hashlib.sha256(content).hexdigest() != info.sha256:
            failed.value += 1


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_fetch_each_shard_once(
    raw: Callable[..., list[ShardInfo]], config: Callable[..., RemoteConfig], tmp_path: Path, method: str
) -> None:
    infos = raw(3)
    context = multiprocessing.get_context(method)
    slow = {"train-00000.tar": "stall"}  # so that the others come while it is under way
    with MisbehavingServer(
        tmp_path / "remote", lambda name, number: slow.get(name[4:], "") if number == 0 else ""
    ) as server:
        mirror = Mirror.open(f"{server.url}/raw", config())
        failed = context.Value("i", 0)
        workers = [context.Process(target=ensure_all, args=(mirror, infos, failed)) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)
        assert [worker.exitcode for worker in workers] == [0, 0, 0]
        assert failed.value == 0
        assert all(server.served[f"raw/{info.file}"] == SIZE for info in infos)


def test_the_bound_holds_at_all_times_for_all_processes_together(
    raw: Callable[..., list[ShardInfo]], config: Callable[..., RemoteConfig], tmp_path: Path
) -> None:
    infos = raw(5)
    seen: list[int] = []
    draw = at_random(0, 0.3, ("cut", "500", "stall halfway"))

    def misbehave(name: str, number: int) -> str:
        if name.endswith(".tar"):
            with listing_lock(mirror.folder):
                names = [path.name for path in mirror.folder.iterdir()]
            seen.append(SIZE * sum(name.endswith(".tar") or ".tar." in name for name in names))
        return draw(name, number)

    context = multiprocessing.get_context("fork")
    with MisbehavingServer(tmp_path / "remote", misbehave) as server:
        mirror = Mirror.open(f"{server.url}/raw", config(2.2, timeout_seconds=0.2, retries=20))
        failed = context.Value("i", 0)
        orders = [random.Random(seed).sample(infos, len(infos)) for seed in range(3)]
        workers = [context.Process(target=ensure_all, args=(mirror, order, failed)) for order in orders]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert failed.value == 0
    assert SIZE <= max(seen) <= 2.2 * SIZE
    assert len(tars(mirror)) <= 2


FETCH_AND_DIE = """
import sys
from pathlib import Path
from ssmke.data.manifest import Manifest
from ssmke.data.remote.fetch import RemoteConfig
from ssmke.data.remote.mirror import Mirror
mirror = Mirror.open(sys.argv[1], RemoteConfig(cache_dir=sys.argv[2], timeout_seconds=20))
mirror.ensure(Manifest.load(mirror.folder).splits["train"].shards[0])
"""


def start(script: str, *args: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_killed_process_leaves_what_the_next_goes_on_from(
    raw: Callable[..., list[ShardInfo]], config: Callable[..., RemoteConfig], tmp_path: Path
) -> None:
    [info] = raw(1, size=4_000_000)
    tar = f"raw/{info.file}"
    with MisbehavingServer(
        tmp_path / "remote", lambda name, number: "drip" if (name, number) == (tar, 0) else ""
    ) as server:
        server.drip_bytes, server.drip_seconds = 100_000, 0.02
        victim = start(FETCH_AND_DIE, f"{server.url}/raw", tmp_path / "cache")
        mirror = Mirror.open(f"{server.url}/raw", config())
        wait_for(lambda: any(path.stat().st_size > 1_000_000 for path in partials(mirror)))
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        [partial] = partials(mirror)
        there = partial.stat().st_size
        with server.guard:
            server.served[tar] = -10_000_000  # the old connection may still count a little
        mirror = Mirror.open(f"{server.url}/raw", config())
        mirror.ensure(info)
        assert right(mirror, info)
        assert server.requests[tar] == 2
        assert server.served[tar] + 10_000_000 < 4_000_000
        assert there >= 1_000_000
    assert partials(mirror) == []


def test_a_left_over_partial_file_gives_way(
    raw: Callable[..., list[ShardInfo]], config: Callable[..., RemoteConfig], tmp_path: Path
) -> None:
    a, b = raw(2)
    with MisbehavingServer(
        tmp_path / "remote", lambda name, number: "cut" if "00000" in name else ""
    ) as server:
        mirror = Mirror.open(f"{server.url}/raw", config(1.5, retries=0))
        with pytest.raises(DataError, match=r"train-00000.tar could not be fetched"):
            mirror.ensure(a)
        assert len(partials(mirror)) == 1
        mirror.ensure(b)
    assert tars(mirror) == [b.file]
    assert partials(mirror) == []


def test_what_was_replaced_at_its_place_is_dropped(
    dataset: Callable[..., Path],
    config: Callable[..., RemoteConfig],
    raw: Callable[..., list[ShardInfo]],
    tmp_path: Path,
) -> None:
    old = raw(2, seed=0)
    with MisbehavingServer(tmp_path / "remote") as server:
        mirror = Mirror.open(f"{server.url}/raw", config())
        for info in old:
            mirror.ensure(info)
        index = mirror.folder / "train-00000.index.npz"
        index.write_bytes(b"of the old tar")
        new = raw(1, seed=1)  # same name, same size, other bytes
        (mirror.folder / old[0].file).unlink()
        with pytest.raises(DataError, match=r"/raw/train-00000.tar is not the file.*manifest"):
            mirror.ensure(old[0])
        (mirror.folder / old[0].file).write_bytes(b"x" * SIZE)
        mirror = Mirror.open(f"{server.url}/raw", config())
        assert tars(mirror) == []
        assert not index.exists()
        mirror.ensure(new[0])
        assert right(mirror, new[0])
        assert infos_of(mirror.folder) == new


def test_tars_that_were_put_there_by_hand_are_checked_and_kept(
    raw: Callable[..., list[ShardInfo]], config: Callable[..., RemoteConfig], tmp_path: Path
) -> None:
    infos = raw(2)
    with MisbehavingServer(tmp_path / "remote") as server:
        mirror = Mirror.open(f"{server.url}/raw", config())
        (mirror.folder / infos[0].file).write_bytes(
            (tmp_path / "remote" / "raw" / infos[0].file).read_bytes()
        )
        (mirror.folder / infos[1].file).write_bytes(bytes(SIZE))
        mirror = Mirror.open(f"{server.url}/raw", config())
        for info in infos:
            mirror.ensure(info)
            assert right(mirror, info)
        assert server.requests[f"raw/{infos[0].file}"] == 0
        assert server.requests[f"raw/{infos[1].file}"] == 1


@pytest.mark.parametrize("how", ["missing", "denied", "of another shard", "damaged"])
def test_a_remote_without_usable_indexes(
    dataset: Callable[..., Path],
    config: Callable[..., RemoteConfig],
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    folder = dataset("toy", {"train": [3, 2]})
    first, second = folder / "train-00000.index.npz", folder / "train-00001.index.npz"
    whole = first.read_bytes()
    if how == "missing":
        first.unlink()
    elif how == "of another shard":
        first.write_bytes(second.read_bytes())
    elif how == "damaged":  # in a part that is not needed to open the dataset
        with np.load(first) as index:
            at = whole.index(index["image_offset"].tobytes())
        first.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    denied = {"toy/train-00000.index.npz": "403"} if how == "denied" else {}
    with MisbehavingServer(folder.parent, lambda name, number: denied.get(name, "")) as server:
        mirror = Mirror.open(f"{server.url}/toy", config())
        counts = mirror.indexes(infos_of(mirror.folder))
        assert [array.tolist() for array in counts] == [[1, 2, 3], [1, 2]]
        assert server.requests["toy/train-00000.tar"] == 1
        assert server.requests["toy/train-00001.tar"] == 0
        asked = sum(server.requests.values())
        mirror.indexes(infos_of(mirror.folder))
        assert sum(server.requests.values()) == asked
    with np.load(mirror.folder / first.name) as made, np.load(io.BytesIO(whole)) as true:
        assert all(np.array_equal(made[name], true[name]) for name in true.files)
    assert "train-00000.index.npz" in caplog.text


def test_one_index_that_does_not_come_ends_it(
    dataset: Callable[..., Path], config: Callable[..., RemoteConfig]
) -> None:
    folder = dataset("toy", {"train": [1] * 12})
    with MisbehavingServer(
        folder.parent, lambda name, number: "503" if "00003.index" in name else ""
    ) as server:
        mirror = Mirror.open(f"{server.url}/toy", config(retries=1))
        with pytest.raises(DataError, match=r"train-00003.index.npz could not be fetched.*503"):
            mirror.indexes(infos_of(mirror.folder))


def test_fetching_ahead(
    raw: Callable[..., list[ShardInfo]], config: Callable[..., RemoteConfig], tmp_path: Path, caplog: Any
) -> None:
    infos = raw(5)
    bad = "raw/train-00001.tar"
    with MisbehavingServer(
        tmp_path / "remote", lambda name, number: "404" if name == bad and number == 0 else ""
    ) as server:
        mirror = Mirror.open(f"{server.url}/raw", config(3.5))
        mirror.ensure(infos[4])
        mirror.ensure(infos[0])
        with caplog.at_level(logging.WARNING):
            mirror.prefetch(infos[:4])
            wait_for(lambda: infos[3].file in tars(mirror) and not partials(mirror))
        assert tars(mirror) == [infos[i].file for i in (0, 2, 3)], (
            "number 4 gave way, none of those wanted did"
        )
        assert "train-00001.tar was not fetched ahead" in caplog.text
        asked = sum(server.requests.values())
        for i in (0, 2, 3):
            mirror.ensure(infos[i])
        assert sum(server.requests.values()) == asked
        mirror.ensure(infos[1])
        assert tars(mirror) == [infos[i].file for i in (1, 2, 3)]
        mirror.prefetch(infos[1:])  # there is no room for number 4 beside these
        mirror.prefetch([])
        assert right(mirror, infos[1])


def ensure_one(mirror: Mirror, info: ShardInfo) -> None:
    mirror.prefetch([info])
    mirror.ensure(info)


def test_a_fork_while_fetching_ahead(
    raw: Callable[..., list[ShardInfo]], config: Callable[..., RemoteConfig], tmp_path: Path
) -> None:
    infos = raw(2)
    with MisbehavingServer(
        tmp_path / "remote", lambda name, number: "stall" if "00000" in name else ""
    ) as server:
        mirror = Mirror.open(f"{server.url}/raw", config(timeout_seconds=0.5, retries=1000))
        mirror.prefetch([infos[0]])
        wait_for(lambda: server.requests["raw/train-00000.tar"])
        child = multiprocessing.get_context("fork").Process(target=ensure_one, args=(mirror, infos[1]))
        child.start()
        child.join(30)
        assert child.exitcode == 0
        assert right(mirror, infos[1])
        server.misbehave = lambda name, number: ""
        wait_for(lambda: infos[0].file in tars(mirror))


def test_a_process_ends_while_it_fetches_ahead(raw: Callable[..., list[ShardInfo]], tmp_path: Path) -> None:
    raw(1)
    with MisbehavingServer(
        tmp_path / "remote", lambda name, number: "stall" if "tar" in name else ""
    ) as server:
        process = start(FETCH_AHEAD_AND_END, f"{server.url}/raw", tmp_path / "cache")
        assert process.wait(30) == 0
        assert server.requests["raw/train-00000.tar"] == 1


FETCH_AHEAD_AND_END = """
import sys, time
from ssmke.data.manifest import Manifest
from ssmke.data.remote.fetch import RemoteConfig
from ssmke.data.remote.mirror import Mirror
mirror = Mirror.open(sys.argv[1], RemoteConfig(cache_dir=sys.argv[2], timeout_seconds=600))
mirror.prefetch(Manifest.load(mirror.folder).splits["train"].shards)
while not list(mirror.folder.glob(".*.partial")):
    time.sleep(0.01)
time.sleep(0.2)
"""


def naming(*files: str) -> bytes:
    """A manifest of shards of these names, each in a split of its own."""
    shard = {"images": 1, "captions": 1, "bytes": 1, "sha256": "", "keys_sha256": ""}
    splits = {
        f"s{number}": {"images": 1, "captions": 1, "shards": [shard | {"file": file}]}
        for number, file in enumerate(files)
    }
    manifest = {"format": "ssmke-shards/1", "name": "x", "source": {}, "skipped": {}, "splits": splits}
    return json.dumps(manifest).encode()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"/raw/manifest.json cannot be fetched.*404"),
        (b"{", r"http://127.0.0.1:\d+/raw/manifest.json is damaged: it is not JSON"),
        (naming(".."), r"manifest.json is damaged: .*file is '\.\.'"),
        (naming("a\0.tar"), r"manifest.json is damaged: .*file is 'a\\x00.tar'"),
        (naming("a.tar", "a.tar"), r"manifest.json lists the shard 'a.tar' more than once"),
    ],
)  # fmt: skip
def test_manifests_that_are_none(
    config: Callable[..., RemoteConfig], tmp_path: Path, content: bytes | None, said: str
) -> None:
    (tmp_path / "remote" / "raw").mkdir(parents=True)
    if content is not None:
        (tmp_path / "remote" / "raw" / "manifest.json").write_bytes(content)
    with MisbehavingServer(tmp_path / "remote") as server, pytest.raises(DataError, match=said) as caught:
        Mirror.open(f"{server.url}/raw", config())
    assert "/tmp" not in str(caught.value)


def test_a_signed_address(
    raw: Callable[..., list[ShardInfo]], config: Callable[..., RemoteConfig], tmp_path: Path
) -> None:
    [info] = raw(1)
    with MisbehavingServer(tmp_path / "remote") as server:
        first = Mirror.open(f"{server.url}/raw?signature=1", config())
        first.ensure(info)
        second = Mirror.open(f"{server.url}/raw/?signature=2", config())
        second.ensure(info)
        assert first.folder == second.folder
        assert server.requests[f"raw/{info.file}"] == 1


def test_a_local_folder_behind_a_file_url(
    dataset: Callable[..., Path], config: Callable[..., RemoteConfig]
) -> None:
    folder = dataset("toy")
    mirror = Mirror.open(f"file://{folder}", config())
    for info in infos_of(mirror.folder):
        mirror.indexes([info])
        mirror.ensure(info)
        assert right(mirror, info)


def test_a_full_disk_names_the_flags(
    raw: Callable[..., list[ShardInfo]], tmp_path: Path, caplog: Any
) -> None:
    infos = raw(4)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        with MisbehavingServer(tmp_path / "remote") as server:
            mirror = Mirror.open(f"{server.url}/raw", RemoteConfig(cache_dir=str(disk)))
            assert "give a smaller --data.remote.cache-gigabytes" in caplog.text
            mirror.ensure(infos[0])
            mirror.ensure(infos[1])
            with pytest.raises(
                DataError, match=r"disk is full.*--data.remote.cache-gigabytes.*--data.remote.cache-dir"
            ):
                mirror.ensure(infos[2])
            assert right(mirror, infos[0])
            small = Mirror.open(
                f"{server.url}/raw", RemoteConfig(cache_dir=str(disk), cache_gigabytes=2.2 * SIZE / 1e9)
            )
            small.ensure(infos[2])
            assert right(small, infos[2])
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
