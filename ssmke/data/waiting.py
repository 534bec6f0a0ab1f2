"""Says aloud when the next batch does not come: how long, for which step, and at which shard the worker is.

A read from a network file system whose server is gone cannot be interrupted: the process just stands there, and so
does the run. So each data worker notes, in memory that it shares with its rank, which image it is at (50 ns each), and
a thread of the rank looks at that once the rank has waited for too long. It says so after `SAY_AFTER` seconds, again
after twice that, and so on, and once more when the batch came. Nothing is ended here: that is the watchdog's part.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch

logger = logging.getLogger(__name__)

SAY_AFTER = 30.0
"""Seconds."""
NOTHING = -1


def places(workers: int) -> npt.NDArray[np.int64]:
    """Where each of ``workers`` (the training process itself for 0) notes the image it is at; shared with forks."""
    notes = torch.full((max(1, workers),), NOTHING, dtype=torch.int64).share_memory_()
    view: npt.NDArray[np.int64] = notes.numpy()
    return view


class WaitWatch:
    """Speaks while `waiting` lasts too long.

    Args:
        describe: what is waited for, as words; asked when there is something to say.
        after: seconds until the first word.
    """

    def __init__(self, describe: Callable[[], str], after: float = SAY_AFTER) -> None:
        self._describe, self._after = describe, after
        self._since: float | None = None
        self._due = after
        self._ends = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watches until the block ends. Begin it after the workers are forked."""
        self._ends.clear()
        self._thread = threading.Thread(target=self._run, name="ssmke-waiting", daemon=True)
        self._thread.start()
        try:
            yield
        finally:
            self._ends.set()
            self._thread.join()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """What is inside is what is waited for."""
        self._since = began = time.monotonic()
        try:
            yield
        finally:
            self._since = None
            if self._due > self._after:
                logger.warning("the batch came after %.0f s", time.monotonic() - began)
                self._due = self._after

    def _run(self) -> None:
        while not self._ends.wait(self._after / 4):
            since = self._since
            if since is not None and (waited := time.monotonic() - since) >= self._due:
                self._due = 2 * waited
                logger.warning("waiting %.0f s for %s", waited, self._describe())
