"""What `ssmke data` refuses before it begins: outputs that would cost a dataset, and options that cannot work."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssmke.cli.data import main
from ssmke.cli.data.get.config import GetConfig, WebConfig
from ssmke.cli.data.get.folders import is_done
from ssmke.cli.data.get.listed import get_links
from ssmke.cli.main import main as ssmke
from ssmke.data.atomic import new_folder
from ssmke.data.download.url_list import UrlListConfig, prepare_parts
from ssmke.data.import_state import ImportState
from ssmke.data.manifest import Manifest, Split
from ssmke.data.quality.leaks import read_leaks
from ssmke.data.shards import Sample, write_shard
from ssmke.errors import ConfigError, DataError


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 48, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A dataset with train and val."""
    folder = tmp_path / "toy"
    folder.mkdir()
    splits = {}
    for number, split in enumerate(("train", "val")):
        samples = [Sample(f"{split}{i}", jpeg(10 * number + i), ("a photo",)) for i in range(3)]
        splits[split] = Split((write_shard(folder / f"{split}-00000.tar", samples, split),))
    Manifest("toy", {}, splits, {"truncated image": 2}).save(folder)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        (["leaks", "TOY", "--against", "TOY", "--out", "TOY/manifest.json"], r"--out .*is in the input"),
        (["leaks", "TOY", "--against", "TOY", "--out", "TOY/sub/x.jsonl"], r"--out .*is in the input"),
        (["leaks", "TOY", "--against", "TOY", "--out", "link.jsonl"], r"--out link\.jsonl: is in the input"),
        (["leaks", "TOY", "--against", "TOY", "--sheet", "TOY/x.png"], r"--sheet .*is in the input"),
        (["leaks", "TOY", "--against", "TOY", "--out", "."], r"--out \.: is a folder"),
        (["leaks", "TOY", "--against", "TOY", "--out", "file/x"], r"--out file/x: .*file is not a folder"),
        (["leaks", "TOY", "--against", "TOY", "--out", "x.png", "--sheet", "./x.png"], "the file of --out"),
        (["stats", "TOY", "--json", "TOY/manifest.json"], r"--json .*is in the input"),
        (["stats", "TOY", "--out", "TOY/x.png"], r"--out .*is in the input"),
        (["stats", "TOY", "--json", "."], r"--json \.: is a folder"),
        (["stats"], "PATH is missing"),
    ],
)
def test_outputs_are_checked_before_the_work(
    toy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    refused: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "link.jsonl").symlink_to(toy / "manifest.json")
    before = files(toy)
    with pytest.raises(ConfigError, match=refused):
        main([argument.replace("TOY", str(toy)) for argument in arguments])
    assert files(toy) == before
    assert {path.name for path in tmp_path.iterdir()} == {"toy", "file", "link.jsonl"}
    assert not capsys.readouterr().out  # not even a bar


def test_a_missing_folder_is_an_error_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert ssmke(["data", "stats"]) == 2
    assert "PATH is missing" in capsys.readouterr().err


