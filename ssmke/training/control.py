"""Decisions that all ranks must take at the same step: stop after a signal or at a budget, save a checkpoint.

Every rank says what it wants after a step; the maximum over ranks is known one step later. The reduction runs
on a gloo group (host memory, no device synchronisation) while the next step computes, so it costs nothing
visible, and a SIGTERM to any rank stops all of them after the same step.

DeepSpeed's single-node launcher (0.19.8) does not pass SIGTERM on: the command that the user started, or the
container's process 1, just ends, and its ranks would train on unseen. The end of that process therefore counts as a
request to stop.
"""

from __future__ import annotations

import os
import signal
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ssmke.cost.budget import BudgetSpent
from ssmke.errors import SSMKEError
from ssmke.objectives.gather import rank, world_size

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_SPENT_KEY = "ssmke/budget-spent"


class Stopped(SSMKEError):
    """A run was asked to stop before its training loop, which would have saved a checkpoint."""


@dataclass(frozen=True)
class Decision:
    """What all ranks do after this step."""

    stop: bool
    save: bool
    spent: bool
    """A budget is used up, which is one of the reasons to stop."""


class Control:
    """Listens for signals and agrees with the other ranks.

    ``spent``: what rank 0 says of its budget, None as long as there is some left; not asked on other ranks.
    ``beat``: called by `check`, so that long work outside the training loop is seen to get on.
    """

    def __init__(
        self, spent: Callable[[], str | None] = lambda: None, beat: Callable[[], None] = lambda: None
    ) -> None:
        self.signal: str | None = None
        self.asked_at: float | None = None
        """When `signal` came, on the monotonic clock."""
        self._beat = beat
        self._spent = spent
        self._asked = 0.0
        self._group: Any = dist.new_group(backend="gloo") if world_size() > 1 else None
        self._pending: tuple[torch.Tensor, dist.Work | None] | None = None
        self._previous: dict[int, object] = {}
        self._launcher = _grandparent() if _started_by_deepspeed() else None

    def listen(self) -> None:
        """From now on SIGTERM, SIGINT and SIGUSR1 ask for a stop after the step; a second SIGINT interrupts."""
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._on_signal)

    def close(self) -> None:
        """Restores the former signal handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _on_signal(self, number: int, frame: types.FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.request(signal.Signals(number).name)

    def request(self, why: str) -> None:
        """Asks for a stop after the step; ``why`` ends the sentence "stopped by ..."."""
        if self.signal is None:
            self.signal, self.asked_at = why, time.monotonic()

    def check(self) -> None:
        """Raises `Stopped` when this rank was asked to stop, `BudgetSpent` on all ranks when a budget is used up.

        For long work outside the training loop, where ranks do not march in step; not collective.
        """
        self._beat()
        self._notice_launcher()
        self._check_budget()
        if self.signal is not None:
            raise Stopped(
                f"stopped by {self.signal}; what is finished is kept, the same command goes on from there"
            )

    def _check_budget(self) -> None:
        if time.monotonic() - self._asked < 1.0:
            return
        self._asked = time.monotonic()
        spent = self._spent() if rank() == 0 else None
        if world_size() > 1:
            store = dist.distributed_c10d._get_default_store()
            if spent is not None:
                store.set(_SPENT_KEY, spent)
            elif rank() != 0 and store.check([_SPENT_KEY]):
                spent = store.get(_SPENT_KEY).decode()
        if spent is not None:
            error = BudgetSpent(
                f"stopped by the budget: {spent}; what is finished is kept: raise it, and the same command goes on"
            )
            error.told = rank() != 0
            raise error

    def _notice_launcher(self) -> None:
        if self.signal is None and self._launcher is not None and _grandparent() != self._launcher:
            self.request("the end of the launcher")

    def agree(self, *, save: bool) -> Decision:
        """What all ranks decided one step ago; call once per step on every rank."""
        if self._pending is not None:
            wishes, work = self._pending
            if work is not None:
                work.wait()
            spent = bool(wishes[2])
            decision = Decision(stop=bool(wishes[0]) or spent, save=bool(wishes[1]), spent=spent)
        else:
            decision = Decision(stop=False, save=False, spent=False)
        self._notice_launcher()
        over = rank() == 0 and self._spent() is not None
        wishes = torch.tensor([int(self.signal is not None), int(save), int(over)])
        work = (
            dist.all_reduce(wishes, dist.ReduceOp.MAX, group=self._group, async_op=True)
            if self._group
            else None
        )
        self._pending = (wishes, work)
        return decision


def _started_by_deepspeed() -> bool:
    try:
        return b"deepspeed.launcher.launch" in Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:
        return False


def _grandparent() -> int | None:
    """Process id of this process' parent's parent; None where it cannot be known."""
    try:
        status = Path(f"/proc/{os.getppid()}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(status.rpartition(")")[2].split()[1])
