"""Where this process runs, and doing something on one rank for all.

`Placement` is read from the launcher's environment once, in the launcher, and passed down.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch.distributed as dist

from ssmke.data.atomic import write_error
from ssmke.errors import SSMKEError
from ssmke.objectives.gather import rank, world_size

T = TypeVar("T")
_LOST_PEER = re.compile(
    r"gloo|nccl|connection|broken pipe|socket|process group|peer|timed? ?out", re.IGNORECASE
)


@dataclass(frozen=True)
class Placement:
    """This process' place among nodes and devices, and the environment it was started in."""

    local_rank: int
    local_size: int
    node_rank: int
    nodes: int
    environment: Mapping[str, str]

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Placement:
        """From the variables that DeepSpeed's launcher, torchrun or a SLURM script sets; one process without."""

        def number(*names: str, default: int) -> int:
            return next((int(environment[name]) for name in names if environment.get(name)), default)

        local_size = number("LOCAL_SIZE", "LOCAL_WORLD_SIZE", default=1)
        return cls(
            local_rank=number("LOCAL_RANK", default=0),
            local_size=local_size,
            node_rank=number(
                "CROSS_RANK", "GROUP_RANK", "SLURM_NODEID", default=number("RANK", default=0) // local_size
            ),
            nodes=max(1, number("WORLD_SIZE", default=1) // local_size),
            environment=dict(environment),
        )


def on_rank_zero(function: Callable[[], T]) -> T:
    """Runs ``function`` on rank 0 and gives its result, or its `SSMKEError`, to all ranks (collective)."""
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = function()
        except SSMKEError as error:
            outcome[1] = error
        except OSError as error:
            outcome[1] = write_error(Path(error.filename or "a file of the run"), error)
    if world_size() > 1:
        dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        outcome[1].told = rank() != 0
        raise outcome[1]
    result: T = outcome[0]
    return result


def on_all_ranks(function: Callable[[], T]) -> list[T]:
    """Runs ``function`` on every rank and gives all results to all, or the first `SSMKEError` (collective).

    What one node lacks, a folder that is not shared, is so an error that names the node, and no rank waits for it.
    """
    mine: tuple[T | None, SSMKEError | None]
    try:
        mine = function(), None
    except SSMKEError as error:
        mine = None, error
    outcomes = [mine]
    if world_size() > 1:
        located = (*mine, socket.gethostname())
        gathered: list[Any] = [located] * world_size()
        dist.all_gather_object(gathered, located)
        for number, (_, failure, host) in enumerate(gathered):
            if failure is not None:
                failure.args = (f"rank {number} on {host}: {failure}" if number > 0 else str(failure),)
                failure.told = rank() != 0
        outcomes = [(result, failure) for result, failure, _ in gathered]
    for _, failure in outcomes:
        if failure is not None:
            raise failure
    return [cast(T, result) for result, _ in outcomes]


def is_lost_peer(failure: BaseException) -> bool:
    """Whether ``failure`` is how a backend reports that another rank, or the way to it, is gone."""
    return isinstance(failure, RuntimeError) and _LOST_PEER.search(str(failure)) is not None


def barrier() -> None:
    """Waits for all ranks."""
    if world_size() > 1:
        dist.barrier()
