"""NLVR2: the release's files, consistency, and what can be learned without fusion."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ssmke.errors import ConfigError, DataError
from ssmke.evaluation.finetune.config import LoopConfig, Nlvr2Config, RunConfig
from ssmke.evaluation.finetune.nlvr2 import pair_scores
from ssmke.evaluation.finetune.nlvr2_data import read_nlvr2
from ssmke.evaluation.finetune.run import run_nlvr2


def quiet(_: str) -> None: ...


def test_reads_the_release(nlvr2_folder: Path) -> None:
    train = read_nlvr2(nlvr2_folder, "train", None, False)
    assert len(train.examples) == 32
    example = train.examples[11]
    assert example.identifier == "train-5-1-0"
    assert example.left == nlvr2_folder / "images/train/1/train-5-1-img0.png"
    assert example.right.name == "train-5-1-img1.png"
    assert "“near”" in example.sentence
    assert example.label == 1
    assert example.unique_sentence == "train-5-0"
    flat = read_nlvr2(nlvr2_folder, "dev", nlvr2_folder / "images" / "dev", False)
    assert flat.examples == read_nlvr2(nlvr2_folder, "dev", None, False).examples


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "maybe"}, "neither"),
        ({"label": None}, "neither"),
        ({"sentence": " "}, "no sentence"),
        ({"identifier": "dev-1-2"}, "is not of the form"),
        ({"identifier": "dev-../../x-1-0"}, "is not of the form"),
        ({"identifier": 7}, "is not of the form"),
    ],
)
def test_lines_that_are_refused(
    nlvr2_folder: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    (tmp_path / "images").mkdir()
    line = json.loads((nlvr2_folder / "dev.json").read_text(encoding="utf-8").splitlines()[0])
    (tmp_path / "dev.json").write_text(json.dumps({**line, **change}))
    with pytest.raises(DataError, match=rf"dev\.json, line 1.*{message}"):
        read_nlvr2(tmp_path, "dev", None, False)


def test_files_that_are_refused(nlvr2_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of dev\.json"):
        read_nlvr2(tmp_path, "dev", None, False)
    (tmp_path / "dev.json").write_text("[1]\n")
    with pytest.raises(DataError, match="as --images"):
        read_nlvr2(tmp_path, "dev", None, False)
    with pytest.raises(DataError, match="line 1: not an object"):
        read_nlvr2(tmp_path, "dev", nlvr2_folder, False)
    (tmp_path / "dev.json").write_text('{"identifier": \n')
    with pytest.raises(DataError, match="line 1: not JSON"):
        read_nlvr2(tmp_path, "dev", nlvr2_folder, False)


def test_missing_images_are_named_or_left_out(nlvr2_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(nlvr2_folder, tmp_path / "copy")
    (tmp_path / "copy/images/dev/dev-3-1-img1.png").unlink()
    with pytest.raises(
        DataError, match=r"1 of 16 examples of dev\.json are missing, first dev-3-1-img1\.png"
    ):
        read_nlvr2(tmp_path / "copy", "dev", None, False)
    read = read_nlvr2(tmp_path / "copy", "dev", None, True)
    assert (len(read.examples), read.missing) == (15, 1)
    shutil.rmtree(tmp_path / "copy/images/dev")
    with pytest.raises(DataError, match="16 of 16"):
        read_nlvr2(tmp_path / "copy", "dev", None, True)


def test_consistency_is_that_of_the_authors_script() -> None:
    rng = np.random.default_rng(0)
    identifiers = [f"dev-{s}-{p}-{q}" for s in range(30) for p in range(4) for q in range(2)]
    right = (rng.random(len(identifiers)) < 0.8).astype(float)
    consistent: dict[str, bool] = {}  # their metrics.py, in short
    for identifier, hit in zip(identifiers, right, strict=True):
        parts = identifier.split("-")
        parts[2] = ""
        key = "-".join(parts)
        consistent[key] = consistent.get(key, True) and bool(hit)
    sentences = [f"{a}-{b}-{d}" for a, b, _, d in (i.split("-") for i in identifiers)]
    found = pair_scores(sentences, right, np.ones(len(right)))
    assert found["accuracy"] == pytest.approx(100 * right.mean())
    assert found["consistency"] == pytest.approx(100 * np.mean(list(consistent.values())))
    assert found["chance_consistency"] == pytest.approx(100 / 16)
    assert found["sentences"] == 60
    assert found["majority_accuracy"] == found["majority_consistency"] == 100
    low, high = found["accuracy_interval"]
    assert low < found["accuracy"] < high


@pytest.mark.parametrize("frozen", [False, True])
def test_learns_what_one_image_tells(model_dir: Path, nlvr2_folder: Path, frozen: bool) -> None:
    config = Nlvr2Config(
        str(model_dir),
        nlvr2_folder,
        hidden=32,
        frozen=frozen,
        loop=LoopConfig(epochs=10, batch_size=8, lr=3e-3, layer_decay=0.9),
        run=RunConfig(workers=0),
    )
    scores = run_nlvr2(config, quiet)["seeds"]["0"]
    assert scores["accuracy"] >= 80
    assert scores["consistency"] >= 60
    assert scores["chance_accuracy"] == 50
    assert scores["chance_consistency"] == 25
    assert scores["majority_accuracy"] == 50
    assert scores["examples"] == 16


def test_damaged_images_are_left_out_and_counted(model_dir: Path, nlvr2_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(nlvr2_folder, tmp_path / "copy")
    for name in ("dev/dev-3-1-img1.png", "train/2/train-2-0-img0.png"):
        (tmp_path / "copy/images" / name).write_bytes(b"not a picture")
    config = Nlvr2Config(
        str(model_dir), tmp_path / "copy", hidden=8, loop=LoopConfig(epochs=1), run=RunConfig(workers=0)
    )
    found = run_nlvr2(config, quiet)
    assert found["seeds"]["0"]["examples"] == 15
    assert found["skipped"]["0"] == {"train": {"not an image": 1}, "evaluation": {"not an image": 1}}


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_goes_away_is_one_error_from_any_process(
    model_dir: Path, nlvr2_folder: Path, tmp_path: Path, workers: int
) -> None:
    shutil.copytree(nlvr2_folder, tmp_path / "copy")
    gone = tmp_path / "copy/images/train/2/train-2-0-img0.png"

    def say(line: str) -> None:
        if "training" in line:  # the list is read, the images are not
            gone.unlink()

    config = Nlvr2Config(
        str(model_dir), tmp_path / "copy", hidden=8, loop=LoopConfig(epochs=1), run=RunConfig(workers=workers)
    )
    with pytest.raises(DataError) as caught:
        run_nlvr2(config, say)
    assert str(caught.value) == f"{gone} cannot be read: No such file or directory"


def test_peers_are_refused(nlvr2_folder: Path) -> None:
    with pytest.raises(ConfigError, match="takes the folder of a trained model"):
        run_nlvr2(Nlvr2Config("timm:resnet18", nlvr2_folder), quiet)
