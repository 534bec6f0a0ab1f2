from __future__ import annotations

import os
import time
import weakref

import pytest

from ssmke.data.parallel import run_jobs, tick, usual_workers
from ssmke.errors import DataError


def square(job: int) -> int:
    for _ in range(3):
        tick()
    return job * job


def fail_on_two(job: int) -> int:
    if job == 2:
        raise DataError("two")
    for _ in range(1000):
        time.sleep(0.05)
        tick()
    return job


def die(job: int) -> int:
    os._exit(7)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_and_every_item_is_counted(workers: int) -> None:
    items: list[int] = []
    assert run_jobs(square, range(5), workers, items.append) == [0, 1, 4, 9, 16]
    assert sum(items) == 15


@pytest.mark.parametrize("workers", [1, 2])
def test_of_each_result_only_what_the_callback_gives_is_kept(workers: int) -> None:
    seen: dict[int, int] = {}

    def keep(number: int, result: int) -> str:
        seen[number] = result
        return str(result)

    assert run_jobs(square, range(3), workers, lambda items: None, keep) == ["0", "1", "4"]
    assert seen == {0: 0, 1: 1, 2: 4}


@pytest.mark.parametrize("workers", [1, 2])
def test_large_results_are_let_go_of(workers: int) -> None:
    alive: list[weakref.ref[Large]] = []

    def keep(number: int, result: Large) -> int:
        # All before it are gone, but for the one that the loop may still hold.
        assert sum(one() is not None for one in alive) <= 1
        alive.append(weakref.ref(result))
        return number

    assert run_jobs(make_large, range(6), workers, lambda items: None, keep) == [0, 1, 2, 3, 4, 5]


class Large:
    pass


def make_large(job: int) -> Large:
    return Large()


def test_the_first_error_ends_the_others_at_their_next_item() -> None:
    begin = time.monotonic()
    with pytest.raises(DataError, match="two"):
        run_jobs(fail_on_two, [0, 2, 1, 3], 2)
    assert time.monotonic() - begin < 30  # a job left to itself takes 50 s


def test_a_worker_that_dies_is_an_error_with_a_remedy() -> None:
    with pytest.raises(DataError, match=r"worker process died.*fewer --workers"):
        run_jobs(die, [0, 1], 2)


def test_usual_workers_are_the_cores_of_this_process_and_at_most_eight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for cores, expected in ((1, 1), (3, 3), (64, 8)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: set(range(n)), raising=False)
        assert usual_workers() == expected
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usual_workers() == 1
