"""From a launcher's command line to a process group with a device for every rank."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Mapping

import torch
import torch.distributed as dist

from ssmke.cost.budget import EXIT_CODE
from ssmke.recipes import Invocation
from ssmke.training.pretrain import pretrain
from ssmke.training.ranks import Placement


def launch(invocation: Invocation, environment: Mapping[str, str]) -> int:
    """Joins the process group that the launcher's environment describes, trains, and leaves it.

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
    elif not environment.get("OMP_NUM_THREADS"):
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // placement.local_size))
    deepspeed.init_distributed()
    outcome = pretrain(invocation.recipe, invocation.deepspeed_config, placement)
    dist.destroy_process_group()
    return EXIT_CODE if outcome.over_budget else 0


def stand_alone() -> None:
    """Makes this process a group of one, on a free port, for `torch.distributed`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(alone, MASTER_PORT=str(port))
