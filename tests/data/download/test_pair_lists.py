"""SBU's forms become pairs, and lists are shortened."""

from __future__ import annotations

import gzip
import json
import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from ssmke.data.download.list_rows import read_pairs, write_url_list
from ssmke.data.download.pair_lists import (
    SBU_CAPTIONS,
    SBU_JSON,
    SBU_URLS,
    count_rows,
    first_pairs,
    is_sbu_form,
    list_sha256,
    make_pairs,
    sbu_pairs,
)
from ssmke.errors import DataError

PAIRS = [(f"http://host/{i}.jpg", f'caption "{i}" with an é') for i in range(5)]


def pairs_in(path: Path) -> list[tuple[str, str]]:
    return list(read_pairs(path, "url", "caption", Counter()))


@pytest.fixture
def json_file(tmp_path: Path) -> Path:
    urls, captions = zip(*PAIRS, strict=True)
    path = tmp_path / SBU_JSON
    path.write_text(json.dumps({"image_urls": urls, "captions": captions, "user_ids": ["u"] * 5}))
    return path


@pytest.fixture
def text_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "old" / "dataset"
    folder.mkdir(parents=True)
    (folder / SBU_URLS).write_text("".join(f"{url}\n" for url, _ in PAIRS))
    (folder / SBU_CAPTIONS).write_text("".join(f"{caption}\r\n" for _, caption in PAIRS))
    return folder


def test_all_forms_give_the_same_pairs(json_file: Path, text_folder: Path, tmp_path: Path) -> None:
    archives = []
    for name, members in (("new.tar.gz", [json_file]), ("old.tar.gz", sorted(text_folder.iterdir()))):
        with tarfile.open(tmp_path / name, "w:gz") as tar:
            for member in members:
                tar.add(member, f"dataset/{member.name}")
        archives.append(tmp_path / name)
    for place in (json_file, json_file.parent, text_folder, text_folder.parent, *archives):
        assert is_sbu_form(place)
        out = tmp_path / "out" / "pairs.parquet"
        out.parent.mkdir(exist_ok=True)
        assert sbu_pairs(place, out) == count_rows(place) == 5
        assert pairs_in(out) == PAIRS
    assert sbu_pairs(json_file, out, limit=2) == 2
    assert pairs_in(out) == PAIRS[:2]


def test_files_that_are_not_of_one_length_are_refused(
    json_file: Path, text_folder: Path, tmp_path: Path
) -> None:
    with (text_folder / SBU_CAPTIONS).open("a") as file:
        file.write("one too many\n")
    with pytest.raises(DataError, match="5 links or more, but 6 captions or more: a file was cut"):
        sbu_pairs(text_folder, tmp_path / "pairs.parquet")
    json_file.write_text(json.dumps({"image_urls": ["http://a"], "captions": []}))
    with pytest.raises(DataError, match="1 links or more, but 0 captions"):
        sbu_pairs(json_file, tmp_path / "pairs.parquet")
    assert not (tmp_path / "pairs.parquet").exists()


@pytest.mark.parametrize("content", ["[]", "{", '{"image_urls": []}'])
def test_another_json_is_refused(json_file: Path, tmp_path: Path, content: str) -> None:
    json_file.write_text(content)
    with pytest.raises(DataError, match='it has no lists "image_urls" and "captions"'):
        sbu_pairs(json_file, tmp_path / "pairs.parquet")


def test_what_is_missing_or_cut_is_said(json_file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"neither {SBU_JSON} is there"):
        sbu_pairs(tmp_path / "empty", tmp_path / "pairs.parquet")
    with pytest.raises(DataError, match="there is no such file"):
        sbu_pairs(tmp_path / "none.json", tmp_path / "pairs.parquet")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(json_file, SBU_JSON)
    os.truncate(tmp_path / "a.tar.gz", 60)
    with pytest.raises(DataError, match=r"a\.tar\.gz cannot be read"):
        sbu_pairs(tmp_path / "a.tar.gz", tmp_path / "pairs.parquet")


