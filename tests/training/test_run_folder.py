"""Which folder a run goes on in, and what of its past is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ssmke.errors import CheckpointError, ConfigError
from ssmke.training.run_folder import open_run, truncate_metrics


def recipe(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    base = {
        "name": "toy",
        "runs_dir": str(tmp_path / "runs"),
        "run_dir": None,
        "resume": "none",
        "stop_after": None,
        "log_every": 1,
        "optim": {"lr": 0.1},
        "data": {"stream": {"workers": 1}, "shards": ["a"]},
    }
    return {**base, **changes}


def test_a_new_run_each_time_unless_told_to_go_on(tmp_path: Path) -> None:
    first, second = open_run(recipe(tmp_path)), open_run(recipe(tmp_path))
    assert first.path != second.path
    assert first.lineage != second.lineage
    assert not first.resumed


def test_auto_goes_on_with_the_newest_unfinished_run_of_this_recipe(tmp_path: Path) -> None:
    first = open_run(recipe(tmp_path))
    other = open_run(recipe(tmp_path, optim={"lr": 0.5}))
    resumed = open_run(recipe(tmp_path, resume="auto"))
    assert (resumed.path, resumed.lineage, resumed.resumed) == (first.path, first.lineage, True)
    assert resumed.attempt != first.attempt
    (first.path / "results.json").write_text("{}")
    assert open_run(recipe(tmp_path, resume="auto")).path not in (first.path, other.path)


def test_workers_and_logging_may_change_between_attempts(tmp_path: Path) -> None:
    first = open_run(recipe(tmp_path))
    changed = recipe(tmp_path, resume="auto", log_every=9, stop_after=3)
    changed["data"] = {"stream": {"workers": 7}, "shards": ["a"]}
    assert open_run(changed).path == first.path


def test_a_run_from_before_a_field_existed_goes_on_while_the_field_changes_nothing(tmp_path: Path) -> None:
    first = open_run(recipe(tmp_path))
    added = {"stream": {"workers": 1}, "shards": ["a"], "curriculum": {"patch_drop": 0.0, "share": 0.8}}
    assert open_run(recipe(tmp_path, resume="auto", data=added)).path == first.path
    added["curriculum"] = {"patch_drop": 0.5, "share": 0.8}
    assert open_run(recipe(tmp_path, resume="auto", data=added)).path != first.path


def test_a_named_run_of_another_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    first = open_run(recipe(tmp_path))
    with pytest.raises(ConfigError, match=r"optim\.lr is 0\.1 there, 0\.5 here"):
        open_run(recipe(tmp_path, resume=str(first.path), optim={"lr": 0.5}))


def test_an_existing_run_dir_is_not_overwritten(tmp_path: Path) -> None:
    target = str(tmp_path / "mine")
    first = open_run(recipe(tmp_path, run_dir=target))
    with pytest.raises(ConfigError, match="--resume auto"):
        open_run(recipe(tmp_path, run_dir=target))
    assert open_run(recipe(tmp_path, run_dir=target, resume="auto")).path == first.path


def test_what_is_no_run_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run folder"):
        open_run(recipe(tmp_path, resume=str(tmp_path)))


def test_a_damaged_lineage_is_named(tmp_path: Path) -> None:
    first = open_run(recipe(tmp_path))
    (first.path / "lineage.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"lineage\.json"):
        open_run(recipe(tmp_path, resume="auto"))


def test_metrics_of_repeated_steps_and_torn_lines_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step}) for step in (1, 2, 3, 4)]
    path.write_text("\n".join(lines) + '\n{"step": 5, "lo')
    truncate_metrics(path, 3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    truncate_metrics(tmp_path / "absent.jsonl", 3)
