"""`ssmke reproduce`: plans without running, and refuses what it cannot do."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssmke.cli.reproduce import main
from ssmke.data.atomic import make_folder, write_json
from ssmke.errors import ConfigError


def test_a_plan_gives_hours_and_dollars_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--scale", "scenes", "--plan", "--device", "RTX4090", "--set", "optim.epochs", "2"]
    assert main(["cheap-peers", *flags]) == 0
    said = capsys.readouterr().out
    assert "7 trainings and 7 evaluations at scale scenes; 0 done before" in said
    assert said.count(" h   $") == 8
    assert "Not in it: evaluations." in said
    assert list(tmp_path.iterdir()) == []


def test_a_plan_counts_every_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    amounts = []
    # A value of several words is one of the forecast, too.
    for flags in (["--set", "optim.betas", "0.9 0.95"], ["--seeds", "3", "--seed", "7"]):
        assert main(["efficiency", "--plan", "--device", "RTX4090", *flags]) == 0
        said = capsys.readouterr().out
        [line] = [line for line in said.splitlines() if "these together" in line]
        amounts.append([float(word.lstrip("$")) for word in line.split() if word.strip("$")[0].isdigit()])
    assert amounts[1] == pytest.approx([3 * amount for amount in amounts[0]], abs=0.02)
    assert "3 trainings and 3 evaluations at scale scenes, seeds 7 to 9; 0 done before" in said
    assert "S-SMKE, contrastive KD + bank (3 seeds)" in said
    with pytest.raises(ConfigError, match="--seeds 0: must be at least 1"):
        main(["efficiency", "--seeds", "0"])
    with pytest.raises(ConfigError, match="--seed -1: must be 0 or more"):
        main(["efficiency", "--seed", "-1"])


def test_a_report_is_of_all_seeds_that_the_folder_holds(tmp_path: Path) -> None:
    make_folder(tmp_path / "results")
    write_json(tmp_path / "settings.json", {"--seed": 5, "--seeds": 2})
    for name, value in (("bank-scenes", 40.0), ("bank-seed6-scenes", 43.0)):
        found = {"metrics": {"mean_r1": value}, "intervals": {"mean_r1": [value - 2, value + 2]}}
        write_json(tmp_path / "results" / f"{name}.json", found)
    assert main(["token-type", "--report", "--out", str(tmp_path)]) == 0
    assert "| 41.50 ± 2.12 \\(39.5 to 43.5\\) |" in (tmp_path / "report.md").read_text("utf-8")
    assert "41.50 ± 2.12 (39.5 to 43.5)" in (tmp_path / "report.html").read_text("utf-8")


def test_finetuning_is_forecast_on_its_own_data(capsys: pytest.CaptureFixture[str]) -> None:
    main(["finetuning", "--scale", "full", "--plan", "--device", "RTX4090"])
    lines = capsys.readouterr().out.splitlines()
    hours = {
        line[2:52].strip(): float(line.split(" h ")[0].split()[-1]) for line in lines if " h   $" in line
    }
    assert hours["the same, finetuned on Flickr30K"] < hours["the same, finetuned on COCO"] < 2
    assert hours["S-SMKE, contrastive KD + bank"] > 5


def test_missing_data_stop_it_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="lacks what --scale full"):
        main(["distillation", "--scale", "full"])
    with pytest.raises(ConfigError, match="--ranks 0"):
        main(["distillation", "--ranks", "0"])
