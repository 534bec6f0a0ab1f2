"""An import whose source or options are others than the last time: nothing that was imported is lost."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ssmke.data.import_state import ImportState, Skip
from ssmke.data.importing import ImportReport
from ssmke.data.manifest import Manifest
from ssmke.data.quality.cleaning import CleaningConfig
from ssmke.data.reshard import ReshardConfig, reshard
from ssmke.data.sources.tars import TarsConfig, import_tars
from ssmke.data.verify import verify
from ssmke.errors import ConfigError, DataError

Encode = Callable[..., bytes]


def write_tar(path: Path, encode: Encode, count: int = 2, seed: int = 0, text: bytes = b"a photo") -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            for kind, data in (("jpg", encode(seed=seed + i)), ("txt", text)):
                info = tarfile.TarInfo(f"{i:04d}.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def run(tars: Path, split: str = "train", caption_field: str = "") -> ImportReport:
    return import_tars(TarsConfig(tars, tars.with_name("out"), "toy", split, caption_field))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_another_folder_of_tars_deletes_nothing(tmp_path: Path, encode: Encode) -> None:
    for name in ("b.tar", "c.tar"):
        write_tar(tmp_path / "first" / name, encode)
    run(tmp_path / "first")
    before = files(tmp_path / "out")
    write_tar(tmp_path / "second" / "z.tar", encode, seed=9)
    with pytest.raises(DataError, match=r"holds images of 2 files .*b\.tar, c\.tar\. .*choose another --out"):
        run(tmp_path / "second")
    assert files(tmp_path / "out") == before
    # One of them is there: the other would still be lost.
    shutil.copy2(tmp_path / "first" / "b.tar", tmp_path / "second")
    with pytest.raises(DataError, match=r"1 file not in the source any more: c\.tar\."):
        run(tmp_path / "second")
    assert files(tmp_path / "out") == before
    # With another time: a copy is no other tar.
    shutil.copy(tmp_path / "first" / "c.tar", tmp_path / "second")
    assert run(tmp_path / "second").manifest.images == 6
    assert verify(tmp_path / "out").ok


def test_tars_of_the_same_names_in_another_folder_are_others(tmp_path: Path, encode: Encode) -> None:
    write_tar(tmp_path / "first" / "00000.tar", encode)
    write_tar(tmp_path / "second" / "00000.tar", encode, seed=9)
    sizes = {(tmp_path / name / "00000.tar").stat().st_size for name in ("first", "second")}
    assert len(sizes) == 1  # tars are padded, so small ones are often of one size
    run(tmp_path / "first")
    before = files(tmp_path / "out")
    with pytest.raises(DataError, match=r"00000\.tar \(another of that name is\)"):
        run(tmp_path / "second")
    assert files(tmp_path / "out") == before


def test_new_and_changed_tars_beside_the_old_ones_are_imported(tmp_path: Path, encode: Encode) -> None:
    tars = tmp_path / "tars"
    write_tar(tars / "b.tar", encode)
    run(tars)
    write_tar(tars / "a.tar", encode, count=3, seed=5)  # before the other, whose shard gets another name
    report = run(tars)
    assert (report.written, report.manifest.images) == (2, 5)
    write_tar(tars / "b.tar", encode, count=4, seed=7)
    report = run(tars)
    assert (report.reused, report.written, report.manifest.images) == (1, 1, 7)
    assert verify(tmp_path / "out").ok


def test_a_tar_of_which_nothing_was_kept_may_go(tmp_path: Path, encode: Encode) -> None:
    tars = tmp_path / "tars"
    write_tar(tars / "a.tar", encode)
    write_tar(tars / "b.tar", encode, text=b" ")
    report = run(tars)
    # Counted are shards with images, as in the dataset's table.
    assert (report.written, report.reused, len(report.manifest.splits["train"].shards)) == (1, 0, 1)
    report = run(tars)
    assert (report.written, report.reused) == (0, 1)
    (tars / "b.tar").unlink()
    assert run(tars).manifest.images == 2


def test_options_may_change_while_nothing_was_imported(tmp_path: Path, encode: Encode) -> None:
    write_tar(tmp_path / "tars" / "a.tar", encode)
    with pytest.raises(DataError, match="nothing could be imported"):
        run(tmp_path / "tars", caption_field="wrong")
    assert run(tmp_path / "tars").manifest.images == 2
    before = files(tmp_path / "out")
    with pytest.raises(DataError, match="holds another import: --caption-field was '', now 'wrong'"):
        run(tmp_path / "tars", caption_field="wrong")
    assert files(tmp_path / "out") == before


def test_shards_without_a_record_are_not_given_up(tmp_path: Path, encode: Encode) -> None:
    write_tar(tmp_path / "tars" / "a.tar", encode)
    run(tmp_path / "tars")
    state = tmp_path / "out" / "import.state.jsonl"
    state.write_bytes(state.read_bytes().splitlines(keepends=True)[0])
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(DataError, match="holds another import"):
        run(tmp_path / "tars", split="val")
    assert (tmp_path / "out" / "train-00000.tar").is_file()


def test_a_damaged_line_of_the_state_is_passed_over(tmp_path: Path) -> None:
    with ImportState.open(tmp_path, {"importer": "toy"}) as state:
        state.record("a.tar", "plan", None, [Skip(0, "0.jpg", "train", "truncated image")])
    with (tmp_path / "import.state.jsonl").open("a") as file:
        file.write("[" * 100_000 + "\n")
    with ImportState.open(tmp_path, {"importer": "toy"}) as state:
        assert state.files() == {"a.tar"}


def test_a_reshard_that_left_nothing_blocks_no_other(tmp_path: Path, dataset: Callable[..., Path]) -> None:
    source, out = dataset("a"), tmp_path / "out"
    with pytest.raises(DataError, match="nothing would be left"):
        reshard(ReshardConfig((source,), out, sources=("nope",)))
    assert reshard(ReshardConfig((source,), out)).result.manifest.images == 7
    with pytest.raises(DataError, match="--sources was '', now 'nope'"):
        reshard(ReshardConfig((source,), out, sources=("nope",)))
    assert Manifest.load(out).images == 7


def test_splits_that_no_input_has_cannot_be_cleaned(tmp_path: Path, dataset: Callable[..., Path]) -> None:
    source, clean = dataset("a", {"val": [2]}), CleaningConfig(min_words=9)
    with pytest.raises(ConfigError, match="--clean-splits nope: no input has that split; give some of val"):
        reshard(ReshardConfig((source,), tmp_path / "out", clean=clean, clean_splits=("val", "nope")))
    with pytest.raises(ConfigError, match="--clean-splits nope"):
        reshard(ReshardConfig((source,), tmp_path / "out", clean_splits=("nope",)))
    # The default is no choice, so it is only refused where it would make cleaning do nothing.
    with pytest.raises(ConfigError, match="--clean-splits train"):
        reshard(ReshardConfig((source,), tmp_path / "out", drop_duplicates=True))
    with pytest.raises(ConfigError, match="--clean-splits is empty"):
        reshard(ReshardConfig((source,), tmp_path / "out", clean=clean, clean_splits=()))
    assert not (tmp_path / "out").exists()
    assert reshard(ReshardConfig((source,), tmp_path / "out")).result.manifest.images == 2


def test_captions_that_are_no_text_are_counted(tmp_path: Path, encode: Encode) -> None:
    captions = {"0": ["one", 5, None, "two"], "1": [5], "2": ["fine"]}
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "a.tar", "w") as tar:
        for key, texts in captions.items():
            for kind, data in (
                ("jpg", encode(seed=int(key))),
                ("json", json.dumps({"captions": texts}).encode()),
            ):
                info = tarfile.TarInfo(f"{key}.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    report = run(tmp_path / "tars")
    assert (report.manifest.images, report.manifest.captions) == (2, 3)
    assert dict(report.manifest.skipped) == {"caption not text": 3, "no usable caption": 1}
    lines = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    details = {(line["file"], line["detail"]) for line in lines if line["reason"] == "caption not text"}
    assert details == {
        ("a.tar: 0.jpg", "captions[1] is int"),
        ("a.tar: 0.jpg", "captions[2] is null"),
        ("a.tar: 1.jpg", "captions[0] is int"),
    }
    assert all(line["caption"] is not None for line in lines if line["reason"] == "caption not text")
