"""Fetching one file from servers that misbehave."""

from __future__ import annotations

import functools
import hashlib
import http.server
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from ssmke.data.remote.fetch import RefusedError, RemoteConfig, fetch_bytes, fetch_file, is_remote
from ssmke.errors import ConfigError, DataError
from tests.data.remote.server import TRANSIENT, MisbehavingServer, at_random

QUICK = RemoteConfig(retries=6, timeout_seconds=0.4)
CONTENT = random.Random(0).randbytes(3_000_001)
SHA256 = ("sha256", hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    """A folder to serve, with ``file.bin`` in it."""
    folder = tmp_path / "remote"
    folder.mkdir()
    (folder / "file.bin").write_bytes(CONTENT)
    return folder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file shall be."""
    return tmp_path / "local" / "file.bin"


def left_over(path: Path) -> list[Path]:
    return sorted(path.parent.glob(".*"))


@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_fault_costs_time_but_no_byte(remote: Path, path: Path, fault: str) -> None:
    with MisbehavingServer(remote, lambda name, number: fault if number < 2 else "") as server:
        fetch_file(f"{server.url}/file.bin", path, QUICK, size=len(CONTENT), digest=SHA256)
    assert path.read_bytes() == CONTENT
    assert server.faults[fault] == (1 if fault == "whole" else 2)
    assert not left_over(path)


@pytest.mark.parametrize("seed", range(3))
def test_faults_at_random(remote: Path, path: Path, seed: int) -> None:
    with MisbehavingServer(remote, at_random(seed, 0.7)) as server:
        fetch_file(
            f"{server.url}/file.bin", path, RemoteConfig(retries=30, timeout_seconds=0.3), digest=SHA256
        )
    assert path.read_bytes() == CONTENT


def test_only_the_rest_is_fetched_again(remote: Path, path: Path) -> None:
    with MisbehavingServer(remote, lambda name, number: "cut" if number == 0 else "") as server:
        once = RemoteConfig(retries=0, timeout_seconds=5)
        with pytest.raises(DataError, match="what has arrived is kept"):
            fetch_file(f"{server.url}/file.bin", path, once, size=len(CONTENT), digest=SHA256)
        [partial] = left_over(path)
        there, sent = partial.stat().st_size, server.served["file.bin"]
        assert there == sent == len(CONTENT) // 2
        assert partial.read_bytes() == CONTENT[:there]
        seen: list[int] = []
        fetch_file(
            f"{server.url}/file.bin", path, once, size=len(CONTENT), digest=SHA256, on_bytes=seen.append
        )
        assert server.served["file.bin"] - sent == len(CONTENT) - there
    assert path.read_bytes() == CONTENT
    assert seen[0] == there
    assert sum(seen) == len(CONTENT)


def test_a_line_that_breaks_again_and_again(remote: Path, path: Path) -> None:
    content = CONTENT[:200_000]
    (remote / "file.bin").write_bytes(content)
    with MisbehavingServer(remote, lambda name, number: "cut" if number < 17 else "") as server:
        fetch_file(f"{server.url}/file.bin", path, RemoteConfig(retries=18, timeout_seconds=0.05))
        assert server.served["file.bin"] == len(content), "every half that came was of use"
    assert path.read_bytes() == content


class _Plain(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def plain_server(remote: Path) -> Iterator[str]:
    """What ``python -m http.server`` serves with: it ignores ranges."""
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Plain, directory=str(remote))
    )
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_server_without_ranges_is_read_past_what_is_there(
    remote: Path, path: Path, plain_server: str
) -> None:
    with (
        MisbehavingServer(remote, lambda name, number: "cut") as server,
        pytest.raises(DataError),
    ):
        fetch_file(f"{server.url}/file.bin", path, RemoteConfig(retries=0), size=len(CONTENT), digest=SHA256)
    assert left_over(path)[0].stat().st_size > 0
    fetch_file(f"{plain_server}/file.bin", path, QUICK, size=len(CONTENT), digest=SHA256)
    assert path.read_bytes() == CONTENT


def test_without_a_digest_the_version_of_the_server_decides_what_is_taken_up(
    remote: Path, path: Path
) -> None:
    faults = {0: "cut"}
    with MisbehavingServer(remote, lambda name, number: faults.get(number, "")) as server:
        url, once = f"{server.url}/file.bin", RemoteConfig(retries=0)
        with pytest.raises(DataError, match="could not be fetched"):
            fetch_file(url, path, once)
        fetch_file(url, path, once)
        assert path.read_bytes() == CONTENT
        faults |= {server.requests["file.bin"]: "cut"}
        with pytest.raises(DataError, match="could not be fetched"):
            fetch_file(url, path, once)
        other = CONTENT[::-1]
        (remote / "file.bin").write_bytes(other)
        fetch_file(url, path, once)
    assert path.read_bytes() == other
    assert not left_over(path)


@pytest.mark.parametrize(("answer", "said"), [("404", "answered 404"), ("403", "answered 403")])
def test_a_refusal_is_not_asked_about_again(remote: Path, path: Path, answer: str, said: str) -> None:
    with MisbehavingServer(remote, lambda name, number: answer) as server:
        with pytest.raises(RefusedError, match=said) as caught:
            fetch_file(f"{server.url}/file.bin?secret=1", path, QUICK, digest=SHA256)
        assert server.requests["file.bin"] == 1
        assert f"{server.url}/file.bin " in str(caught.value)
        assert "secret" not in str(caught.value)
        assert "Check the address" in str(caught.value)


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("500", "answered 500"),
        ("stall", "within 0.2 s"),
        ("stall halfway", "within 0.2 s"),
        ("drip", "within 0.2 s"),
        ("page", "35 bytes are offered where 3,000,001"),
    ],
)
def test_a_server_that_stays_bad_is_given_up(remote: Path, path: Path, fault: str, cause: str) -> None:
    (remote / "file.bin").write_bytes(CONTENT)
    with MisbehavingServer(remote, lambda name, number: fault) as server:
        with pytest.raises(DataError) as caught:
            fetch_file(
                f"{server.url}/file.bin",
                path,
                RemoteConfig(retries=2, timeout_seconds=0.2),
                size=len(CONTENT),
                digest=SHA256,
            )
        assert server.requests["file.bin"] >= 3
    message = str(caught.value)
    assert server.url in message
    assert "3 times in a row" in message
    assert cause in message
    assert "run the same command again" in message
    assert not path.exists()


def test_nobody_there(path: Path) -> None:
    with pytest.raises(DataError, match=r"http://127.0.0.1:9/x could not be fetched.*[Cc]onnect"):
        fetch_file("http://127.0.0.1:9/x", path, RemoteConfig(retries=1, timeout_seconds=0.2))


def test_another_file_than_expected_is_told_from_a_bad_line(remote: Path, path: Path) -> None:
    wrong = ("sha256", "0" * 64)
    with MisbehavingServer(remote) as server:
        with pytest.raises(DataError, match=r"has the sha256 .* where 0{64} was expected.*upload it again"):
            fetch_file(f"{server.url}/file.bin", path, QUICK, size=len(CONTENT), digest=wrong)
        assert server.served["file.bin"] == 2 * len(CONTENT)  # the same wrong bytes twice are enough
    assert not path.exists()
    assert not left_over(path)


def test_another_size_is_noticed_before_anything_is_fetched(remote: Path, path: Path) -> None:
    with MisbehavingServer(remote) as server:
        with pytest.raises(DataError, match="3,000,001 bytes where 77 were expected"):
            fetch_file(f"{server.url}/file.bin", path, QUICK, size=77, digest=SHA256)
        assert server.requests["file.bin"] == 1
    assert not path.exists()


@pytest.mark.parametrize("size", [None, 0])
def test_an_empty_file(remote: Path, path: Path, size: int | None) -> None:
    (remote / "file.bin").write_bytes(b"")
    with MisbehavingServer(remote) as server:
        fetch_file(f"{server.url}/file.bin", path, QUICK, size=size)
    assert path.read_bytes() == b""


def test_two_processes_do_not_write_into_one_partial_file(remote: Path, path: Path) -> None:
    with MisbehavingServer(remote, lambda name, number: "stall halfway" if number == 0 else "") as server:
        patient = RemoteConfig(timeout_seconds=1, retries=2)
        url = f"{server.url}/file.bin"
        first = threading.Thread(target=fetch_file, args=(url, path, patient), kwargs={"digest": SHA256})
        first.start()
        while not left_over(path):
            time.sleep(0.01)
        with pytest.raises(DataError, match="is being fetched by another process"):
            fetch_file(url, path, patient, digest=SHA256)
        first.join()
    assert path.read_bytes() == CONTENT


def test_small_files_in_memory(remote: Path) -> None:
    (remote / "small.json").write_bytes(b"{}")
    with MisbehavingServer(remote, lambda name, number: "503" if number == 0 else "") as server:
        assert fetch_bytes(f"{server.url}/small.json", QUICK, 100) == b"{}"
        with pytest.raises(DataError, match=r"file.bin .* more than 100 bytes"):
            fetch_bytes(f"{server.url}/file.bin", QUICK, 100)


def test_other_stores(tmp_path: Path, path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(CONTENT)
    MemoryFileSystem.store.clear()
    fsspec.filesystem("memory").pipe_file("/bucket/file.bin", CONTENT)
    for url in (f"file://{tmp_path}/file.bin", "memory://bucket/file.bin"):
        path.unlink(missing_ok=True)
        fetch_file(url, path, QUICK, size=len(CONTENT), digest=SHA256)
        assert path.read_bytes() == CONTENT
        assert fetch_bytes(url, QUICK, len(CONTENT)) == CONTENT
    with pytest.raises(RefusedError, match="memory://bucket/none"):
        fetch_file("memory://bucket/none", path, QUICK)


class _Sleepy(MemoryFileSystem):
    """A store whose first two ranges never come, and whose deadline nobody set."""

    protocol = "sleepy"
    store: dict[str, Any] = {}  # noqa: RUF012
    asked = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("sleepy://").lstrip("/")

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        type(self).asked += 1
        if self.asked <= 2:
            time.sleep(60)
        return super().cat_file(path, start, end, **options)


def test_a_store_that_hangs_is_left_behind(path: Path) -> None:
    fsspec.register_implementation("sleepy", _Sleepy, clobber=True)
    fsspec.filesystem("sleepy").pipe_file("/file.bin", CONTENT)
    fetch_file("sleepy://file.bin", path, QUICK, size=len(CONTENT), digest=SHA256)
    assert path.read_bytes() == CONTENT
    assert _Sleepy.asked == 3


def test_what_is_remote() -> None:
    remote = (
        "s3://b/x",
        "gs://b/x",
        "hf://datasets/a/b",
        "https://h/x",
        "http://h",
        "file:///x",
        "memory://x",
    )
    assert all(is_remote(place) for place in remote)
    assert not any(is_remote(place) for place in ("data/x", "/data/x", "C:\\data", "", Path("s3://b/x")))


def test_a_missing_package_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # what the import finds where it is not installed
    with pytest.raises(ConfigError, match=r"gs://bucket/x .* pip install gcsfs"):
        fetch_file("gs://bucket/x", path, QUICK)
    with pytest.raises(ConfigError, match=r"nosuch://x .*nosuch.*s3://"):
        fetch_file("nosuch://x", path, QUICK)


@pytest.mark.parametrize(
    ("wrong", "flag"),
    [
        ({"cache_gigabytes": 0}, "cache-gigabytes"),
        ({"retries": -1}, "retries"),
        ({"timeout_seconds": 0}, "timeout"),
    ],
)
def test_flags_that_make_no_sense(wrong: dict[str, Any], flag: str) -> None:
    with pytest.raises(ConfigError, match=f"--data.remote.{flag}"):
        RemoteConfig(**wrong)


def test_a_full_disk_is_not_retried(remote: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        with MisbehavingServer(remote) as server:
            with pytest.raises(DataError, match=r"cannot write .*The disk is full"):
                fetch_file(f"{server.url}/file.bin", disk / "file.bin", QUICK, digest=SHA256)
            assert server.requests["file.bin"] == 1
        assert not (disk / "file.bin").exists()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
