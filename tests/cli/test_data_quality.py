"""`ssmke data leaks` and `ssmke data reshard`, from the leak to the clean dataset."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro
from PIL import Image

from ssmke.cli.data.leaks import leaks
from ssmke.cli.data.reshard import reshard
from ssmke.data.manifest import Manifest, Split
from ssmke.data.shards import Sample, write_shard
from ssmke.errors import ConfigError, DataError


def run(command: Any, *arguments: str | Path) -> int:
    code: int = tyro.cli(command, args=[str(argument) for argument in arguments])
    return code


def picture(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(noise).resize((96, 64), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@pytest.fixture
def web(tmp_path: Path) -> Path:
    """Crawled images; three of them are those of `benchmark`."""
    images = {f"w{i}": jpeg(picture(i)) for i in range(5)}
    images["same"] = jpeg(picture(100))
    images["small"] = jpeg(picture(101).resize((60, 40)), 60)
    images["mirror"] = jpeg(picture(102).transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    return write(tmp_path / "web", "train", images)


@pytest.fixture
def benchmark_set(tmp_path: Path) -> Path:
    return write(tmp_path / "bench", "test", {f"b{i}": jpeg(picture(100 + i)) for i in range(4)})


def write(folder: Path, split: str, images: dict[str, bytes]) -> Path:
    folder.mkdir()
    samples = [Sample(key, data, (f"a [red] picture of {key}",)) for key, data in images.items()]
    Manifest(
        folder.name, {}, {split: Split((write_shard(folder / f"{split}-00000.tar", samples, split),))}
    ).save(folder)
    return folder


def test_leaks_are_found_shown_and_removed(
    web: Path, benchmark_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, sheet, clean = tmp_path / "new" / "leaks.jsonl", tmp_path / "leaks.png", tmp_path / "web-clean"
    look = [leaks, web, "--against", benchmark_set, "--out", found, "--sheet", sheet, "--workers", "1"]
    assert run(*look) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "8 images of train against 4 of val and test" in text
    for kind in ("the same bytes", "the same picture, changed", "the same picture, mirrored"):
        assert re.search(rf"{kind}\W+1\W+1\W+1\W", text)
    assert "leaks: 3 training images; 2 near pairs looked at" in text
    assert f"Next: ssmke data reshard {web} --out {clean} --drop {found}" in text
    records = [json.loads(line) for line in found.read_text().splitlines()]
    assert {(r["kind"], r["train"]["key"], r["against"]["key"]) for r in records} == {
        ("exact", "same", "b0"),
        ("near", "small", "b1"),
        ("mirrored", "mirror", "b2"),
    }
    image = Image.open(sheet)
    assert image.width > 1000
    red, green, _ = np.moveaxis(np.asarray(image.convert("RGB"), np.int32), 2, 0)
    assert ((red > 190) & (green < 90)).mean() > 0.005  # frames around the training images

    assert run(reshard, web, "--out", clean, "--drop", found, "--drop-duplicates", "--workers", "1") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "skipped 3: leak" in text
    assert "8 images in, 5 out; 1 shard written" in text
    assert f"Next: ssmke data verify {clean}" in text
    assert run(leaks, clean, "--against", benchmark_set, "--out", found) == 0
    assert "no leaks" in capsys.readouterr().out
    assert found.read_text() == ""


def test_reshard_says_what_became_of_everything(
    web: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write(tmp_path / "oth[e]r", "train", {"w1": jpeg(picture(1)), "w2": jpeg(picture(50))})
    manifest = Manifest.load(other)
    Manifest("other", {}, manifest.splits, {"missing file": 4}).save(other)
    arguments = [reshard, web, other, "--out", tmp_path / "out", "--drop-duplicates", "--shard-images", "4"]
    arguments += ["--workers", "1"]
    assert run(*arguments, "--short-side", "32", "--clean.min-words", "3", "--name", "both") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "both: " in text
    assert "skipped 1: duplicate image" in text
    assert "skipped 1: repeated caption" in text
    assert "1 caption of duplicates went to the images kept" in text
    assert "1 image got a new key" in text
    assert "oth[e]r: 4 missing file" in text
    assert "10 images in, 9 out; 3 shards written" in text
    assert "skipped.jsonl" in text
    assert run(*arguments, "--short-side", "32", "--clean.min-words", "3", "--name", "both") == 0
    assert "0 shards written, 3 kept from before" in " ".join(capsys.readouterr().out.split())


def test_bad_options_are_named(web: Path, benchmark_set: Path, tmp_path: Path) -> None:
    against = ["--against", benchmark_set]
    with pytest.raises(ConfigError, match="TRAIN is missing"):
        run(leaks, *against)
    with pytest.raises(ConfigError, match="--against is empty"):
        run(leaks, web, "--against")
    with pytest.raises(ConfigError, match="--against-splits"):
        run(leaks, web, *against, "--against-splits", " ,")
    with pytest.raises(ConfigError, match="--max-distance 40"):
        run(leaks, web, *against, "--max-distance", "40")
    with pytest.raises(ConfigError, match=r"--sheet sheet\.gif"):
        run(leaks, web, *against, "--sheet", "sheet.gif")
    with pytest.raises(DataError, match="has no split 'dev'; its splits: train"):
        run(leaks, web, *against, "--split", "dev")
    with pytest.raises(ConfigError, match="IN is missing"):
        run(reshard, "--out", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"--clean\.min-side -1"):
        run(reshard, web, "--out", tmp_path / "out", "--clean.min-side", "-1")
    with pytest.raises(DataError, match=r"cannot read .*nowhere\.jsonl"):
        run(reshard, web, "--out", tmp_path / "out", "--drop", "nowhere.jsonl")
    assert not (tmp_path / "out").exists()


def test_the_folder_one_stands_in_has_a_name(
    web: Path, benchmark_set: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(web)
    assert run(leaks, ".", "--against", benchmark_set, "--out", web.parent / "l.jsonl", "--workers", "1") == 1
    clean = web.resolve().with_name("web-clean")
    text = " ".join(capsys.readouterr().out.split())
    assert f"Next: ssmke data reshard . --out {clean} --drop" in text


def test_addresses_are_refused_with_what_to_do(web: Path, benchmark_set: Path, tmp_path: Path) -> None:
    remedy = "is an address.* copy that folder to one, and give the copy"
    with pytest.raises(ConfigError, match=f"TRAIN s3://bucket/x: {remedy}"):
        run(leaks, web, "s3://bucket/x", "--against", benchmark_set)
    with pytest.raises(ConfigError, match=f"--against s3://bucket/x: {remedy}"):
        run(leaks, web, "--against", "s3://bucket/x")
    with pytest.raises(ConfigError, match=f"IN s3://bucket/x: {remedy}"):
        run(reshard, "s3://bucket/x", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
