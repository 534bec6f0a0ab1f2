"""Shards in an object store: a real S3 API on this machine, and one that misbehaves."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ssmke.data.manifest import Manifest, ShardInfo
from ssmke.data.remote import sources
from ssmke.data.remote.fetch import RefusedError, RemoteConfig
from ssmke.data.remote.mirror import Mirror
from ssmke.errors import DataError
from tests.data.remote.server import MisbehavingServer, at_random

pytest.importorskip("s3fs")
pytest.importorskip("moto")
boto3 = pytest.importorskip("boto3")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of nobody, in place of those of the machine; and a fresh file system, since it remembers where S3 is."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setattr(sources, "_file_systems", {})


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of an object store, with an empty bucket named "bucket"."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    boto3.client("s3").create_bucket(Bucket="bucket")
    yield f"http://{host}:{port}"
    server.stop()


def upload(folder: Path) -> None:
    for path in folder.iterdir():
        boto3.client("s3").upload_file(str(path), "bucket", f"data/{folder.name}/{path.name}")


def infos_of(mirror: Mirror) -> list[ShardInfo]:
    return [info for split in Manifest.load(mirror.folder).splits.values() for info in split.shards]


def ensure(mirror: Mirror, info: ShardInfo) -> None:
    mirror.ensure(info)


def test_a_dataset_in_a_bucket(dataset: Callable[..., Path], s3: str, tmp_path: Path) -> None:
    folder = dataset("toy", {"train": [3, 2], "val": [2]})
    upload(folder)
    mirror = Mirror.open("s3://bucket/data/toy", RemoteConfig(cache_dir=str(tmp_path / "cache"), retries=2))
    first, *others = infos_of(mirror)
    counts = mirror.indexes([first, *others])
    assert [len(array) for array in counts] == [3, 2, 2]
    mirror.ensure(first)
    for method, info in zip(("fork", "spawn"), others, strict=True):  # as the workers of a DataLoader do
        worker = multiprocessing.get_context(method).Process(target=ensure, args=(mirror, info))
        worker.start()
        worker.join(60)
        assert worker.exitcode == 0
    for path in folder.iterdir():
        assert (mirror.folder / path.name).read_bytes() == path.read_bytes()


def test_what_is_not_in_the_bucket(dataset: Callable[..., Path], s3: str, tmp_path: Path) -> None:
    folder = dataset("toy", {"train": [2]})
    (folder / "train-00000.index.npz").unlink()
    upload(folder)
    config = RemoteConfig(cache_dir=str(tmp_path / "cache"), retries=2)
    with pytest.raises(RefusedError, match=r"s3://bucket/data/other/manifest.json .*no such file"):
        Mirror.open("s3://bucket/data/other", config)
    with pytest.raises(DataError, match=r"s3://nobucket/toy/manifest.json cannot be fetched"):
        Mirror.open("s3://nobucket/toy", config)
    mirror = Mirror.open("s3://bucket/data/toy", config)
    [counts] = mirror.indexes(infos_of(mirror))
    assert counts.tolist() == [1, 2]


@pytest.mark.parametrize("seed", range(2))
def test_an_object_store_that_misbehaves(
    dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int
) -> None:
    folder = dataset("toy", {"train": [3, 2], "val": [2]})
    draw = at_random(seed, 0.5, ("stall", "stall halfway", "cut", "reset", "500", "503", "drip", "wrong"))
    with MisbehavingServer(
        tmp_path,
        lambda name, number: "" if (fault := draw(name, number)) == "wrong" and "json" in name else fault,
    ) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        config = RemoteConfig(cache_dir=str(tmp_path / "cache"), retries=20, timeout_seconds=0.5)
        mirror = Mirror.open("s3://toy", config)  # the bucket is the folder
        infos = infos_of(mirror)
        mirror.indexes(infos)
        for info in infos:
            mirror.ensure(info)
    assert sum(server.faults.values()) > server.faults[""]
    for path in folder.iterdir():
        assert (mirror.folder / path.name).read_bytes() == path.read_bytes()


def test_an_object_store_that_is_dead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with MisbehavingServer(tmp_path, lambda name, number: "stall") as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        config = RemoteConfig(cache_dir=str(tmp_path / "cache"), retries=1, timeout_seconds=0.5)
        with pytest.raises(DataError, match=r"s3://toy/manifest.json could not be fetched, tried 2 times"):
            Mirror.open("s3://toy", config)


def test_no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with MisbehavingServer(tmp_path) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        config = RemoteConfig(cache_dir=str(tmp_path / "cache"), retries=5)
        with pytest.raises(RefusedError, match="AWS_PROFILE, or AWS_ACCESS_KEY_ID"):
            Mirror.open("s3://toy", config)
        assert sum(server.requests.values()) == 0


def test_without_s3fs_its_package_is_named(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from ssmke.data.remote.fetch import RemoteConfig, fetch_bytes\n"
        "fetch_bytes('s3://bucket/x', RemoteConfig(), 1)"
    )
    said = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (
        "ConfigError: s3://bucket/x cannot be read without a further package: pip install s3fs" in said.stderr
    )
