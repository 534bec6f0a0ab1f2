"""Ledgers of other machines: taken over once, however often and in whatever state they come."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ssmke.cost.ledger.collect import import_ledgers
from ssmke.cost.report import report
from ssmke.errors import DataError
from tests.cost.simulated import SECOND, Run


def elsewhere(folder: Path, lineage: str = "lineage", attempt: str = "a", seconds: int = 60) -> Path:
    Run(folder).attempt(attempt, [("train", seconds)], lineage=lineage)
    return folder


def paid(workspace: Path) -> int:
    return report(workspace).project.node_ns


def test_importing_again_or_an_older_copy_changes_nothing(tmp_path: Path) -> None:
    source = elsewhere(tmp_path / "copied/runs/x")
    done = import_ledgers([tmp_path / "copied"], tmp_path / "here")
    assert (done.new, done.grown, done.known) == (1, 0, 0)
    assert paid(tmp_path / "here") == 60 * SECOND
    again = import_ledgers([tmp_path / "copied"], tmp_path / "here")
    assert (again.new, again.grown, again.known) == (0, 0, 1)
    ledger = source / "cost/a/node0000.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-100])  # as it was before it ended
    assert import_ledgers([tmp_path / "copied"], tmp_path / "here").known == 1
    assert paid(tmp_path / "here") == 60 * SECOND


def test_a_ledger_that_has_grown_replaces_its_older_copy(tmp_path: Path) -> None:
    source = elsewhere(tmp_path / "copied/x", seconds=600)
    ledger = source / "cost/a/node0000.jsonl"
    whole = ledger.read_bytes()
    ledger.write_bytes(whole[: len(whole) // 2])
    import_ledgers([tmp_path / "copied"], tmp_path / "here")
    assert paid(tmp_path / "here") < 600 * SECOND
    ledger.write_bytes(whole)
    assert import_ledgers([tmp_path / "copied"], tmp_path / "here").grown == 1
    assert paid(tmp_path / "here") == 600 * SECOND


def test_a_run_that_is_here_already_gets_its_other_node(tmp_path: Path) -> None:
    elsewhere(tmp_path / "here/scenes/mine", seconds=60)
    elsewhere(tmp_path / "copied/other-name", attempt="b", seconds=40)
    done = import_ledgers([tmp_path / "copied"], tmp_path / "here")
    assert done.runs == (tmp_path / "here/scenes/mine",)
    [run] = report(tmp_path / "here").runs
    assert len(run.attempts) == 2
    assert run.usage.node_ns == 100 * SECOND


def test_two_machines_that_both_call_themselves_node_0_are_both_kept(tmp_path: Path) -> None:
    elsewhere(tmp_path / "one/x", seconds=60)
    elsewhere(tmp_path / "two/x", seconds=200)  # longer, and another start
    (tmp_path / "two/x/cost/a/node0000.jsonl").write_bytes(
        (tmp_path / "two/x/cost/a/node0000.jsonl").read_bytes().replace(b"h" * 16, b"g" * 16)
    )
    for _ in range(2):
        import_ledgers([tmp_path / "one", tmp_path / "two"], tmp_path / "here")
    assert len(list((tmp_path / "here/x/cost/a").iterdir())) == 2
    assert paid(tmp_path / "here") == 260 * SECOND


def test_another_run_of_the_same_name_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    elsewhere(tmp_path / "here/x", lineage="mine")
    elsewhere(tmp_path / "copied/x", lineage="theirs", seconds=30)
    import_ledgers([tmp_path / "copied"], tmp_path / "here")
    assert sorted(r.usage.node_ns // SECOND for r in report(tmp_path / "here").runs) == [30, 60]


def test_a_copy_inside_the_workspace_is_not_counted_twice(tmp_path: Path) -> None:
    run = elsewhere(tmp_path / "here/x")
    shutil.copytree(run, tmp_path / "here/backup of x")
    assert paid(tmp_path / "here") == 60 * SECOND


def test_wrong_sources_are_named(tmp_path: Path) -> None:
    elsewhere(tmp_path / "here/x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="nowhere"):
        import_ledgers([tmp_path / "nowhere"], tmp_path / "here")
    with pytest.raises(DataError, match="empty: no ledger"):
        import_ledgers([tmp_path / "empty"], tmp_path / "here")
    with pytest.raises(DataError, match="already"):
        import_ledgers([tmp_path / "here/x"], tmp_path / "here")
