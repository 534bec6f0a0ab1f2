"""Interruptions, checkpoints, and losses that are no numbers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ssmke.errors import CheckpointError, DataError
from ssmke.evaluation.finetune import loop as loop_module
from ssmke.evaluation.finetune.config import GlueConfig, RunConfig
from ssmke.evaluation.finetune.image_classification import ImageTask
from ssmke.evaluation.finetune.run import run_glue, run_image_classification
from ssmke.evaluation.retrieval import EvaluationError
from tests.evaluation.finetune.test_images import configured

SEED_FOLDER = "seed-0"


def quiet(_: str) -> None: ...


class Stop(Exception):
    """What stands for an interruption."""


def test_a_resumed_run_equals_an_unbroken_one(
    model_dir: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(work: Path) -> list[dict[str, object]]:
        config = configured(model_dir, image_folder, 4, run=RunConfig(work=work, workers=0))
        history: list[dict[str, object]] = run_image_classification(config, quiet)["epochs"]["0"]
        return history

    unbroken = run(tmp_path / "a")
    real = ImageTask.loss

    def stops(self: ImageTask, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        stops.calls += 1  # type: ignore[attr-defined]
        if stops.calls == 8:  # type: ignore[attr-defined]  # in the middle of the third epoch of 4 steps
            raise Stop
        return real(self, batch)

    stops.calls = -1  # type: ignore[attr-defined]
    monkeypatch.setattr(ImageTask, "loss", stops)
    with pytest.raises(Stop):
        run(tmp_path / "b")
    state = json.loads((tmp_path / "b" / SEED_FOLDER / "state.json").read_bytes())
    assert len(state["history"]) == 2
    assert run(tmp_path / "b") == unbroken
    finished = [load_file(tmp_path / name / SEED_FOLDER / "epoch-4.safetensors") for name in "ab"]
    assert finished[0].keys() == finished[1].keys()
    assert all(torch.equal(value, finished[1][name]) for name, value in finished[0].items())
    assert not any(name.startswith("exp_avg") for name in finished[0])
    calls = stops.calls  # type: ignore[attr-defined]
    assert run(tmp_path / "b") == unbroken  # from its file, without a step
    assert stops.calls == calls  # type: ignore[attr-defined]
    assert sorted(path.name for path in (tmp_path / "b" / SEED_FOLDER).iterdir()) == [
        "epoch-4.safetensors",
        "state.json",
    ]


@pytest.fixture
def begun(model_dir: Path, image_folder: Path, tmp_path: Path) -> Path:
    config = configured(model_dir, image_folder, 1, run=RunConfig(work=tmp_path / "work", workers=0))
    run_image_classification(config, quiet)
    return tmp_path / "work"


def test_a_checkpoint_of_another_run_is_refused(model_dir: Path, image_folder: Path, begun: Path) -> None:
    config = configured(model_dir, image_folder, 1, run=RunConfig(work=begun, workers=0))
    other = dataclasses.replace(config, loop=dataclasses.replace(config.loop, lr=1e-4))
    with pytest.raises(CheckpointError, match=r"another run \(config\.loop\.lr 0\.003, now 0\.0001\)"):
        run_image_classification(other, quiet)


@pytest.mark.parametrize("damage", ["cut", "json", "missing", "shape"])
def test_a_damaged_checkpoint_is_refused(
    model_dir: Path, image_folder: Path, begun: Path, damage: str
) -> None:
    folder = begun / SEED_FOLDER
    tensors = folder / "epoch-1.safetensors"
    if damage == "cut":
        tensors.write_bytes(tensors.read_bytes()[:500])
    elif damage == "json":
        (folder / "state.json").write_text("{")
    elif damage == "missing":
        tensors.unlink()
    else:
        from safetensors.torch import save_file

        state = load_file(tensors)
        state["model.head.1.bias"] = torch.zeros(7)
        save_file(state, tensors)
    config = configured(model_dir, image_folder, 1, run=RunConfig(work=begun, workers=0))
    with pytest.raises(CheckpointError, match="start again"):
        run_image_classification(config, quiet)


def test_work_that_cannot_be_written(model_dir: Path, image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = configured(model_dir, image_folder, 1, run=RunConfig(work=tmp_path / "file" / "x", workers=0))
    with pytest.raises((DataError, CheckpointError), match="file"):
        run_image_classification(config, quiet)


def test_a_loss_that_is_no_number_ends_the_run(model_dir: Path, glue_folder: Path) -> None:
    config = GlueConfig(str(model_dir), glue_folder, tasks=("STS-B",), lr=1e30, warmup=0, clip_norm=None)
    with pytest.raises(EvaluationError, match=r"the loss is (nan|inf) in epoch 1, step \d+ of 6: lower --lr"):
        run_glue(config, quiet)


def test_seeds_of_parts_differ() -> None:
    assert loop_module.seed_of("epoch", 1, 11) != loop_module.seed_of("epoch", 11, 1)
    assert 0 <= loop_module.seed_of("x") < 2**63
    assert sorted(loop_module.permutation(9, "a", 0).tolist()) == list(range(9))
