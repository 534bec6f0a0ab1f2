"""Totals do not depend on how the facts reached us: order, copies, attempts, ranks, clocks, resets."""

from __future__ import annotations

import dataclasses
import tempfile
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from ssmke.cost.ledger.reader import Segment, read_run
from ssmke.cost.ledger.tally import energy_between
from ssmke.cost.ledger.usage import HOUR_NS, Usage, by_attempt, spread, total
from ssmke.cost.probes.probe import Device, Sample
from tests.cost.simulated import GPU, MACHINE, SECOND, Clock, Run

PHASE = st.sampled_from(["setup", "target_cache", "data_wait", "train", "evaluation", "checkpoint", None])
WORK = st.lists(st.tuples(PHASE, st.integers(1, 40)), min_size=1, max_size=8)
SECOND_GPU = dataclasses.replace(GPU, id="GPU-1")


def simulate(*attempts: list[tuple[str | None, int]], gap: int = 30, **options: object) -> list[Segment]:
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        for i, work in enumerate(attempts):
            run.attempt(f"a{i}", work, **options)  # type: ignore[arg-type]
            run.clock.ns += gap * SECOND
        return read_run(Path(folder))


@given(works=st.lists(WORK, min_size=1, max_size=4), data=st.data())
@settings(max_examples=15, deadline=None)
def test_order_and_copies_of_ledger_files_change_nothing(
    works: list[list[tuple[str | None, int]]], data: st.DataObject
) -> None:
    found = simulate(*works, devices=(GPU, SECOND_GPU))
    copies = data.draw(st.lists(st.sampled_from(found), max_size=5))
    shuffled = data.draw(st.permutations([*found, *copies]))
    assert total(shuffled) == total(found)
    assert by_attempt(shuffled) == by_attempt(found)


@given(work=WORK, cuts=st.lists(st.integers(0, 8), max_size=4))
@settings(max_examples=15, deadline=None)
def test_a_run_split_into_attempts_uses_what_it_would_have_used(
    work: list[tuple[str | None, int]], cuts: list[int]
) -> None:
    edges = [0, *sorted(min(c, len(work)) for c in cuts), len(work)]
    pieces = [work[a:b] for a, b in pairwise(edges)]
    whole, split = total(simulate(work)), total(simulate(*pieces))
    assert split.phases == whole.phases
    assert (split.device_ns, split.node_ns, split.usd) == (whole.device_ns, whole.node_ns, whole.usd)


@given(work=WORK, hours=st.sampled_from([-1, 1]), at=st.integers(0, 7))
@settings(max_examples=15, deadline=None)
def test_a_wall_clock_that_jumps_an_hour_changes_nothing(
    work: list[tuple[str | None, int]], hours: int, at: int
) -> None:
    class Jumping(Clock):
        calls = 0

        def wall(self) -> int:
            self.calls += 1
            return super().wall() + (hours * HOUR_NS if self.calls > at else 0)

    def used(clock: Clock) -> Usage:
        with tempfile.TemporaryDirectory() as folder:
            Run(Path(folder), clock=clock).attempt("a", work)
            return total(read_run(Path(folder)))

    assert used(Jumping()) == used(Clock())


@given(work=WORK, ranks=st.integers(2, 4))
@settings(max_examples=10, deadline=None)
def test_ranks_that_all_report_a_node_count_once(work: list[tuple[str | None, int]], ranks: int) -> None:
    once = simulate(work)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ranks):
            Run(Path(folder)).attempt("a0", work)
        assert len(list(Path(folder).glob("cost/a0/*"))) == ranks
        several = total(read_run(Path(folder)))
    assert several == total(once)


def test_writers_that_overlap_in_part_count_their_union(tmp_path: Path) -> None:
    Run(tmp_path).attempt("a", [("train", 60)])
    late = Clock()
    late.ns += 40 * SECOND
    Run(tmp_path, clock=late).attempt("a", [("evaluation", 60)])
    used = total(read_run(tmp_path))
    assert used.node_ns == used.device_ns == 100 * SECOND
    assert used.phases == {"train": 60 * SECOND, "evaluation": 40 * SECOND}


