"""Where the time goes: nested phases on one clock.

Time counts for the innermost open phase, and for ``idle`` when none is open, so the sums always add up to the
time since ``begin``. Entering and leaving costs about a microsecond each. The lock is re-entrant because a
signal handler may ask for totals while the main thread is inside.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

PHASES = ("setup", "target_cache", "data_wait", "train", "evaluation", "checkpoint", "idle")

Token = tuple[str, int]


class PhaseClock:
    """Nanoseconds by phase since ``begin``, on ``clock`` (which may never be seen to go back)."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._sums: dict[str, int] = {}
        self._open: list[Token] = []
        self.begin_ns = self._mark_ns = 0

    def begin(self) -> None:
        self.begin_ns = self._mark_ns = self._clock()

    def enter(self, name: str) -> Token:
        with self._lock:
            token = (name, self._advance())
            self._open.append(token)
        return token

    def leave(self, token: Token) -> tuple[int, int]:
        """Closes a phase, wherever it lies in the nest (another thread may have opened one since).

        Returns (when it was entered, now).
        """
        with self._lock:
            now = self._advance()
            if token in self._open:
                self._open.remove(token)
        return token[1], now

    def read(self) -> tuple[int, str, dict[str, int]]:
        """(now, the innermost phase, nanoseconds by phase up to now)."""
        with self._lock:
            now = self._advance()
            return now, self._open[-1][0] if self._open else "idle", dict(self._sums)

    def _advance(self) -> int:
        now = max(self._clock(), self._mark_ns)
        name = self._open[-1][0] if self._open else "idle"
        self._sums[name] = self._sums.get(name, 0) + now - self._mark_ns
        self._mark_ns = now
        return now
