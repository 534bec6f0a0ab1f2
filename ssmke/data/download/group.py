"""A child process with all that it starts, which ends when we do, whatever ends us.

The child leads a session of its own, so that one signal reaches everything below it, and holds the reading end
of a pipe as its standard input: children that watch it (`ssmke.data.download.guard.main`) learn even of a parent
that was killed outright. Leaving the ``with`` block kills what is left, also after Ctrl-C.
"""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

_KEPT_LINES = 100


class ProcessGroup:
    """``with ProcessGroup(command, environment) as group: ...``"""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        log: Path | None = None,
        on_line: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Start ``command``.

        Args:
            command: program and arguments.
            environment: all of its variables.
            log: file that its output is added to.
            on_line: called with each line of output, in another thread.
        """
        self._tail: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
        self._on_line = on_line
        self._log: BinaryIO | None = log.open("ab") if log is not None else None
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )
        except BaseException:
            if self._log is not None:
                self._log.close()
            raise
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit status, negative for a signal; None if it still runs after ``seconds``."""
        end = float("inf") if seconds is None else time.monotonic() + seconds
        while True:
            # Looked at, not taken: as long as we do not take it, its number, by which the group is killed, is
            # given to no other.
            found = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if found is not None:
                return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
            if time.monotonic() >= end:
                return None
            time.sleep(0.05)

    def kill(self) -> None:
        """End the whole group now, also when its leader has ended; once."""
        if self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._reader.join(5)

    @property
    def last_lines(self) -> list[str]:
        """The end of its output."""
        return list(self._tail)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for raw in output:
                if self._log is not None:
                    # A full disk must not stop the reading, or the child would block on its output.
                    with contextlib.suppress(OSError):
                        self._log.write(raw)
                        self._log.flush()
                line = raw.decode(errors="replace").strip()
                if line:
                    self._tail.append(line)
                    self._on_line(line)
        if self._log is not None:
            with contextlib.suppress(OSError):
                self._log.close()
