"""On the PYTHONPATH of a process: its wall clock is off by the seconds in the file that CLOCK_OFFSET names.

Clocks that cannot be set (monotonic, boot time) stay as they are, as on a machine whose time is corrected.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

_time, _time_ns, _localtime, _strftime = time.time, time.time_ns, time.localtime, time.strftime


def _offset() -> int:
    try:
        return int(Path(os.environ["CLOCK_OFFSET"]).read_text(encoding="ascii"))
    except (OSError, ValueError, KeyError):
        return 0


def _local(seconds: float | None = None) -> time.struct_time:
    return _localtime(time.time() if seconds is None else seconds)


def _formatted(pattern: str, when: time.struct_time | None = None) -> str:
    return _strftime(pattern, time.localtime() if when is None else when)


time.time = lambda: _time() + _offset()
time.time_ns = lambda: _time_ns() + _offset() * 10**9
# Not functions, which would become methods where a class keeps them, as `logging.Formatter.converter` does.
time.localtime, time.strftime = partial(_local), partial(_formatted)  # type: ignore[assignment]
