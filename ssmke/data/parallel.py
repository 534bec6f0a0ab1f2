"""Independent jobs on several processes, with progress by item and a clean way out.

A thin layer over `concurrent.futures.ProcessPoolExecutor` for shard-sized jobs (importing, verifying), adding
what those need and it lacks: items are counted inside a job (a bar that moves once a shard is no bar); Ctrl-C
or the first error ends running jobs at their next item, so that they remove what they had begun; workers
never outlive a killed parent; a worker that dies becomes an error one can act on. Workers are spawned, not
forked, because the parent runs threads (the progress bar): about 0.3 s each to start. With ``workers <= 1``
jobs run in place.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import multiprocessing.synchronize
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar, overload

from ssmke.errors import DataError

Job = TypeVar("Job")
Result = TypeVar("Result")
Kept = TypeVar("Kept")
Progress = Callable[[int], None]
"""Called in the parent with the number of items done since the last call."""

_POLL_SECONDS = 0.2


def usual_workers() -> int:
    """How many threads or processes read and decode where nobody says: the cores of this process, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores)


class Stopped(Exception):
    """Raised inside a job by `tick` when the run is ending; never reaches the caller."""


# What `tick` calls: set in the parent for jobs in place, and by `_start_worker` in each worker.
_on_tick: Progress = lambda items: None  # noqa: E731


def tick(items: int = 1) -> None:
    """To be called by jobs after each item: counts it, and leaves the job when the run is ending."""
    _on_tick(items)


@overload
def run_jobs(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, on_items: Progress = ...
) -> list[Result]: ...


@overload
def run_jobs(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: int,
    on_items: Progress,
    on_result: Callable[[int, Result], Kept],
) -> list[Kept]: ...


def run_jobs(
    function: Callable[[Any], Any],
    jobs: Sequence[Any],
    workers: int,
    on_items: Progress = lambda items: None,
    on_result: Callable[[int, Any], Any] = lambda number, result: result,
) -> list[Any]:
    """Run ``function`` on every job; gives the results in the order of the jobs.

    ``function``, jobs and results must be picklable. The first exception of a job, or of a callback, is
    raised here after the running jobs have stopped.

    Args:
        function: the work; calls `tick` after each item.
        jobs: its arguments.
        workers: processes; with 1 or less the jobs run in this one.
        on_items: called with the number of items done since the last call.
        on_result: called with the number of each job and its result as soon as it is finished, in any order;
            gives what is kept of the result, so that large ones need not all lie in memory.

    Raises:
        DataError: a worker process died.
    """
    if workers <= 1 or len(jobs) <= 1:
        return _in_place(function, jobs, on_items, on_result)
    return _in_pool(function, jobs, min(workers, len(jobs)), on_items, on_result)


def _in_place(
    function: Callable[[Any], Any],
    jobs: Sequence[Any],
    on_items: Progress,
    on_result: Callable[[int, Any], Any],
) -> list[Any]:
    global _on_tick
    before, _on_tick = _on_tick, on_items
    try:
        return [on_result(number, function(job)) for number, job in enumerate(jobs)]
    finally:
        _on_tick = before


def _in_pool(
    function: Callable[[Any], Any],
    jobs: Sequence[Any],
    workers: int,
    on_items: Progress,
    on_result: Callable[[int, Any], Any],
) -> list[Any]:
    context = multiprocessing.get_context("spawn")
    done, stop = context.Value("q", 0), context.Event()
    reported = 0
    kept: dict[int, Any] = {}
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (done, stop))
    try:
        waiting = {pool.submit(function, job): number for number, job in enumerate(jobs)}
        while waiting:
            finished, _ = wait(waiting, _POLL_SECONDS, FIRST_COMPLETED)
            now = done.value
            on_items(now - reported)
            reported = now
            while finished:
                future = finished.pop()
                number = waiting.pop(future)
                kept[number] = on_result(number, future.result())
        return [kept[number] for number in range(len(jobs))]
    except BrokenProcessPool:
        raise DataError(
            "a worker process died (most often: out of memory). What is finished is kept; run the same "
            "command again with fewer --workers to go on."
        ) from None
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(done: Any, stop: multiprocessing.synchronize.Event) -> None:
    """Ready a fresh worker: Ctrl-C is the parent's to handle, and the parent's death is ours."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()

    def count(items: int) -> None:
        with done.get_lock():
            done.value += items
        if stop.is_set():
            raise Stopped

    global _on_tick
    _on_tick = count


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
