"""What a rank tells the others of itself: that it lives, where it is, and whether it gets on.

`Vitals` is kept by the rank's own threads; a `Line` is what goes through the store; `Seen` is how another rank keeps
it, with the times of change by its own clock, so that no two machines' clocks are ever compared.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

_TIMES = {"train": 1.0, "data_wait": 15.0, "checkpoint": 60.0, "evaluation": 60.0, "target_cache": 60.0}
"""How often ``hang_seconds`` each phase may take; set-up has no limit (it may download weights or render data).
A server that does not answer is given up after ten minutes, with its own message: data may take longer than that."""
_COMPILING = 15.0
"""The same for steps that may compile."""
_COLLECTIVE = re.compile(r"torch/distributed/|deepspeed/comm/|objectives/gather")


@dataclass(frozen=True)
class Line:
    """One rank at one moment."""

    heart: int
    """Changes with every line."""
    moves: int
    """Changes when the rank gets on."""
    step: int
    """Steps done."""
    doing: str
    """Phase."""
    waits: bool
    """Stands in a collective operation, for other ranks."""
    limit: float
    """Seconds without a move that are too long in this phase; 0: none are."""
    host: str
    pid: int
    place: str
    """Machine and process namespace: only there does ``pid`` mean something."""
    left: str | None = None
    """Why the rank has stopped taking part: an error, or "" for a good end."""

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> Line:
        return cls(**json.loads(text))

    @property
    def where(self) -> str:
        """For sentences: "at step 17 in data wait", "in checkpoint"."""
        phase = self.doing.replace("_", " ")
        return (
            f"at step {self.step + 1} in {phase}" if self.doing in ("train", "data_wait") else f"in {phase}"
        )

    def who(self, number: int) -> str:
        return f"rank {number} ({self.host}, process {self.pid})"

    def ended(self, number: int) -> str:
        return f"{self.who(number)} ended {self.where} with: {self.left}"

    def is_gone(self) -> bool:
        """Whether the process was on this machine and has ended."""
        return self.place == this_place() and _state(self.pid) in ("", "Z", "X")

    def is_here(self) -> bool:
        """Whether the process is on this machine and could run."""
        return self.place == this_place() and _state(self.pid) not in ("", "Z", "X", "T")


@dataclass
class Seen:
    """The newest line of a rank and when its heart and its moves last changed."""

    line: Line
    heart_at: float
    moves_at: float

    def update(self, line: Line, now: float) -> None:
        if line.heart != self.line.heart:
            self.heart_at = now
        if line.moves != self.line.moves:
            self.moves_at = now
        self.line = line


class Vitals:
    """This rank. ``hang_seconds``: see `FaultConfig`."""

    def __init__(self, hang_seconds: float) -> None:
        self.left: str | None = None
        self.doing = "setup"
        self.moved_at = time.monotonic()
        self.step = 0
        self._hang_seconds = hang_seconds
        self._host, self._place = socket.gethostname(), this_place()
        self._heart = self._moves = 0
        self._longest = 0.0
        """Seconds of the longest step, without its wait for data; 0 where none has been measured yet."""
        self._stepped_at: float | None = None
        self._waited = 0.0

    def beat(self) -> None:
        """This rank has got on a bit."""
        self._moves += 1
        self.moved_at = time.monotonic()

    def at(self, step: int) -> None:
        """``step`` steps are done."""
        now = time.monotonic()
        if self._stepped_at is not None:
            self._longest = max(self._longest, now - self._stepped_at - self._waited)
        self.step, self._stepped_at, self._waited = step, now, 0.0
        self.beat()

    def may_compile(self) -> None:
        """The next step is like none before: it is given the time of a first one."""
        self._longest, self._stepped_at = 0.0, None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """This rank is in phase ``name`` until the block ends."""
        before, self.doing, began = self.doing, name, time.monotonic()
        self.beat()
        yield
        # Not after an exception: where it came from is what the others are told.
        if name == "data_wait":
            self._waited += time.monotonic() - began
        elif name != "train":
            self._stepped_at = None
        self.doing = before
        self.beat()

    def line(self) -> Line:
        self._heart += 1
        return Line(
            heart=self._heart,
            moves=self._moves,
            step=self.step,
            doing=self.doing,
            waits=_in_collective(),
            limit=self._limit(),
            host=self._host,
            pid=os.getpid(),
            place=self._place,
            left=self.left,
        )

    def _limit(self) -> float:
        if self._hang_seconds == 0 or self.doing not in _TIMES:
            return 0.0
        first = self.doing == "train" and self._longest == 0.0
        return max((_COMPILING if first else _TIMES[self.doing]) * self._hang_seconds, 10 * self._longest)


def this_place() -> str:
    """This machine since its last start, and the namespace that process ids belong to."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}/{socket.gethostname()}"  # noqa: PTH116
    except OSError:
        return f"{socket.gethostname()}/{os.getpid()}"


def _state(pid: int) -> str:
    """The kernel's letter for the process: Z for one that has ended and is not collected, T for a stopped one."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return status.rpartition(")")[2].split()[0]


def _in_collective() -> bool:
    """Whether the main thread is inside torch.distributed or DeepSpeed's communication."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if _COLLECTIVE.search(frame.f_code.co_filename):
            return True
        frame = frame.f_back
    return False
