"""The finetuning commands as users give them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tyro.extras import SubcommandApp

from ssmke.cli.finetune_suites import _glue_numbers, register
from ssmke.errors import ConfigError, DataError, SSMKEError, WeightsError
from ssmke.evaluation.finetune.glue_data import TASKS
from tests.evaluation.finetune.conftest import glue_folder, image_folder, nlvr2_folder

__all__ = ["glue_folder", "image_folder", "nlvr2_folder"]


def run(*argv: object) -> int:
    app = SubcommandApp()
    register(app)
    code: int = app.cli(args=[str(word) for word in argv], prog="ssmke evaluate")
    return code


def test_image_classification(
    model_dir: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "numbers.json"
    argv = ["--model", model_dir, "--data", image_folder, "--epochs", 2, "--lr", 1e-3, "--workers", 0]
    assert run("image-classification", *argv, "--out", out, "--mixup", 0, "--seed", 1, 2) == 0
    shown, found = capsys.readouterr().out, json.loads(out.read_bytes())
    assert "3 classes, 49 training and 24 evaluation images" in shown
    assert "epoch 2/2: loss" in shown
    assert "33.33" in shown  # chance
    assert set(found["seeds"]) == {"1", "2"}
    assert found["config"]["augment"]["mixup"] == 0
    assert found["config"]["loop"]["epochs"] == 2
    assert len(found["model"]["weights_sha256"]) == 64


def test_glue(model_dir: Path, glue_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "numbers.json"
    argv = ["--model", model_dir, "--data", glue_folder, "--tasks", "SST-2", "STS-B", "--epochs", 1]
    assert run("glue", *argv, "--out", out) == 0
    shown = capsys.readouterr().out
    for word in ("SST-2: 96 training and 40 evaluation", "spearman", "pearson", "mean", "glue_average"):
        assert word in shown
    found = json.loads(out.read_bytes())
    assert found["means_over"] == ["SST-2", "STS-B"]
    numbers = _glue_numbers(found)
    assert numbers["SST-2/accuracy"] == found["tasks"]["SST-2"]["metrics"]["accuracy"]["mean"]
    assert not {"mean", "glue_average"} & set(numbers)  # of two tasks they compare with nothing
    assert _glue_numbers({**found, "means_over": list(TASKS)}) == {
        **numbers,
        **{name: value["mean"] for name, value in found["means"].items()},
    }


def test_nlvr2(model_dir: Path, nlvr2_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--model", model_dir, "--data", nlvr2_folder, "--epochs", 1, "--workers", 0, "--hidden", 8]
    assert run("nlvr2", *argv) == 0
    shown = capsys.readouterr().out
    for word in ("accuracy", "consistency", "chance", "majority class", "50.00", "25.00"):
        assert word in shown


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        (["--model", "nowhere"], WeightsError, "nowhere"),
        (["--model", "timm:resnet18"], ConfigError, "--part full"),
        (["--model", "timm:no_such_net", "--part", "encoder"], ConfigError, "no_such_net"),
        (["--model", "open_clip:ViT-B-32"], ConfigError, "timm:NAME"),
        (["--data", "nowhere"], DataError, "nowhere"),
        (["--device", "cuda:99"], ConfigError, "--device cuda:99"),
        (["--epochs", "0"], ConfigError, "--epochs 0"),
        (["--batch-size", "0"], ConfigError, "--batch-size 0"),
        (["--lr", "nan"], ConfigError, "--lr nan"),
        (["--layer-decay", "1.5"], ConfigError, "--layer-decay 1.5"),
        (["--mixup", "-1"], ConfigError, "--mixup -1"),
        (["--smoothing", "2"], ConfigError, "--smoothing 2"),
        (["--drop-path", "1"], ConfigError, "--drop-path 1"),
        (["--val-share", "1"], ConfigError, "--val-share 1"),
        (["--seed", "1", "1"], ConfigError, "--seed 1 1"),
        (["--workers", "-1"], ConfigError, "--workers -1"),
        (["--image-size", "64"], ConfigError, "--image-size"),
    ],
)
def test_refusals(
    model_dir: Path, image_folder: Path, changes: list[str], kind: type[SSMKEError], message: str
) -> None:
    argv = {"--model": [str(model_dir)], "--data": [str(image_folder)], changes[0]: changes[1:]}
    if "--part" in changes:
        argv = {"--data": [str(image_folder)], "--model": [changes[1]], "--part": ["encoder"]}
    with pytest.raises(kind, match=message):
        run("image-classification", *[word for flag, values in argv.items() for word in (flag, *values)])
