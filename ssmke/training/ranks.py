"""Where this process runs, and doing something on one rank for all.

`Placement` is read from the launcher's environment once, in the launcher, and passed down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from ssmke.data.atomic import write_error
from ssmke.errors import SSMKEError
from ssmke.objectives.gather import rank, world_size

T = TypeVar("T")


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


def barrier() -> None:
    """Waits for all ranks."""
    if world_size() > 1:
        dist.barrier()
