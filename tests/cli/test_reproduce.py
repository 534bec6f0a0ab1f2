"""`ssmke reproduce`: plans without running, and refuses what it cannot do."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssmke.cli.reproduce import main
from ssmke.errors import ConfigError


def test_a_plan_gives_hours_and_dollars_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--scale", "scenes", "--plan", "--device", "RTX4090", "--set", "optim.epochs", "2"]
    assert main(["cheap-peers", *flags]) == 0
    said = capsys.readouterr().out
    assert "4 trainings and 4 evaluations at scale scenes; 0 done before" in said
    assert said.count(" h   $") == 5
    assert "Not in it: evaluations." in said
    assert list(tmp_path.iterdir()) == []


def test_finetuning_is_forecast_on_its_own_data(capsys: pytest.CaptureFixture[str]) -> None:
    main(["finetuning", "--scale", "full", "--plan", "--device", "RTX4090"])
    lines = capsys.readouterr().out.splitlines()
    hours = {
        line[2:44].strip(): float(line.split(" h ")[0].split()[-1]) for line in lines if " h   $" in line
    }
    assert hours["the same, finetuned on Flickr30K"] < hours["the same, finetuned on COCO"] < 2
    assert hours["S-SMKE, contrastive KD + bank"] > 5


def test_missing_data_stop_it_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="lacks what --scale full"):
        main(["distillation", "--scale", "full"])
    with pytest.raises(ConfigError, match="--ranks 0"):
        main(["distillation", "--ranks", "0"])