def test_a_link_to_a_dataset_is_that_dataset(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(toy)
    with pytest.raises(ConfigError, match="was given twice"):
        main(["stats", str(tmp_path / "link"), str(toy), "--workers", "1"])


def test_damaged_lists_of_leaks_are_named(toy: Path, tmp_path: Path) -> None:
    place = {"dir": str(toy), "split": "train", "key": "train0"}
    leak = json.dumps({"kind": "near", "distance": 1, "correlation": 1.0, "train": place, "against": place})
    path = tmp_path / "leaks.jsonl"
    for bad in (leak.replace('"distance": 1', '"distance": 1e999'), "[" * 100_000):
        path.write_text(f"{leak}\n{bad}\n")
        with pytest.raises(DataError, match=r"line 2 of .*leaks\.jsonl is not a leak"):
            read_leaks(path)
    for drop in (tmp_path, tmp_path / "nowhere.jsonl"):
        with pytest.raises(DataError, match=rf"cannot read --drop {drop}: "):
            main(["reshard", str(toy), "--out", str(tmp_path / "out"), "--drop", str(drop)])
    assert not (tmp_path / "out").exists()


def test_a_damaged_list_of_losses_costs_only_its_lines(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = json.dumps({"split": "val", "reason": "truncated image"})
    (toy / "skipped.jsonl").write_text("[" * 100_000 + "\n" + good + "\n")
    (toy / "downloads.json").write_text("[" * 100_000)
    assert main(["stats", str(toy), "--json", str(tmp_path / "n.json"), "--workers", "1"]) == 0
    found = json.loads((tmp_path / "n.json").read_text())["left_out"]
    assert found == {"val": {"truncated image": 1}, "unknown split": {"truncated image": 1}}


def test_what_cannot_work_is_refused_before_anything_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.csv").write_text("url,caption\nhttp://127.0.0.1/a.jpg,a\n")
    command = ["get", "urls", "--urls", str(tmp_path / "list.csv"), "--out", str(tmp_path / "out"), "--yes"]
    for flag in ("--processes", "--threads", "--image-size"):
        with pytest.raises(ConfigError, match=f"{flag} 0: must be"):
            main([*command, flag, "0"])
    assert not capsys.readouterr().out
    assert not (tmp_path / "out.downloads").exists()


@pytest.mark.parametrize("pairs", [0, 5])
@pytest.mark.parametrize("text", ["a,b\nhttp://127.0.0.1/a.jpg,c\n", "url,caption\n,one\nftp://a,two\n"])
def test_a_list_that_is_refused_leaves_no_folders(tmp_path: Path, text: str, pairs: int) -> None:
    urls = tmp_path / "list.csv"
    urls.write_text(text)
    config = GetConfig(tmp_path / "new" / "out", yes=True, workers=1)
    with pytest.raises(DataError, match=r"list\.csv has no"):
        get_links("toy", urls, "url", "caption", config, WebConfig(max_pairs=pairs))
    assert {path.name for path in tmp_path.iterdir()} == {"list.csv"}


def test_a_folder_with_something_in_it_stays(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()

    def fail() -> None:
        with new_folder(tmp_path / "old" / "a" / "b"):
            (tmp_path / "old" / "a" / "kept").write_text("")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert sorted(path.name for path in (tmp_path / "old").rglob("*")) == ["a", "kept"]


def test_get_may_be_asked_for_something_else_while_nothing_was_imported(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with ImportState.open(out, {"importer": "tars", "--max-side": 64}):
        pass
    config, request = GetConfig(out, yes=True), {"--max-side": 0}
    assert not is_done("toy", config, request)
    write_shard(out / "train-00000.tar", [Sample("a", jpeg(0), ("a photo",))], "train")
    with pytest.raises(DataError, match="--max-side was 64, now 0"):
        is_done("toy", config, request)


def test_another_list_in_the_same_place_names_the_flag(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("first", "second"):
        (tmp_path / f"{name}.csv").write_text(f"url,caption\nhttp://host/{name}.jpg,a\n")
    prepare_parts(UrlListConfig(tmp_path / "first.csv", tmp_path / "images"))
    with pytest.raises(DataError, match=r"^--downloads: .*holds another download: --urls was first\.csv"):
        prepare_parts(UrlListConfig(tmp_path / "second.csv", tmp_path / "images"))


def test_a_command_tells_of_the_tars_that_are_gone(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        with tarfile.open(tmp_path / name / f"{name}.tar", "w") as tar:
            for kind, data in (("jpg", jpeg(0)), ("txt", b"a photo")):
                info = tarfile.TarInfo(f"0.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    command = ["import", "cc3m", "--out", str(tmp_path / "cc"), "--workers", "1", "--tars"]
    assert main([*command, str(tmp_path / "first")]) == 0
    with pytest.raises(DataError, match=r"first\.tar.*choose another --out"):
        main([*command, str(tmp_path / "second")])
    assert Manifest.load(tmp_path / "cc").images == 1
