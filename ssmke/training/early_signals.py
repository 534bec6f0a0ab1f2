"""Signals before a run can stop in order, and after: one line instead of a traceback.

Importing torch and DeepSpeed takes seconds, in which Ctrl-C would show a traceback of whatever is being imported, and
SIGTERM would end the process without a word. From `answer` on both end it at once with a line that says what to do; as
soon as the run exists `Control` takes over, and gives back to this when the run is done. Imports nothing that costs.
"""

from __future__ import annotations

import os
import signal
import types
from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_STDERR = 2


def answer(*, speaks: bool) -> None:
    """From now on each of SIGNALS ends this process at once; the line comes from the one that ``speaks`` (rank 0)."""

    def on_signal(number: int, frame: types.FrameType | None) -> None:
        end(number, speaks=speaks)

    for number in SIGNALS:
        signal.signal(number, on_signal)


def end(number: int, *, speaks: bool) -> NoReturn:
    """Ends this process, with exit code 128 + ``number`` as in a shell; never returns."""
    if speaks:
        text = (
            f"ended at once by {signal.Signals(number).name}: what is saved is kept, the same command with "
            "--resume auto goes on from there\n"
        )
        os.write(_STDERR, text.encode())  # not print: the signal may have come in the middle of one
    os._exit(128 + number)
