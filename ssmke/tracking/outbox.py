"""A queue with one thread that delivers its entries in order, however long the other side is away.

The caller never waits: ``put`` appends to a deque. The thread retries an entry with growing pauses until it
is delivered or refused for good, and says so once when the trouble begins and once when it is over. Metrics
that pile up are merged into batches. When more than 100,000 entries wait, the oldest metrics go first.
Entries are JSON objects, so that ``close`` can leave what was not delivered to the next process.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

BATCH = 1000
LIMIT = 100_000
PAUSES_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)

_log = logging.getLogger(__name__)


class Receiver(Protocol):
    """Where entries go; used from the outbox's thread only."""

    def connect(self) -> None:
        """Called until it returns, before the first ``send``."""

    def send(self, entry: Mapping[str, Any]) -> None:
        """Delivers one entry; raises if it did not arrive."""

    def refuses(self, error: Exception) -> bool:
        """Whether sending the same entry again cannot help."""


class Outbox:
    """Delivers entries to ``receiver`` in order; ``delivered`` is called (in the thread) after each."""

    def __init__(
        self,
        receiver: Receiver,
        name: str,
        *,
        delivered: Callable[[Mapping[str, Any]], None] = lambda entry: None,
        pauses_s: tuple[float, ...] = PAUSES_S,
    ) -> None:
        self._receiver = receiver
        self._name = name
        self._delivered = delivered
        self._pauses_s = pauses_s
        self._queue: deque[dict[str, Any]] = deque()
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._dropped = 0
        self._troubled: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="ssmke-tracking", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, entry: dict[str, Any]) -> None:
        """Queues one entry; ignored after ``close``."""
        with self._changed:
            if self._deadline is not None:
                return
            if len(self._queue) >= LIMIT:
                self._drop_oldest_metrics()
            self._queue.append(entry)
            self._changed.notify_all()

    def close(self, timeout_s: float) -> list[dict[str, Any]]:
        """Delivers what is left for at most ``timeout_s``; returns what was not delivered."""
        with self._changed:
            if self._deadline is None:
                self._deadline = time.monotonic() + timeout_s
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s + 1.0)
        with self._changed:
            return list(self._queue)

    def trouble(self, what: str, error: Exception) -> None:
        """Reports a failure, the first time that ``what`` fails."""
        if what not in self._troubled:
            self._troubled.add(what)
            text = (str(error).splitlines() or [""])[0]
            _log.warning("tracking: %s: %s: %s; training goes on", what, type(error).__name__, text)

    def _run(self) -> None:
        connected = False
        failures = 0
        while (entry := self._next()) is not None:
            try:
                if not connected:
                    self._receiver.connect()
                    connected = True
                self._receiver.send(entry)
                self._delivered(entry)
            except Exception as error:
                self.trouble(f"sending {entry['op']} to {self._name}" if connected else self._name, error)
                if connected and self._receiver.refuses(error):
                    self._done(entry)
                elif not self._wait(self._pauses_s[min(failures, len(self._pauses_s) - 1)]):
                    return
                else:
                    failures += 1
                continue
            if failures:
                _log.warning(
                    "tracking: %s answers again, %d entries to catch up", self._name, len(self._queue) - 1
                )
            failures = 0
            self._done(entry)
        if self._dropped:
            _log.warning(
                "tracking: %d metric entries were dropped while %s was away", self._dropped, self._name
            )

    def _next(self) -> dict[str, Any] | None:
        """The oldest entry, the metrics right behind it merged in; None once all is done and closed."""
        with self._changed:
            while not self._queue:
                if self._deadline is not None:
                    return None
                self._changed.wait()
            first = self._queue[0]
            while first["op"] == "metrics" and len(self._queue) > 1 and self._queue[1]["op"] == "metrics":
                if len(first["rows"]) + len(self._queue[1]["rows"]) > BATCH:
                    break
                first["rows"].extend(self._queue[1]["rows"])
                del self._queue[1]
            return first

    def _done(self, entry: Mapping[str, Any]) -> None:
        with self._changed:
            if self._queue and self._queue[0] is entry:
                self._queue.popleft()

    def _wait(self, seconds: float) -> bool:
        """Pauses before the next try (shortly once closed); False when the deadline has passed."""
        until = time.monotonic() + seconds
        with self._changed:
            while True:
                now = time.monotonic()
                if self._deadline is not None:
                    if now >= self._deadline:
                        return False
                    until = min(until, now + self._pauses_s[0])
                    time_left = min(until, self._deadline) - now
                else:
                    time_left = until - now
                if time_left <= 0:
                    return True
                closing = self._deadline is not None
                self._changed.wait(time_left)
                if closing:
                    return True

    def _drop_oldest_metrics(self) -> None:
        for i, waiting in enumerate(self._queue):
            if i > 0 and waiting["op"] == "metrics":  # the first may be on its way
                del self._queue[i]
                self._dropped += 1
                return


def take_unsent(path: Path) -> list[dict[str, Any]]:
    """The entries that an earlier process left, and the file removed; torn lines are passed over."""
    try:
        lines = path.read_bytes().splitlines()
        path.unlink()
    except OSError:
        return []
    entries: list[dict[str, Any]] = []
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and "op" in entry:
            entries.append(entry)
    return entries


def keep_unsent(path: Path, entries: list[dict[str, Any]]) -> None:
    """Leaves entries for the next process; raises OSError if they cannot be kept."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)
