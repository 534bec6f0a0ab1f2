"""Steps run in order, are not repeated, and one that fails says how it ended."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ssmke.errors import ConfigError
from ssmke.reproduce import running
from ssmke.reproduce.running import (
    SEEDS,
    StepFailed,
    command_of,
    keep_settings,
    kept_seeds,
    run_steps,
    seconds_of,
)
from ssmke.reproduce.steps import Places, Step, require_data
from ssmke.reproduce.variants import TABLES


def rendering(folder: Path, images: int = 4) -> Step:
    """A real sub-command that is done in seconds."""
    command = (
        "data",
        "make",
        "scenes",
        "--out",
        str(folder),
        "--train",
        str(images),
        "--val",
        "2",
        "--test",
        "2",
    )
    return Step("render", command, False, folder / "manifest.json", "none")


def test_a_step_runs_once_and_its_seconds_are_kept(tmp_path: Path) -> None:
    said: list[str] = []
    steps = [rendering(tmp_path / "scenes")]
    run_steps(steps, tmp_path, 1, said.append)
    run_steps(steps, tmp_path, 1, said.append)
    assert said[0] == "1/1 render ..."
    assert said[-1] == "1/1 render: done before"
    assert json.loads((tmp_path / "scenes/manifest.json").read_text())["splits"]["train"]
    assert seconds_of(tmp_path)["render"] > 0
    log = (tmp_path / "logs/render.log").read_text()
    assert log.startswith("$ ")
    assert "data make scenes" in log.splitlines()[0]


def test_a_failure_shows_the_end_of_the_log_and_stops_the_rest(tmp_path: Path) -> None:
    bad = Step("bad", ("reproduce", "nothing"), False, tmp_path / "x", "none")
    after = rendering(tmp_path / "scenes")
    with pytest.raises(StepFailed, match=r"bad ended with code 2; .*the same command goes on(.|\n)*error: "):
        run_steps([bad, after], tmp_path, 1, lambda line: None)
    assert not after.result.exists()


def test_a_step_without_its_result_has_failed(tmp_path: Path) -> None:
    step = Step("empty", ("--version",), False, tmp_path / "never", "none")
    with pytest.raises(StepFailed, match=r"empty left no .*never"):
        run_steps([step], tmp_path, 1, lambda line: None)


def test_launchers_are_found_with_their_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Step(
        "x", ("pretrain.py", "--deepspeed_config", "zero2.json", "--seed", "0"), True, tmp_path, "none"
    )
    command = command_of(step, 2)
    assert command[1:3] == ["--num_gpus", "2"]
    assert command[3] == "--master_port"
    assert command[4] != command_of(step, 2)[4], "two runs of a machine do not meet at one port"
    assert Path(command[5]).exists()
    assert Path(command[command.index("--deepspeed_config") + 1]).exists()
    monkeypatch.setattr(running, "REPOSITORY", tmp_path)
    with pytest.raises(ConfigError, match="clone the repository"):
        command_of(step, 2)


def test_missing_data_are_named_with_what_makes_them(tmp_path: Path) -> None:
    said = r"coco: ssmke data get coco-captions(.|\n)*flickr30k: ssmke data get(.|\n)*openwebtext: a folder"
    with pytest.raises(ConfigError, match=said):
        require_data([TABLES["halves"]], "full", Places(tmp_path, tmp_path / "data"))


def test_suites_name_the_data_that_they_lack(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as found:
        require_data([TABLES["unimodal"], TABLES["teachers"]], "full", Places(tmp_path, tmp_path / "data"))
    lines = str(found.value).splitlines()
    for name in ("imagenet-classes", "cifar10", "cifar100", "glue", "openwebtext", "imagenet"):
        assert sum(f"data/{name}: " in line for line in lines) == 1, name


def test_a_folder_of_other_results_is_refused(tmp_path: Path) -> None:
    keep_settings(tmp_path / "out", {"--scale": "scenes", "--seed": 0})
    keep_settings(tmp_path / "out", {"--scale": "scenes", "--seed": 0})
    with pytest.raises(ConfigError, match=r"holds results of --seed 0: .*give another --out"):
        keep_settings(tmp_path / "out", {"--scale": "scenes", "--seed": 7})


def test_more_seeds_go_on_and_another_first_seed_does_not(tmp_path: Path) -> None:
    old = {"--scale": "scenes", "--seed": 4, "--set": [["optim.epochs", "1"]]}
    (tmp_path / "settings.json").write_text(json.dumps(old))  # of before there were several
    assert kept_seeds(tmp_path) == (4,)
    keep_settings(tmp_path, {**old, SEEDS: 3})
    assert kept_seeds(tmp_path) == (4, 5, 6)
    keep_settings(tmp_path, {**old, SEEDS: 1})
    assert kept_seeds(tmp_path) == (4, 5, 6), "what was trained is still there"
    others: list[dict[str, object]] = [{"--seed": 5}, {"--set": []}]
    for changed in others:
        with pytest.raises(ConfigError, match="holds results of --se"):
            keep_settings(tmp_path, {**old, **changed, SEEDS: 3})
    (tmp_path / "settings.json").write_text("[]")
    assert kept_seeds(tmp_path) is None
    with pytest.raises(ConfigError, match=r"settings\.json cannot be read"):
        keep_settings(tmp_path, {**old, SEEDS: 3})


def test_a_module_is_run_by_this_python(tmp_path: Path) -> None:
    step = Step("x", ("-m", "ssmke.reproduce.labelled_scenes", "--out", "d"), False, tmp_path, "x")
    assert command_of(step, 2) == [sys.executable, *step.command]


def test_times_that_are_damaged_are_no_times(tmp_path: Path) -> None:
    (tmp_path / "times.json").write_text("[]")
    assert seconds_of(tmp_path) == {}
