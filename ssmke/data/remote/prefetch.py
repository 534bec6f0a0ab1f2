"""Shards that will be needed soon, fetched in the background by one daemon thread.

The thread ends with its process, and ends by itself when nothing is wanted. A fork leaves it behind: the child
notices that it is another process and starts its own when asked to.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Collection, Sequence

from ssmke.data.manifest import ShardInfo

logger = logging.getLogger(__name__)


class Prefetcher:
    """Calls ``fetch(info, keep)`` for what is wanted, one after the other.

    ``fetch`` must not wait for other processes, and leaves the tars named in ``keep`` where they are.
    """

    def __init__(self, fetch: Callable[[ShardInfo, Collection[str]], None]) -> None:
        self._fetch = fetch
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._guard = threading.Lock()
        self._wanted: list[ShardInfo] = []
        self._keep: frozenset[str] = frozenset()
        self._running = False

    def want(self, infos: Sequence[ShardInfo]) -> None:
        """Replace what is wanted; what is being fetched right now is finished."""
        if self._pid != os.getpid():
            self._reset()  # the lock may have been held by the thread that was left behind
        with self._guard:
            self._wanted = list(infos)
            self._keep = frozenset(info.file for info in infos)
            if self._wanted and not self._running:
                threading.Thread(target=self._run, name="ssmke-prefetch", daemon=True).start()
                self._running = True

    def _run(self) -> None:
        while True:
            with self._guard:
                if not self._wanted:
                    self._running = False
                    return
                info, keep = self._wanted.pop(0), self._keep
            try:
                self._fetch(info, keep)
            except Exception as error:
                logger.warning("%s was not fetched ahead: %s", info.file, error)