@given(works=st.lists(WORK, min_size=1, max_size=3), devices=st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_phases_and_idle_add_up_to_the_paid_time(
    works: list[list[tuple[str | None, int]]], devices: int
) -> None:
    found = simulate(*works, devices=[dataclasses.replace(GPU, id=f"GPU-{i}") for i in range(devices)])
    used = total(found)
    seconds = sum(s for work in works for _, s in work)
    assert sum(used.phases.values()) == used.device_ns == devices * seconds * SECOND
    assert used.phases.get("idle", 0) == devices * SECOND * sum(s for w in works for p, s in w if p is None)
    assert used.usd == Decimal("0.69") * used.node_ns / HOUR_NS


@given(
    parts=st.dictionaries(st.text(max_size=3), st.integers(0, 10**18), max_size=6),
    whole=st.integers(0, 10**18),
)
def test_spreading_keeps_the_whole(parts: dict[str, int], whole: int) -> None:
    scaled = spread(parts, whole)
    assert sum(scaled.values()) == whole
    assert all(ns >= 0 for ns in scaled.values())


READING = st.tuples(
    st.integers(0, 10**12), st.none() | st.integers(0, 10**12), st.none() | st.integers(0, 10**6)
)


@given(before=READING, after=READING)
def test_energy_is_never_negative_whatever_the_counter_does(
    before: tuple[int, int | None, int | None], after: tuple[int, int | None, int | None]
) -> None:
    first, second = sorted((before, after), key=lambda r: r[0])
    spent = energy_between(first, second)
    assert spent is None or spent >= 0


def test_a_counter_reset_loses_its_own_interval_only() -> None:
    counter = [1000, 6000, 11_000, 200, 5_200, 10_200]  # driver reloaded between the third and the fourth
    readings = [{"GPU-0": Sample(mj=mj)} for mj in counter]
    [segment] = simulate([("train", 25)], readings=readings)
    used = total([segment])
    assert used.energy_mj == 10_000 + 10_000
    assert used.energy_ns == 20 * SECOND
    assert used.energy_coverage == 0.8


def test_power_is_integrated_where_there_is_no_counter() -> None:
    device = dataclasses.replace(GPU, energy="power")
    found = simulate([("train", 100)], devices=(device,), readings=[{"GPU-0": Sample(mw=300_000)}])
    assert total(found).energy_mj == 300_000 * 100
    assert total(found).energy_kwh == 300 * 100 / 3.6e6


def test_without_readings_energy_is_unknown_not_zero() -> None:
    used = total(simulate([("train", 60)]))
    assert used.energy_mj is None
    assert used.energy_kwh is None
    assert used.energy_coverage == 0


def test_energy_of_a_device_that_two_ranks_report_counts_once(tmp_path: Path) -> None:
    readings = [{"GPU-0": Sample(mj=5_000 * i)} for i in range(20)]
    for _ in range(2):
        Run(tmp_path).attempt("a", [("train", 50)], readings=readings)
    assert total(read_run(tmp_path)).energy_mj == 50_000


def test_nodes_add_up_and_so_do_their_prices(tmp_path: Path) -> None:
    for rank in range(2):
        machine = dataclasses.replace(MACHINE, host=f"host{rank}")
        gpus = [Device(id=f"GPU-{rank}-{i}", name=GPU.name) for i in range(8)]
        Run(tmp_path, price="10").attempt(
            "a", [("train", 360)], devices=gpus, machine=machine, node_rank=rank
        )
    used = total(read_run(tmp_path))
    assert used.node_hours == 0.2
    assert used.device_hours == 1.6
    assert used.usd == 2


def test_time_without_price_makes_the_sum_a_lower_bound(tmp_path: Path) -> None:
    clock = Clock()
    Run(tmp_path, clock=clock, price="2").attempt("a", [("train", 360)])
    Run(tmp_path, clock=clock, price="none").attempt("b", [("train", 360)])
    used = total(read_run(tmp_path))
    assert used.usd == Decimal("0.2")
    assert used.usd_partial
    assert by_attempt(read_run(tmp_path))["b"].usd is None
