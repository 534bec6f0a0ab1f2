"""metrics.jsonl: a line for every step, which a full disk delays but never costs.

What cannot be written is kept and written with the next report, so training goes on without the file; it is said once
when that begins and once when it is over. Lines that are still waiting when the run ends are lost, and with them
nothing but the record: weights, order and schedule do not depend on it. What a full disk took only in part is cut off
again, so that every line is whole. Costs one write a report.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

_MOST_LINES = 1_000_000
"""Lines that are kept at most (some 400 MB); then the oldest go."""


class StepFile:
    """Appends lines to ``path``; ``say`` prints a line for the user."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self._path, self._say = path, say
        self._waiting: deque[str] = deque(maxlen=_MOST_LINES)
        self._file: int | None = None
        self._troubled = False

    def add(self, lines: Iterable[str]) -> None:
        """Writes ``lines``, each without its newline, and what is still waiting; never raises OSError."""
        self._waiting.extend(lines)
        try:
            self._write()
        except OSError as error:
            if not self._troubled:
                self._troubled = True
                self._say(
                    f"{self._path} cannot be written ({error.strerror or error}): training goes on, its lines are kept "
                    "in memory until there is room"
                )
            return
        if self._troubled:
            self._troubled = False
            self._say(f"{self._path} can be written again, nothing is missing in it")

    def close(self) -> None:
        """Tries once more to write what is waiting, and closes the file."""
        self.add(())
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self) -> None:
        if not self._waiting:
            return
        if self._file is None:
            self._file = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o644)
        data = "".join(f"{line}\n" for line in self._waiting).encode()
        before = os.fstat(self._file).st_size
        if os.write(self._file, data) != len(data):
            os.ftruncate(self._file, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._waiting.clear()
