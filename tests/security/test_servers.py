"""What listens, and where: this machine only, unless ranks are on several."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

from ssmke.tracking.standing import ui_command
from ssmke.training.rendezvous import meets_here
from tests.e2e.runs import ROOT

_RANK = """
import json, os, psutil, torch
import torch.distributed as dist
from ssmke.training.rendezvous import join_here
join_here(os.environ, "gloo")
dist.all_reduce(torch.ones(1))
listening = [c.laddr.ip for c in psutil.Process().net_connections() if c.status == "LISTEN"]
dist.distributed_c10d._get_default_store().clone().set("alive", "yes")
print(json.dumps(listening))
dist.destroy_process_group()
"""


def test_ranks_of_one_machine_meet_on_its_loopback_interface() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_SOCKET_IFNAME")}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        environment |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": str(probe.getsockname()[1])}
    done = subprocess.run(
        [sys.executable, "-c", _RANK],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    listening = json.loads(done.stdout.splitlines()[-1])
    assert listening
    assert set(listening) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_only_ranks_of_one_machine_do() -> None:
    assert meets_here({"MASTER_ADDR": "127.0.0.1"}, 1)
    assert meets_here({"MASTER_ADDR": "localhost"}, 1)
    assert not meets_here({"MASTER_ADDR": "127.0.0.1"}, 2)
    assert not meets_here({"MASTER_ADDR": "10.0.0.1"}, 1)
    assert not meets_here({"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}, 1)


def test_the_hint_for_mlflow_binds_here_and_is_one_command() -> None:
    assert ui_command("sqlite:///a b;c/mlflow.db") == (
        "mlflow ui --backend-store-uri 'sqlite:///a b;c/mlflow.db' --host 127.0.0.1"
    )
