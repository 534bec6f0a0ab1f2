"""A list becomes tars: once, by one process at a time, or with a clear error."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from ssmke.data.download.img2dataset import download_urls
from ssmke.data.download.list_rows import write_url_list
from ssmke.data.download.report import ShardFiles
from ssmke.data.download.url_list import UrlListConfig, prepare_parts
from ssmke.data.locks import locked
from ssmke.errors import ConfigError, DataError
from tests.faults.hostile_web import HostileWeb, images


def listed(tmp_path: Path, web: HostileWeb, kinds: list[str], python: Path | None = None) -> UrlListConfig:
    write_url_list(tmp_path / "list.parquet", ((web.url(kind, i), kind) for i, kind in enumerate(kinds)))
    return UrlListConfig(
        urls=tmp_path / "list.parquet",
        out=tmp_path / "out",
        shard_urls=3,
        processes=1,
        threads=2,
        private_hosts=web.private_hosts,
        command=None if python is None else str(python),
    )


@pytest.mark.usefixtures("img2dataset")
def test_a_finished_list_is_not_downloaded_again_and_a_damaged_shard_is(
    tmp_path: Path, web: HostileWeb
) -> None:
    config = listed(tmp_path, web, ["slow", "slow", "404", "slow", "html"])
    said: list[str] = []
    report = download_urls(config, said.append)
    assert (report.asked, report.successes) == (5, 3)
    assert report.failures == {"HTTP 404": 1, "not an image": 1}
    assert said[:2] == [f"Reading {config.urls} ...", "5 URLs in 2 shards"]
    assert [kind for kind, _ in images(config.out / "00000.tar")] == ["slow", "slow"]

    # Finished: nothing is started, so what would be started may be missing.
    nothing = dataclasses.replace(config, command=str(tmp_path / "absent"))
    assert download_urls(nothing, said.append) == report
    assert said[-1] == "5 URLs in 2 shards, 2 of them finished before"

    ShardFiles(config.out, 1).statistics.write_text('{"count": 2')
    assert download_urls(config).failures == report.failures
    assert {path: web.calls[path] for path in ("/slow/0", "/slow/1", "/slow/3")} == {
        "/slow/0": 1,
        "/slow/1": 1,
        "/slow/3": 2,
    }


def test_only_one_process_downloads_to_a_folder(tmp_path: Path, web: HostileWeb) -> None:
    config = listed(tmp_path, web, ["jpeg"])
    config.out.mkdir()
    with locked(config.out), pytest.raises(DataError, match="another process is downloading to"):
        download_urls(config)


def test_an_environment_that_is_asked_for_and_wrong(tmp_path: Path, web: HostileWeb) -> None:
    config = listed(tmp_path, web, ["jpeg"], tmp_path / "absent")
    with pytest.raises(DataError, match="--img2dataset"):
        download_urls(config)
    with pytest.raises(DataError, match="no usable img2dataset"):
        download_urls(dataclasses.replace(config, command=sys.executable))


@pytest.mark.usefixtures("img2dataset")
def test_distributors_that_are_not_there(tmp_path: Path, web: HostileWeb) -> None:
    config = dataclasses.replace(listed(tmp_path, web, ["jpeg"]), distributor="ray")
    with pytest.raises(DataError, match="--distributor ray"):
        download_urls(config)


@pytest.mark.usefixtures("img2dataset")
def test_a_start_that_brings_nothing_is_an_error_with_its_last_words(tmp_path: Path, web: HostileWeb) -> None:
    config = listed(tmp_path, web, ["jpeg"])
    config.out.mkdir()
    [part] = prepare_parts(config).folder.iterdir()
    part.write_bytes(b"spoiled")
    with pytest.raises(DataError, match=r"finished no shard.*ended with status 1.*Parquet.*img2dataset\.log"):
        download_urls(config)


def test_what_cannot_be_removed_or_is_no_plain_path(tmp_path: Path, web: HostileWeb) -> None:
    config = listed(tmp_path, web, ["jpeg"])
    config.out.mkdir()
    prepare_parts(config)
    (config.out / "00000.tar").mkdir()
    with pytest.raises(DataError, match="cannot write"):
        download_urls(config)
    for name in ("out[1]", "a*", "memory::x"):
        with pytest.raises(ConfigError, match=r"--out .*must not hold"):
            download_urls(dataclasses.replace(config, out=tmp_path / name))
