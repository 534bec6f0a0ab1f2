from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from ssmke.data.download.estimate import (
    HEADROOM,
    Need,
    Speed,
    check_disk,
    fetch_times,
    free_bytes,
    gigabytes,
    probe,
)
from ssmke.errors import DataError
from tests.data.remote.server import MisbehavingServer


def test_a_host_that_answers_is_measured(tmp_path: Path) -> None:
    (tmp_path / "a.zip").touch()
    os.truncate(tmp_path / "a.zip", 200 << 20)
    with MisbehavingServer(tmp_path) as server:
        speed = probe(f"{server.url}/a.zip")
        assert speed.bytes_per_second is not None
        assert speed.bytes_per_second > 0
        # A few megabytes (and what sockets hold), not the file.
        assert server.served["a.zip"] < 100 << 20


def test_a_host_that_does_not_answer_is_said_and_times_for_usual_lines_are_given(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        speed = probe(f"http://127.0.0.1:{closed.getsockname()[1]}/a.zip", timeout=2)
    assert speed.bytes_per_second is None
    assert speed.why
    assert fetch_times(20_000_000_000, speed) == "27 min at 100 Mbit/s, 3 min at 1 Gbit/s"
    with MisbehavingServer(tmp_path) as server:
        assert probe(f"{server.url}/missing.zip", timeout=2).bytes_per_second is None


def test_a_measured_line_gives_one_time() -> None:
    assert fetch_times(3_600_000_000, Speed(1e6)) == "60 min at the 1.0 MB/s measured just now"


def test_a_small_disk_is_refused_with_need_and_have(tmp_path: Path) -> None:
    downloads, out = tmp_path / "new" / "downloads", tmp_path / "out"
    flags = {downloads: "--downloads", out: "--out"}
    free = free_bytes(out)
    check_disk({downloads: 1000, out: 1000}, flags)
    check_disk({downloads: 0, out: 0}, flags)
    # Each would fit, both together do not.
    half = (free - HEADROOM) // 2 + 100_000_000
    with pytest.raises(
        DataError, match=r"--downloads .*downloads and --out .*out: .* are needed there, .* are free"
    ):
        check_disk({downloads: half, out: half}, flags)


def test_need_and_words() -> None:
    assert Need(3, 4, 5).peak == 12
    assert (gigabytes(20_155_000_000), gigabytes(36_745_453)) == ("20.2 GB", "37 MB")
