from __future__ import annotations

import os
import time

import pytest

from ssmke.data.parallel import run_jobs, tick
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
    seen: dict[int, int] = {}
    results = run_jobs(square, range(5), workers, items.append, lambda n, r: seen.update({n: r}))
    assert results == [0, 1, 4, 9, 16]
    assert seen == dict(enumerate(results))
    assert sum(items) == 15


def test_the_first_error_ends_the_others_at_their_next_item() -> None:
    begin = time.monotonic()
    with pytest.raises(DataError, match="two"):
        run_jobs(fail_on_two, [0, 2, 1, 3], 2)
    assert time.monotonic() - begin < 30  # a job left to itself takes 50 s


def test_a_worker_that_dies_is_an_error_with_a_remedy() -> None:
    with pytest.raises(DataError, match=r"worker process died.*fewer --workers"):
        run_jobs(die, [0, 1], 2)
