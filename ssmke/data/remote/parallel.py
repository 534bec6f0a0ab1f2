"""A few threads for work that waits for servers.

Daemon threads, unlike those of `concurrent.futures`, which a process waits for at its end: after Ctrl-C or the
first error nobody waits for requests that a dead server has not answered yet.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(function: Callable[[Item], Result], items: Sequence[Item], threads: int) -> list[Result]:
    """``function`` of every item, in the order of the items; the first exception is raised here at once."""
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Result | None, BaseException | None]] = queue.SimpleQueue()
    stop = threading.Event()
    for number in range(len(items)):
        todo.put(number)

    def work() -> None:
        while not stop.is_set():
            try:
                number = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((number, function(items[number]), None))
            except BaseException as error:
                done.put((number, None, error))

    for _ in range(min(threads, len(items))):
        threading.Thread(target=work, name="ssmke-remote", daemon=True).start()
    results: dict[int, Result | None] = {}
    try:
        for _ in items:
            number, result, error = done.get()
            if error is not None:
                raise error
            results[number] = result
    finally:
        stop.set()
    return [results[number] for number in range(len(items))]  # type: ignore[misc]