def test_the_first_pairs_are_of_usable_rows(tmp_path: Path) -> None:
    rows = [
        "caption\thttp://a/1",
        "\thttp://a/2",
        "caption\tftp://a/3",
        "caption 4\thttp://a/4",
        "x\thttp://a/5",
    ]
    (tmp_path / "list.tsv").write_text("\n".join(rows))
    bad: Counter[str] = Counter()
    assert first_pairs(tmp_path / "list.tsv", "1", "0", tmp_path / "out.parquet", 2, bad) == 2
    assert bad == {"no caption": 1, "unsupported URL": 1}
    assert pairs_in(tmp_path / "out.parquet") == [("http://a/1", "caption"), ("http://a/4", "caption 4")]


def test_pairs_are_made_once_and_only_found_again_for_the_same_list(tmp_path: Path, json_file: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "url,caption,alt\nhttp://a/1,one,x\n,none,x\nhttp://a/2,two,x\nhttp://a/3,x,x\n"
    )
    (tmp_path / "b.csv").write_text("url,caption,alt\nhttp://b/1,one,x\nhttp://b/2,two,x\n")
    folder, said = tmp_path / "made", list[str]()
    first = make_pairs(tmp_path / "a.csv", "url", "caption", folder, 2, said.append)
    assert pairs_in(first.path) == [("http://a/1", "one"), ("http://a/2", "two")]
    assert first.bad == {"no URL": 1}
    (tmp_path / "a.csv").rename(tmp_path / "c.csv")
    assert make_pairs(tmp_path / "c.csv", "url", "caption", folder, 2, said.append) == first
    assert len(said) == 1
    others = [
        make_pairs(tmp_path / "b.csv", "url", "caption", folder, 2),
        make_pairs(tmp_path / "c.csv", "url", "alt", folder, 2),
        make_pairs(tmp_path / "c.csv", "url", "caption", folder, 3),
        make_pairs(json_file, "url", "caption", folder),
    ]
    assert pairs_in(others[0].path) == [("http://b/1", "one"), ("http://b/2", "two")]
    assert len({first.path, *(other.path for other in others)}) == 5
    # Without the note a run was killed in between: what it had written cannot tell what it passed over.
    first.note.unlink()
    assert make_pairs(tmp_path / "c.csv", "url", "caption", folder, 2, said.append) == first
    assert len(said) == 2


def test_a_list_without_usable_pairs_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("url,caption\n,one\nftp://a,two\n")
    with pytest.raises(DataError, match=r"a\.csv has no usable row \(no URL 1, unsupported URL 1\)"):
        make_pairs(tmp_path / "a.csv", "url", "caption", tmp_path / "made", 5)
    assert not (tmp_path / "made").exists()


def test_the_digest_of_a_list_is_that_of_what_is_in_it(text_folder: Path, tmp_path: Path) -> None:
    before = list_sha256(text_folder)
    (text_folder / "readme").write_text("nothing of the list")
    assert list_sha256(text_folder) == before
    (text_folder / SBU_URLS).write_text("http://other\n")
    assert list_sha256(text_folder) != before
    with pytest.raises(DataError, match=r"--urls .*none\.csv: there is no such file"):
        list_sha256(tmp_path / "none.csv")


def test_rows_are_counted_in_every_kind_of_file(tmp_path: Path) -> None:
    text = b"".join(f"{url}\t{caption}\n".encode() for url, caption in PAIRS)
    (tmp_path / "a.tsv").write_bytes(text)
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(text))
    write_url_list(tmp_path / "a.parquet", PAIRS)
    assert [count_rows(tmp_path / name) for name in ("a.tsv", "a.tsv.gz", "a.parquet")] == [5, 5, 5]
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    for name in ("b.parquet", "none.csv"):
        with pytest.raises(DataError, match=f"--urls .*{name}"):
            count_rows(tmp_path / name)
