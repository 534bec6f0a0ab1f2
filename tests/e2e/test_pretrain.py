"""What a run leaves behind, and that cached targets equal the online teacher."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssmke.cli.main import main
from ssmke.models.student import SSMKE
from tests.e2e.runs import ZERO2, Pretrain, Run, environment, start

pytestmark = pytest.mark.e2e


def test_a_run_leaves_all_that_a_rerun_needs(unbroken: Run) -> None:
    folder = unbroken.folder
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["optim"]["batch_size"] == 16
    assert json.loads((folder / "deepspeed.json").read_text())["train_micro_batch_size_per_gpu"] == 8
    results = json.loads((folder / "results.json").read_text())
    assert results["pairs"] == 16 * 16
    assert results["device_hours"] > 0
    assert [line["step"] for line in unbroken.metrics] == list(range(1, 17))
    assert (folder / "retrieval.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in (folder / "checkpoints").glob("step-*")) == [
        "step-00000008",
        "step-00000016",
    ]
    assert list((folder / "cost").rglob("*.jsonl"))


def test_a_run_leaves_nothing_in_shared_memory(pretrain: Pretrain) -> None:
    held = Path("/dev/shm")
    before = set(held.glob("deepspeed_*"))
    pretrain("--stop-after", "1")
    assert set(held.glob("deepspeed_*")) <= before


def test_the_closing_table_says_everything(unbroken: Run) -> None:
    for words in (
        "image -> text",
        "times chance",
        "pairs/s",
        "device-hours",
        "dollars",
        "ssmke evaluate retrieval",
    ):
        assert words in unbroken.output
    assert str(unbroken.folder) in unbroken.output
    assert "Traceback" not in unbroken.output


def test_the_embedded_default_renders_its_data_and_learns(tmp_path: Path) -> None:
    flags = ["--run-dir", str(tmp_path / "run"), "--stop-after", "60", "--tracking.no-enabled"]
    done = subprocess.run(
        start(ZERO2, 2, flags), capture_output=True, text=True, cwd=tmp_path, env=environment(), check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "data" / "scenes" / "manifest.json").exists()
    contrast = [line["contrast"] for line in Run(done.stdout, tmp_path / "run").metrics]
    # Chance is ln 128 = 4.85; 60 steps reach about 3.7.
    assert sum(contrast[-10:]) / 10 < 4.3


def test_the_trained_model_loads_and_scores_what_the_run_scored(
    unbroken: Run, pairs_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = SSMKE.from_pretrained(unbroken.folder / "model")
    assert torch.isfinite(model.encode_text(["a red dog"])).all()
    out = tmp_path / "scores.json"
    flags = ["--model", str(unbroken.folder / "model"), "--data", str(pairs_dir), "--split", "val"]
    assert main(["evaluate", "retrieval", *flags, "--out", str(out), "--device", "cpu"]) == 0
    found = json.loads(out.read_text())
    scored = json.loads((unbroken.folder / "results.json").read_text())["retrieval"]
    flat = json.dumps(found)
    assert f'"i2t_r1": {scored["i2t_r1"]}' in flat
    capsys.readouterr()


def test_the_cost_report_lists_the_run(unbroken: Run) -> None:
    command = [
        sys.executable,
        "-m",
        "ssmke.cli.cost",
        "report",
        str(unbroken.folder.parent),
        "--format",
        "json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
    assert unbroken.folder.name in done.stdout


@pytest.fixture(scope="module")
def online(pretrain: Pretrain) -> Run:
    """The run with the teacher in every step."""
    return pretrain("--targets.mode", "online")


def test_with_as_many_views_as_epochs_the_cache_equals_the_online_teacher(
    online: Run, pretrain: Pretrain
) -> None:
    cached = pretrain("--targets.views", "2")
    # fp16 targets: 5e-4 of a cosine, times a scale of about 14, over the batch.
    assert cached.losses == pytest.approx(online.losses, rel=2e-3)
    assert [line["keys"] for line in cached.metrics] == [line["keys"] for line in online.metrics]


def test_one_canonical_view_is_near_the_online_teacher_but_not_equal(
    pretrain: Pretrain, unbroken: Run
) -> None:
    online = pretrain("--targets.mode", "online")
    assert unbroken.losses != pytest.approx(online.losses, rel=1e-5)
    assert unbroken.losses == pytest.approx(online.losses, rel=0.1)


@pytest.mark.parametrize(
    "choice",
    [
        ["--loss.distillation", "none", "--loss.bank", "none"],
        ["--loss.distillation", "mse"],
        ["--loss.bank", "cache"],
        ["--loss.distillation", "kl", "--teacher.output", "logits"],
        ["--model.shared.kind", "mlp"],
        ["--loss.contrast", "output"],
    ],
    ids=["none", "mse", "bank from cache", "kl", "mlp", "one level"],
)
def test_every_objective_can_be_chosen(choice: list[str], pretrain: Pretrain) -> None:
    run = pretrain(*choice, ranks=0)
    assert run.losses[-1] < run.losses[0]
