"""Downloads that are killed, as a whole or in a worker, or run out of disk, leave nothing half done and go on."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ssmke.data.download import img2dataset as module
from ssmke.data.download.img2dataset import download_urls
from ssmke.data.download.list_rows import write_url_list
from ssmke.data.download.report import ShardFiles
from ssmke.data.download.url_list import UrlListConfig
from ssmke.errors import DataError
from tests.faults.hostile_web import HostileWeb

URLS, SHARD = 60, 20


@pytest.fixture
def config(tmp_path: Path, img2dataset: Path) -> UrlListConfig:
    return UrlListConfig(
        urls=tmp_path / "list.parquet",
        out=tmp_path / "out",
        shard_urls=SHARD,
        processes=1,
        threads=2,
        retries=0,
        seconds_per_image=2.0,
        command=str(img2dataset),
    )


def listed(config: UrlListConfig, web: HostileWeb, kind: str = "slow") -> UrlListConfig:
    write_url_list(config.urls, ((web.url(kind, i), f"caption {i}") for i in range(URLS)))
    return UrlListConfig(**(vars(config) | {"private_hosts": web.private_hosts}))


def workers(out: Path) -> list[psutil.Process]:
    """All processes of a download to ``out``: the guard, and what it spawned."""
    guards = [
        p
        for p in psutil.process_iter(["cmdline"])
        if any(str(out) in part for part in p.info["cmdline"] or ())
    ]
    return guards + [child for guard in guards for child in guard.children(recursive=True)]


def test_a_download_that_is_killed_goes_on_with_the_next_shard(config: UrlListConfig) -> None:
    with HostileWeb() as web:
        config = listed(config, web)
        code = (
            "from pathlib import PosixPath; from ssmke.data.download.img2dataset import download_urls\n"
            "from ssmke.data.download.url_list import UrlListConfig\n"
            f"download_urls({config!r})\n"
        )
        with subprocess.Popen([sys.executable, "-c", code]) as parent:
            while not ShardFiles(config.out, 0).is_finished(SHARD):
                assert parent.poll() is None
                time.sleep(0.1)
            time.sleep(0.5)
            begun = workers(config.out)
            parent.kill()
        assert len(begun) > 2
        _, alive = psutil.wait_procs(begun, timeout=20)
        assert alive == []
        assert not ShardFiles(config.out, 2).is_finished(SHARD)

        report = download_urls(config)
        assert (report.asked, report.successes, report.failures) == (URLS, URLS, {})
        assert {web.calls[f"/slow/{i}"] for i in range(SHARD)} == {1}
        assert sorted(path.name for path in config.out.glob("*.tar")) == [
            "00000.tar",
            "00001.tar",
            "00002.tar",
        ]


def test_a_worker_that_is_killed_does_not_hang_the_download(
    config: UrlListConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """img2dataset alone would wait for its shard for ever."""
    monkeypatch.setattr(module, "_SPARE_SECONDS", 12.0)
    monkeypatch.setattr(module, "SAY_SECONDS", 0.5)
    said: list[str] = []
    killed: list[int] = []

    def say(line: str) -> None:
        said.append(line)
        if "fetched" in line and not killed:
            [record] = (config.out / "urls" / "progress").iterdir()
            killed.append(int(record.name.partition("-")[0]))
            psutil.Process(killed[0]).kill()

    with HostileWeb() as web:
        report = download_urls(listed(config, web), say)
    assert killed
    assert (report.asked, report.successes, report.failures) == (URLS, URLS, {})
    assert [line for line in said if "not one URL ended in 14 s, so it was killed" in line]


@pytest.fixture
def small_disk(config: UrlListConfig) -> Iterator[Path]:
    """A file system of 400 KiB for the tars, which are 530 KB."""
    config.out.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(config.out)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield config.out
    subprocess.run(["umount", "-l", str(config.out)], check=False)


def test_a_full_disk_is_named_and_more_room_is_enough_to_go_on(
    config: UrlListConfig, small_disk: Path
) -> None:
    with HostileWeb() as web:
        config = listed(config, web, "jpeg")
        with pytest.raises(
            DataError, match=r"disk is full.*same command again: [12] of 3 shards are finished"
        ):
            download_urls(config)
        kept = sorted(path.name for path in small_disk.glob("*.tar"))
        assert kept
        assert all(ShardFiles(small_disk, int(name[:5])).is_finished(SHARD) for name in kept)
        subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
        report = download_urls(config)
    assert (report.asked, report.successes, report.failures) == (URLS, URLS, {})
