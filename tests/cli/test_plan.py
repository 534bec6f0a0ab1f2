"""`ssmke plan`: a choice with its command, as a table and as JSON, and one clear message for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ssmke.cli.plan import main
from ssmke.errors import SSMKEError
from ssmke.training import ds_config

CONFIGS = Path(__file__).parents[2] / "ds_configs"
TINY = ["--recipe", "scenes-tiny", "--configs", str(CONFIGS)]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    # The command sets it before it imports the client of the hub, which other tests have imported already.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def planned(capsys: pytest.CaptureFixture[str]) -> Any:
    def plan(*words: str) -> tuple[int, dict[str, Any]]:
        code = main([*TINY, *words, "--format", "json"])
        return code, json.loads(capsys.readouterr().out)

    return plan


def test_the_choice_is_one_that_training_accepts(planned: Any, tmp_path: Path) -> None:
    code, report = planned("--gpus", "2", "--device", "H100", "--pairs", "9000", "--price", "2.5")
    assert code == 0
    chosen = next(row for row in report["options"] if row["config"] == report["chosen"])
    assert chosen["fits"]
    assert chosen["device_total"] == sum(chosen["device_bytes"].values()) <= 80 << 30
    document = {**ds_config.load(CONFIGS / f"{report['chosen']}.json"), **report["batch_keys"]}
    resolved = ds_config.resolve(document, "made.json", batch_size=128, world_size=2, cuda=True)
    assert (resolved.micro_batch, resolved.accumulation) == (chosen["micro_batch"], chosen["accumulation"])
    assert "--num_gpus 2 launchers/pretrain.py --deepspeed_config" in report["command"]
    rate, estimate = chosen["pairs_per_second"], chosen["estimate"]
    assert 0 < rate["low"] < rate["point"] < rate["high"]
    assert float(estimate["usd"]["point"]) == pytest.approx(estimate["hours"]["point"] * 2.5, rel=1e-6)
    # Three epochs at that rate, and the target cache beside it.
    steps = -(-9000 // 128) * 3
    assert estimate["hours"]["point"] * 3600 >= steps * 128 / rate["high"]


def test_memory_alone_gives_no_time_and_no_price(planned: Any) -> None:
    code, report = planned("--gpus", "1", "--memory", "24")
    assert code == 0
    assert {row["config"] for row in report["options"]} == {path.stem for path in CONFIGS.glob("*.json")}
    assert all(row["estimate"] is None and row["pairs_per_second"] is None for row in report["options"])


def test_a_smaller_gpu_accumulates_and_says_what_that_costs(
    planned: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    large = ("--set", "optim.batch-size", "16384", "--gpus", "1")
    _, roomy = planned(*large, "--memory", "80")
    code, tight = planned(*large, "--memory", "3")
    assert code == 0
    by_name = {row["config"]: row["micro_batch"] for row in roomy["options"]}
    assert all(row["micro_batch"] <= by_name[row["config"]] for row in tight["options"])
    chosen = next(row for row in tight["options"] if row["config"] == tight["chosen"])
    assert chosen["accumulation"] > 1
    assert chosen["micro_batch"] * chosen["accumulation"] == 16384
    assert main([*TINY, *large, "--memory", "3"]) == 0
    out = capsys.readouterr().out
    assert "one more forward pass" in out
    assert '"train_batch_size": 16384' in out
    assert "--optim.batch-size 16384" in out


def test_what_fits_nowhere_says_what_would(planned: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = planned("--gpus", "2", "--memory", "1")
    assert code == 1
    assert report["chosen"] is None
    assert not any(row["fits"] for row in report["options"])
    assert main([*TINY, "--gpus", "2", "--memory", "1"]) == 1
    out = capsys.readouterr().out
    assert "nothing fits into 1 GiB" in out
    assert "compute.checkpointing" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--gpus 0 --device H100", "--gpus 0: must be at least 1"),
        ("--gpus 2 --device H9000", "device 'H9000' is not known"),
        ("--gpus 2", "--device or --memory is missing"),
        ("--gpus 3 --memory 24", "optim.batch-size 128 is not a multiple of --gpus 3"),
        ("--gpus 2 --memory 0", "--memory 0: must be GiB"),
        ("--gpus 2 --memory nan", "--memory nan: must be GiB"),
        ("--gpus 2 --memory 24 --price 2", "go with --device"),
        ("--gpus 2 --memory 24 --mfu 0.1 0.2", "--mfu goes with --device"),
        ("--gpus 2 --device H100 --mfu 0.5 0.2 --pairs 9", "--mfu 0.5 0.2: must be two shares"),
        ("--gpus 2 --memory 24 --text-tokens 1000", "--text-tokens 1000: must lie between 1 and"),
        ("--gpus 2 --memory 24 --text-tokens nan", "--text-tokens nan: must lie between 1 and"),
        ("--gpus 2 --device H100 --pairs 0", "--pairs 0: must be at least 1"),
        ("--gpus 2 --device H100", "--pairs is missing"),
        ("--gpus 2 --memory 24 --configs /nowhere", "--configs /nowhere: no such folder"),
        ("--gpus 2 --memory 24 --recipe ssmke-bsae", "did you mean ssmke-base?"),
        (
            "--gpus 2 --memory 24 --recipe flickr8k-small --set model.text.name made-up/model",
            "made-up/model: no architecture for it on this machine",
        ),
    ],
)
def test_one_clear_message(words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SSMKEError) as caught:
        main([*TINY, *words.split()])
    assert message in str(caught.value)


def test_switches_of_the_recipe_can_be_set_and_are_in_the_command(planned: Any) -> None:
    plain = planned("--gpus", "1", "--memory", "24")[1]
    code, report = planned("--gpus", "1", "--memory", "24", "--set", "compute.checkpointing", "True")
    assert code == 0
    assert report["command"].endswith("--recipe scenes-tiny --compute.checkpointing")
    activations = [document["options"][0]["device_bytes"]["activations"] for document in (plain, report)]
    assert activations[1] < activations[0]
    assert "--compute.no-pack-text" in planned(
        "--gpus", "1", "--memory", "24", "--set", "compute.pack_text", "False"
    )[1]["command"]  # fmt: skip
