"""From a launcher's command line to a process group with a device for every rank."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist

from ssmke.cost.budget import EXIT_CODE
from ssmke.objectives.gather import world_size
from ssmke.training.loop import Outcome
from ssmke.training.ranks import Placement
from ssmke.training.rendezvous import join_here, meets_here, require_restartable


def launch(run: Callable[[Placement], Outcome], environment: Mapping[str, str]) -> int:
    """Joins the process group that the launcher's environment describes, does the ``run``, and leaves it.

    Returns the exit code: 0 done or stopped with a checkpoint, 3 stopped by a budget with a checkpoint.

    Works under ``deepspeed``, ``torchrun`` and SLURM scripts that set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and
    MASTER_PORT, and as a plain single process. On CPU the cores are shared out
    among the node's ranks, unless OMP_NUM_THREADS says how many each may use.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    placement = Placement.of(environment)
    if "RANK" not in environment:
        stand_alone()
    if torch.cuda.is_available():
        get_accelerator().set_device(placement.local_rank)
        # The products that are not in bf16 (losses, target cache) on tensor cores, their inputs rounded to TF32.
        torch.set_float32_matmul_precision("high")
    elif not environment.get("OMP_NUM_THREADS"):
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // placement.local_size))
    require_restartable(os.environ)
    if meets_here(os.environ, placement.nodes):
        join_here(os.environ, get_accelerator().communication_backend_name())
    deepspeed.init_distributed()
    if not torch.cuda.is_available():
        unlink_shared_buffers(placement)
    outcome = run(placement)
    dist.destroy_process_group()
    return EXIT_CODE if outcome.over_budget else 0


def unlink_shared_buffers(placement: Placement) -> None:
    """Removes the names of DeepSpeed's all-reduce buffers on CPU, which every rank has mapped by now (collective).

    DeepSpeed 0.19.8 never unlinks them: each run, however it ends, would leave 69 MB per rank in memory.
    """
    if world_size() == 1 or placement.nodes > 1:
        return
    dist.barrier()
    if placement.local_rank == 0:
        address, port = (
            placement.environment.get("MASTER_ADDR", ""),
            placement.environment.get("MASTER_PORT", ""),
        )
        for number in range(world_size()):
            Path(f"/dev/shm/deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{number}").unlink(
                missing_ok=True
            )


def stand_alone() -> None:
    """Makes this process a group of one, on a free port, for `torch.distributed`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(alone, MASTER_PORT=str(port))
