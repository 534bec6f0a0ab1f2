"""Ranks that die, hang or fail end the others: soon, with code 4, and with the culprit's name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ssmke.training.watchdog import RankLost
from tests.e2e.runs import ROOT
from tests.faults.watched_ranks import RANKS

GO_ON = "the same command with --resume auto goes on from there"


class Group:
    """What the ranks of one scenario said and ended with."""

    def __init__(self, folder: Path) -> None:
        self.said = [(folder / f"rank-{rank}.log").read_text() for rank in range(RANKS)]
        self.codes = [int((folder / f"rank-{rank}.code").read_text()) for rank in range(RANKS)]
        self.stacks = {path.name: path.read_text() for path in folder.glob("faults/*.txt")}

    def told(self) -> list[str]:
        """Error lines of all ranks."""
        return [line for text in self.said for line in text.splitlines() if line.startswith("error:")]


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Group]:
    folder = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.watched_ranks", str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {path.name: Group(path) for path in folder.iterdir()}


def test_a_killed_rank_is_named_and_the_others_end(groups: dict[str, Group]) -> None:
    group = groups["killed"]
    assert group.codes == [RankLost.exit_code, -9, RankLost.exit_code]
    [line] = group.told()
    assert line.startswith("error: rank 1 (")
    assert "died, last heard of " in line
    assert line.endswith(GO_ON)


def test_where_rank_0_is_gone_the_others_say_so(groups: dict[str, Group]) -> None:
    group = groups["rank_0_killed"]
    assert group.codes == [-9, RankLost.exit_code, RankLost.exit_code]
    assert len(group.told()) == 2
    assert all(line.startswith("error: rank 0 (") for line in group.told())


def test_a_frozen_process_counts_as_dead(groups: dict[str, Group]) -> None:
    group = groups["frozen"]
    assert group.codes[:2] == [RankLost.exit_code] * 2
    [line] = group.told()
    assert line.startswith("error: rank 2 (")
    assert "has not been heard of for" in line


def test_an_error_of_one_rank_is_what_the_others_end_with(groups: dict[str, Group]) -> None:
    group = groups["own_error"]
    assert group.codes == [RankLost.exit_code, 2, RankLost.exit_code]
    assert "error: the disk of rank 1 is full" in group.said[1]
    [line] = [line for line in group.said[0].splitlines() if line.startswith("error")]
    assert line.endswith("ended at step 2 in train with: the disk of rank 1 is full")


def test_a_bug_keeps_its_traceback_on_its_own_rank(groups: dict[str, Group]) -> None:
    group = groups["bug"]
    assert group.codes == [RankLost.exit_code, 1, RankLost.exit_code]
    assert "Traceback" in group.said[1]
    assert "with: ZeroDivisionError: division by zero" in group.told()[0]
    assert "Traceback" not in group.said[0]


def test_the_rank_that_waits_for_data_is_told_from_those_that_wait_for_it(groups: dict[str, Group]) -> None:
    group = groups["waits_for_data"]
    assert group.codes == [RankLost.exit_code] * 3
    [line] = group.told()
    assert line.startswith("error: rank 2 (")
    assert "in data wait" in line


def test_the_rank_that_never_comes_to_the_collective_is_named(groups: dict[str, Group]) -> None:
    group = groups["computes_for_ever"]
    assert group.codes == [RankLost.exit_code] * 3
    [line] = group.told()
    assert line.startswith("error: rank 1 (")
    assert "has stood still for" in line
    assert "at step 2 in train" in line
    assert "computes_for_ever" in group.stacks["rank-1.txt"]
    assert "last words" in group.said[1]  # its main thread could not leave by itself


def test_a_deadlock_names_all_and_keeps_their_stacks(groups: dict[str, Group]) -> None:
    group = groups["deadlock"]
    assert group.codes == [RankLost.exit_code] * 3
    [line] = group.told()
    assert line.startswith("error: all 3 ranks have stood still")
    assert len(group.stacks) == 3
    assert all("deadlock" in stack for stack in group.stacks.values())


def test_who_gets_on_slowly_is_left_alone(groups: dict[str, Group]) -> None:
    group = groups["well"]
    assert group.codes == [0, 0, 0]
    assert group.told() == []
    assert not group.stacks
