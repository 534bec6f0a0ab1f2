"""How long a rank may stand still: long enough for every healthy run."""

from __future__ import annotations

import pytest

from ssmke.training import vitals
from ssmke.training.vitals import Vitals

HANG = 60.0


class Clock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(vitals, "time", made)
    return made


def limit(rank: Vitals, phase: str) -> float:
    with rank.phase(phase):
        return rank.line().limit


def step(rank: Vitals, clock: Clock, seconds: float, *, waited: float = 0.0) -> None:
    """One step as the training loop tells it: data, the step itself, its report."""
    with rank.phase("data_wait"):
        clock.now += waited
    with rank.phase("train"):
        clock.now += seconds
    rank.at(rank.step + 1)
    with rank.phase("train"):
        pass


def test_steps_that_take_longer_than_the_limit_are_measured_first(clock: Clock) -> None:
    rank = Vitals(HANG)
    for _ in range(4):
        assert limit(rank, "train") > 90  # the third step began with a limit from the second
        step(rank, clock, 90.0)
    assert limit(rank, "train") == 900


def test_fast_steps_are_held_to_the_flag(clock: Clock) -> None:
    rank = Vitals(HANG)
    assert limit(rank, "train") == 15 * HANG  # the first may compile
    for _ in range(3):
        step(rank, clock, 0.5)
    assert limit(rank, "train") == HANG
    assert limit(rank, "data_wait") == 15 * HANG
    assert limit(rank, "evaluation") == limit(rank, "checkpoint") == limit(rank, "target_cache") == 60 * HANG
    assert limit(rank, "setup") == 0.0


def test_what_is_no_step_makes_no_step_long(clock: Clock) -> None:
    rank = Vitals(HANG)
    for _ in range(3):
        step(rank, clock, 1.0, waited=400.0)
    with rank.phase("checkpoint"):
        clock.now += 500.0
    for _ in range(3):
        step(rank, clock, 1.0)
    assert limit(rank, "train") == HANG


def test_steps_of_another_size_may_compile_again(clock: Clock) -> None:
    rank = Vitals(HANG)
    for _ in range(3):
        step(rank, clock, 1.0)
    rank.may_compile()
    assert limit(rank, "train") == 15 * HANG
    for _ in range(2):
        step(rank, clock, 1.0)
    assert limit(rank, "train") == HANG


def test_zero_turns_it_off(clock: Clock) -> None:
    rank = Vitals(0.0)
    step(rank, clock, 1.0)
    assert limit(rank, "train") == 0.0


def test_a_failure_leaves_the_phase_that_it_came_from(clock: Clock) -> None:
    rank = Vitals(HANG)
    with pytest.raises(RuntimeError), rank.phase("checkpoint"):
        raise RuntimeError
    assert rank.line().where == "in checkpoint"
