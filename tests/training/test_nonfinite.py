"""A step whose loss or gradient is not a number changes no weight, under any engine; too many in a row end the run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.runs import ROOT, environment
from tests.training.bad_steps import BATCH, LIMIT

CASES = [
    *("stage 0 fp32 x1", "stage 1 fp32 x1", "stage 2 fp32 x1", "stage 3 fp32 x1"),
    *("stage 0 bf16 x1", "stage 2 bf16 x1", "stage 0 fp32 x2", "stage 2 fp32 x2"),
]


@pytest.fixture(scope="module")
def runs(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    command = [
        sys.executable,
        "-m",
        "tests.training.bad_steps",
        str(model_dir),
        str(tmp_path_factory.mktemp("bad")),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["case"]: line for line in lines}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_step_changes_nothing_and_training_goes_on(case: str, runs: dict[str, dict[str, Any]]) -> None:
    run = runs[case]
    expected = [True, False, False, True, False, False, False]
    assert run["applied"] == expected
    assert run["moved"] == expected
    assert run["finite"]


@pytest.mark.parametrize("case", CASES)
def test_so_many_in_a_row_end_the_run_and_their_keys_are_kept(
    case: str, runs: dict[str, dict[str, Any]]
) -> None:
    run = runs[case]
    assert run["stopped"].startswith(
        f"7: the loss or its gradient was not a number for {LIMIT} steps in a row"
    )
    assert run["file"] in run["stopped"]
    assert run["count"] == 5
    lines = [json.loads(line) for line in Path(run["file"]).read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 5, 6, 7]
    assert lines[0]["keys"] == [f"2-{i}" for i in range(BATCH)]
    assert lines[0]["losses"]["loss"] in ("nan", "inf")
    assert isinstance(lines[0]["losses"]["contrast"], float)
