"""`ssmke data import NAME` for what a user already has on disk."""

from __future__ import annotations

import io
import json
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssmke.cli.data import main
from ssmke.data.manifest import Manifest
from ssmke.errors import ConfigError, DataError


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 48, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Photos in the archives of all three sets, with Karpathy's captions."""
    root = tmp_path / "root"
    root.mkdir()
    names = {
        "Flickr8k_Dataset.zip": ("flickr8k", "Flicker8k_Dataset"),
        "flickr30k-images.zip": ("flickr30k", "flickr30k-images"),
        "val2014.zip": ("coco", "val2014"),
    }
    captions = {}
    for archive, (dataset, folder) in names.items():
        with zipfile.ZipFile(root / archive, "w") as photos:
            for i in range(3):
                photos.writestr(f"{folder}/{i}.jpg", jpeg(i))
        images = [
            {"filename": f"{i}.jpg", "filepath": folder, "split": split, "sentences": [{"raw": f"photo {i}"}]}
            for i, split in enumerate(("restval" if dataset == "coco" else "train", "val", "test"))
        ]
        if dataset != "coco":
            for image in images:
                del image["filepath"]
        captions[f"dataset_{dataset}.json"] = json.dumps({"dataset": dataset, "images": images})
    with zipfile.ZipFile(root / "caption_datasets.zip", "w") as texts:
        for name, text in captions.items():
            texts.writestr(name, text)
    return root


@pytest.mark.parametrize("name", ["coco-captions", "flickr30k", "flickr8k"])
def test_sets_are_imported_from_their_archives(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    out = tmp_path / "out"
    command = ["import", name, "--root", str(root), "--out", str(out), "--workers", "1"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert re.search(r"all\W+3\W+3\W+1\.00\W+3\W", text)
    assert re.search(rf"Note: captions and splits: .*dataset_{name.partition('-')[0]}\.json", text)
    assert main(["verify", str(out), "--workers", "1"]) == 0
    assert main(command) == 0
    assert "0 shards written, 3 kept from before" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"--splits was \[\], now \['test'\]"):
        main([*command, "--splits", "test"])


def test_one_split_and_cleaning(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["import", "flickr8k", "--root", str(root), "--workers", "1"]
    assert main([*command, "--out", str(tmp_path / "a"), "--splits", "val", "test"]) == 0
    assert set(Manifest.load(tmp_path / "a").splits) == {"val", "test"}
    # Of training images only: results on the others stay comparable.
    assert main([*command, "--out", str(tmp_path / "b"), "--clean.min-side", "64"]) == 0
    assert set(Manifest.load(tmp_path / "b").splits) == {"val", "test"}
    assert Manifest.load(tmp_path / "b").skipped == {"too small": 1}
    with pytest.raises(ConfigError, match=r"--clean\.min-side -1"):
        main([*command, "--out", str(tmp_path / "c"), "--clean.min-side", "-1"])


@pytest.mark.parametrize("name", ["tars", "cc3m", "cc12m", "sbu"])
def test_tars(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (tmp_path / "tars").mkdir()
    for split in ("train", "validation"):
        with tarfile.open(tmp_path / "tars" / f"{name}-{split}-0000.tar", "w") as tar:
            for i in range(2):
                for kind, data in (("jpg", jpeg(i)), ("txt", b"a [red] photo")):
                    info = tarfile.TarInfo(f"00000000{i}.{kind}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    out = tmp_path / "out"
    assert main(["import", name, "--tars", str(tmp_path / "tars"), "--out", str(out), "--workers", "1"]) == 0
    manifest = Manifest.load(out)
    assert (manifest.name, {split: part.images for split, part in manifest.splits.items()}) == (
        name,
        {"train": 2, "val": 2},
    )
    assert re.search(r"val\W+2\W+2\W+1\.00\W+1\W", capsys.readouterr().out)
    assert main(["verify", str(out), "--workers", "1"]) == 0
