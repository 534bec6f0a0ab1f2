"""What a download is asked for, and its list in parts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ssmke.data.download import url_list
from ssmke.data.download.list_rows import read_pairs
from ssmke.data.download.url_list import UrlListConfig, prepare_parts
from ssmke.errors import ConfigError, DataError


def listed(tmp_path: Path, rows: int, bad: int = 0, **options: Any) -> UrlListConfig:
    path = tmp_path / "list.tsv"
    lines = [f"http://a.org/{i}.jpg\tcaption {i}" for i in range(rows)] + [f"\t{i}" for i in range(bad)]
    path.write_text("\n".join(["url\tcaption", *lines]))
    (tmp_path / "out").mkdir(exist_ok=True)
    return UrlListConfig(path, tmp_path / "out", **options)


def rows_of(folder: Path) -> list[list[str]]:
    bad: Counter[str] = Counter()
    return [[url for url, _ in read_pairs(path, "url", "caption", bad)] for path in sorted(folder.iterdir())]


def test_parts_hold_whole_shards_and_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(url_list, "PART_SHARDS", 3)
    parts = prepare_parts(listed(tmp_path, 100, bad=2, shard_urls=10, processes=2))
    contents = rows_of(parts.folder)
    assert [len(part) for part in contents] == [30, 30, 30, 10]
    assert [url for part in contents for url in part] == [f"http://a.org/{i}.jpg" for i in range(100)]
    assert (parts.rows, parts.shards, parts.shard_urls, parts.bad) == (100, 10, 10, {"no URL": 2})


def test_a_short_list_gives_every_process_a_shard(tmp_path: Path) -> None:
    parts = prepare_parts(listed(tmp_path, 101, processes=4))
    assert parts.shard_urls == 26
    assert [parts.shard_rows(number) for number in range(parts.shards)] == [26, 26, 26, 23]


def test_parts_are_made_once_and_another_list_is_refused(tmp_path: Path) -> None:
    first = prepare_parts(listed(tmp_path, 20, bad=1, processes=2))
    made = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    # The number of processes may change; the shards stay those that were begun.
    assert prepare_parts(listed(tmp_path, 20, bad=1, processes=1)) == first
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == made
    with pytest.raises(DataError, match=r"another download: --urls was list.tsv \(sha256"):
        prepare_parts(listed(tmp_path, 21))
    with pytest.raises(DataError, match="--image-size was 256, now 128"):
        prepare_parts(listed(tmp_path, 20, bad=1, image_size=128))


def test_parts_that_were_cut_off_are_made_again(tmp_path: Path) -> None:
    config = listed(tmp_path, 20)
    (config.out / "urls" / "parts").mkdir(parents=True)
    (config.out / "urls" / "parts" / "00007.parquet").write_bytes(b"half")
    assert rows_of(prepare_parts(config).folder) != []


def test_folders_of_others_and_lists_of_nothing_are_refused(tmp_path: Path) -> None:
    config = listed(tmp_path, 0, bad=3)
    with pytest.raises(DataError, match=r"no usable row \(no URL 3\)"):
        prepare_parts(config)
    assert list(config.out.iterdir()) == []
    (config.out / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match=r"not empty \(it holds 'mine.txt'\)"):
        prepare_parts(listed(tmp_path, 3))
    assert (config.out / "mine.txt").read_text() == "mine"
    with pytest.raises(DataError, match="no such file"):
        prepare_parts(UrlListConfig(tmp_path / "absent.csv", config.out))


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"urls": Path("list.json")}, "--urls"),
        ({"url_column": "x", "caption_column": "x"}, "--url-column"),
        ({"url_column": "0"}, "--caption-column"),
        ({"image_size": 16}, "--image-size"),
        ({"shard_urls": 0}, "--shard-urls"),
        ({"processes": 0}, "--processes"),
        ({"threads": 0}, "--threads"),
        ({"retries": -1}, "--retries"),
        ({"max_image_bytes": 10}, "--max-image-bytes"),
        ({"timeout_seconds": 0}, "--timeout-seconds"),
        ({"seconds_per_image": float("nan")}, "--seconds-per-image"),
    ],
)
def test_wrong_settings_name_their_flag(options: dict[str, Any], flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        UrlListConfig(**({"urls": Path("list.csv"), "out": Path("out")} | options))
