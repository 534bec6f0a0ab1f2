"""Runs as the launchers start them: a stopped one goes on bit for bit, results are there, a student is finetuned."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ssmke.models.image_encoders import ImageEncoderConfig
from ssmke.models.student import SSMKE
from ssmke.training.unimodal.encoder_folder import load_image_encoder
from tests.e2e.runs import ROOT, ZERO2, environment
from tests.training.unimodal.conftest import LENGTH, VIT


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory,
    vit_file: Path,
    bert_dir: Path,
    texts: Path,
    shards_dir: Path,
    model_dir: Path,
) -> tuple[Path, str]:
    """The folder of all runs, and what they said."""
    folder = tmp_path_factory.mktemp("runs")
    two = json.loads(ZERO2.read_text()) | {"gradient_accumulation_steps": 2}
    (folder / "two.json").write_text(json.dumps(two))
    # A bare encoder: its head of masked words has to be fitted.
    bare = shutil.copytree(bert_dir, folder / "bare")
    state = load_file(bare / "model.safetensors")
    kept = {name: value for name, value in state.items() if not name.startswith("cls.")}
    save_file(kept, bare / "model.safetensors", metadata={"format": "pt"})
    trained = shutil.copytree(model_dir, folder / "trained")
    vit = [word for name, value in VIT.items() for word in (name, str(value))]
    common = ["--deepspeed_config", str(ZERO2), "--tracking.no-enabled", "--log-every", "2"]
    image = [
        *common, "--recipe", "distill-image-base", "--model.image.name", "vit_tiny_patch16_224",
        "--model.image.weights", str(vit_file), "--model.image.depth", "2", "--model.image.timm-kwargs", *vit,
        "--data.shards", str(shards_dir), "--data.split", "test", "--data.eval-split", "val",
        "--data.stream.workers", "0", "--data.stream.max-bad", "1", "--optim.batch-size", "8",
        "--optim.epochs", "3", "--optim.lr", "1e-3",
    ]  # fmt: skip
    text = [
        *common, "--recipe", "distill-text-base", "--model.text.weights", str(bare), "--model.text.depth", "2",
        "--model.text.max-tokens", str(LENGTH), "--data.files", str(texts), "--data.cache", str(folder / "cache"),
        "--data.held-out", "0.1", "--data.stream.workers", "0", "--optim.batch-size", "16", "--optim.lr", "1e-3",
        "--distil.mlm", "1", "--distil.head-steps", "30",
    ]  # fmt: skip
    finetune = [
        *common, "--recipe", "finetune-coco", "--init", str(trained), "--data.shards", str(shards_dir),
        "--data.split", "test", "--data.eval-split", "val", "--data.stream.workers", "0",
        "--data.stream.max-bad", "1", "--optim.batch-size", "16", "--optim.epochs", "1",
    ]  # fmt: skip
    jobs = []
    for kind, argv in (("image", image), ("text", text)):
        jobs.append((kind, [*argv, "--run-dir", str(folder / kind)]))
        stopped = [*argv, "--run-dir", str(folder / f"{kind}-stopped"), "--resume", "auto"]
        jobs += [(kind, [*stopped, "--stop-after", "3"]), (kind, stopped)]
    jobs.append((
        "image", [*image, "--deepspeed_config", str(folder / "two.json"), "--run-dir", str(folder / "two")]
    ))  # fmt: skip
    still = [*finetune, "--optim.lr", "0", "--run-dir", str(folder / "still")]
    jobs.append(("finetune", still))
    jobs.append(("finetune", [*finetune, "--model.image.depth", "1", "--run-dir", str(folder / "other")]))
    moved = [*finetune, "--run-dir", str(folder / "moved"), "--resume", "auto"]
    weights = load_file(trained / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, folder / "other.safetensors")
    jobs += [
        ("finetune", [*moved, "--stop-after", "1"]),
        ("replace", [str(folder / "other.safetensors"), str(trained / "model.safetensors")]),
        ("finetune", moved),
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    output = _run(folder / "jobs.json")
    return folder, output


def _run(jobs: Path) -> str:
    command = [sys.executable, "-m", "tests.training.unimodal.runs", str(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def metrics(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["image", "text"])
def test_a_stopped_run_repeats_the_unbroken_one_bit_for_bit(kind: str, runs: tuple[Path, str]) -> None:
    folder, output = runs
    assert "stopped by --stop-after 3 after step 3" in output
    whole, stopped = metrics(folder / kind), metrics(folder / f"{kind}-stopped")
    assert len(whole) > 4
    assert stopped == whole
    ours, theirs = (
        load_file(folder / name / "model" / "model.safetensors") for name in (kind, f"{kind}-stopped")
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_results_say_what_the_distillation_added(kind: str, runs: tuple[Path, str]) -> None:
    folder, _ = runs
    results = json.loads((folder / kind / "results.json").read_text())
    name = "mse" if kind == "image" else "cosine"
    assert results["held_out"][name] < results["held_out_at_start"][name]
    assert results["steps"] == len(metrics(folder / kind))
    assert results["device_hours"] > 0


def test_accumulation_gives_the_loss_of_the_whole_batch(runs: tuple[Path, str]) -> None:
    folder, _ = runs
    losses = [[line["loss"] for line in metrics(folder / name)] for name in ("image", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_damaged_images_are_replaced_and_counted(runs: tuple[Path, str]) -> None:
    folder, _ = runs
    skipped = json.loads((folder / "image" / "results.json").read_text())["skipped"]
    assert sum(skipped.values()) >= 3


def test_the_encoders_are_what_pretraining_begins_with(runs: tuple[Path, str], model: SSMKE) -> None:
    folder, _ = runs
    encoder = load_image_encoder(folder / "image" / "model")
    assert encoder.dim == VIT["embed_dim"]
    student = SSMKE(
        model.config.__class__(
            image=ImageEncoderConfig(
                "vit_tiny_patch16_224", 2, str(folder / "image" / "model"), timm_kwargs={**VIT}
            ),
            text=model.config.text.__class__(depth=2, weights=str(folder / "text" / "model"), max_tokens=16),
            shared=model.config.shared,
        )
    )
    own, wanted = student.image_encoder.state_dict(), encoder.state_dict()
    assert all(torch.equal(own[name], wanted[name]) for name in wanted)
    assert "none dropped" not in str(student.text_encoder.load_report)  # the head of masked words
    assert student.tokenizer().vocab_size == student.text_encoder.vocab_size


def test_finetuning_begins_with_the_folders_weights(runs: tuple[Path, str], model_dir: Path) -> None:
    folder, output = runs
    began = load_file(model_dir / "model.safetensors")
    ended = load_file(folder / "still" / "model" / "model.safetensors")
    assert ended.keys() == began.keys()
    assert all(torch.equal(ended[name], began[name]) for name in began)  # the learning rate was 0
    assert "failed: --model.image.depth 1 is not what --init" in output
    assert "distillation" not in metrics(folder / "still")[0]


def test_a_resumed_finetuning_refuses_other_weights(runs: tuple[Path, str]) -> None:
    folder, output = runs
    assert "failed: the run began with other weights than --init" in output
    assert len(metrics(folder / "moved")) == 1
