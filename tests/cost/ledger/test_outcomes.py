"""What paid time was good for: an interrupted run's useful part is what the unbroken run used."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmke.cost.ledger.outcomes import OUTCOMES, by_outcome, outcomes_by_attempt
from ssmke.cost.ledger.reader import Segment, read_run
from ssmke.cost.ledger.usage import Usage, total
from ssmke.cost.probes.probe import Sample
from tests.cost.simulated import GPU, PERIOD, SECOND, Clock, Training

STEPS, EVERY = 12, 3


def trained(
    kills: Sequence[float],
    *,
    reasons: Sequence[str | None] = (),
    clock: Clock | None = None,
    **options: object,
) -> list[Segment]:
    """A training of 12 steps with a checkpoint every 3, killed (or stopped) after so many seconds of each attempt."""
    with tempfile.TemporaryDirectory() as folder:
        training = Training(Path(folder), steps=STEPS, every=EVERY, clock=clock or Clock())
        for i, seconds in enumerate([*kills, None]):
            reason = reasons[i] if i < len(reasons) else None
            training.attempt(f"a{i}", seconds, reason=reason, **options)  # type: ignore[arg-type]
            training.clock.ns += 50 * SECOND
        assert training.saved == STEPS
        return read_run(Path(folder))


@given(kills=st.lists(st.floats(0.5, 150), max_size=5))
@settings(max_examples=60, deadline=None)
def test_useful_time_of_a_killed_run_is_that_of_the_unbroken_one(kills: list[float]) -> None:
    useful = by_outcome(trained(kills))["useful"]
    unbroken = total(trained([]))
    assert abs(useful.device_ns - unbroken.device_ns) <= PERIOD * len(kills)
    for phase in ("train", "evaluation", "checkpoint"):
        assert abs(useful.phases.get(phase, 0) - unbroken.phases.get(phase, 0)) <= PERIOD * len(kills)


@given(
    kills=st.lists(st.floats(0.5, 150), max_size=4),
    reasons=st.lists(st.sampled_from(["preempted", "failed", None])),
)
@settings(max_examples=40, deadline=None)
def test_outcomes_add_up_to_all_that_was_paid(kills: list[float], reasons: list[str | None]) -> None:
    readings = [{"GPU-0": Sample(mj=700_000 * i, util=50.0)} for i in range(500)]
    found = trained(
        kills, reasons=reasons, devices=(GPU, dataclasses.replace(GPU, id="GPU-1")), readings=readings
    )
    parts, whole = by_outcome(found), total(found)
    assert sum(parts.values(), Usage()) == whole
    assert set(parts) == set(OUTCOMES)
    for name, attempt in outcomes_by_attempt(found).items():
        assert sum(attempt.values(), Usage()) == total([s for s in found if s.attempt == name])
    for part in parts.values():
        assert part.device_ns == sum(part.phases.values())
        assert part.device_ns >= 0
        if part.usd is not None:
            assert part.usd >= 0


@given(kills=st.lists(st.floats(1, 100), min_size=1, max_size=4), data=st.data())
@settings(max_examples=30, deadline=None)
def test_order_and_copies_of_files_and_a_moved_clock_change_no_outcome(
    kills: list[float], data: st.DataObject
) -> None:
    class Moved(Clock):
        calls = 0
        at = data.draw(st.integers(0, 60))
        hours = data.draw(st.sampled_from([-1, 1]))

        def wall(self) -> int:
            self.calls += 1
            return super().wall() + (self.hours * 3600 * SECOND if self.calls > self.at else 0)

    found = trained(kills)
    moved = trained(kills, clock=Moved())
    copies = data.draw(st.lists(st.sampled_from(moved), max_size=4))
    assert by_outcome(data.draw(st.permutations([*moved, *copies]))) == by_outcome(found)


def test_each_second_has_its_reason() -> None:
    # Setup 5 s, steps of 10 s, a checkpoint of 1 s after every third. Killed at 58 s: three steps kept (36 s), one
    # checkpoint in, and 22 s of work that the second attempt did again; then stopped by SIGTERM after its fourth step.
    found = trained([58.0, 40.0], reasons=[None, "preempted"])
    first, second, third = outcomes_by_attempt(found).values()
    seconds = {name: round(u.device_ns / SECOND) for name, u in first.items()}
    assert seconds == {
        "useful": 36,
        "redone": 24,
        "failed": 0,
        "preempted": 0,
    }  # 58 s, and 2 s up to the beat's end
    assert second["useful"].phases == {"train": 40 * SECOND, "checkpoint": 2 * SECOND}
    assert second["failed"].phases == {"setup": 5 * SECOND}  # paid again because of the kill
    assert second["preempted"].device_ns == 4 * SECOND  # from its checkpoint to its end
    assert third["preempted"].phases == {"setup": 5 * SECOND}  # paid again because of the preemption
    assert third["redone"].device_ns == third["failed"].device_ns == 0


def test_a_lost_save_record_is_replaced_by_the_next_beat() -> None:
    whole = trained([58.0])
    first = next(s for s in whole if s.attempt == "a0")
    lost = [dataclasses.replace(first, saves=()), *(s for s in whole if s is not first)]
    difference = by_outcome(lost)["useful"].device_ns - by_outcome(whole)["useful"].device_ns
    assert 0 <= difference <= PERIOD


def test_an_attempt_that_left_nothing_was_for_nothing() -> None:
    found = trained([20.0])
    parts = outcomes_by_attempt(found)
    assert parts["a0"]["useful"].device_ns == 0
    assert parts["a0"]["failed"].phases == {"setup": 5 * SECOND}
    assert parts["a0"]["redone"].phases.keys() == {"train"}
    assert parts["a1"]["useful"].phases["setup"] == 5 * SECOND


def test_a_run_that_goes_on_is_useful_until_it_is_known_to_be_dead(tmp_path: Path) -> None:
    training = Training(tmp_path, steps=STEPS, every=EVERY)
    training.attempt("a0", 58.0)
    [running] = read_run(tmp_path)
    assert by_outcome([running])["useful"] == total([running])
    dead = dataclasses.replace(running, reason="killed")
    assert round(by_outcome([dead])["useful"].device_ns / SECOND) == 36
    assert by_outcome([dead])["failed"].device_ns > 20 * SECOND


def test_what_the_target_cache_gained_is_kept_whatever_happens(tmp_path: Path) -> None:
    training = Training(tmp_path, steps=STEPS, every=EVERY, cache_seconds=30)
    training.attempt("a0", 33.0)
    training.attempt("a1", None)
    parts = outcomes_by_attempt(read_run(tmp_path))
    assert parts["a0"]["useful"].phases == pytest.approx({"target_cache": 28 * SECOND}, abs=PERIOD)


def test_dollars_follow_the_time() -> None:
    parts = by_outcome(trained([58.0]))
    for part in parts.values():
        if part.usd is not None:
            expected = Decimal("3.6") * part.node_ns / 3_600_000_000_000
            assert part.usd == pytest.approx(expected)
