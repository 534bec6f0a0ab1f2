"""Where the ranks of one machine meet: on its loopback interface, so that the network cannot join them.

torch's store believes whoever connects, and listens on all interfaces, also for ranks that call it by 127.0.0.1. Where
all ranks are here, it gets a socket that is bound to the loopback address, and Gloo and NCCL are told to use that
interface as well. Several nodes must meet over the network: docs/training.md says what that network has to be like.
Other users of this machine can still reach the port. Costs nothing.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Mapping
from datetime import timedelta

import torch.distributed as dist

from ssmke.errors import ConfigError

_TIMEOUT = timedelta(hours=2)
"""Of one collective operation. Rank 0 may download or render for long while others wait; hangs are the watchdog's."""
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def meets_here(environment: Mapping[str, str], nodes: int) -> bool:
    """Whether all ranks are of this machine, and no launcher made a store for them (torchrun does)."""
    if nodes != 1 or environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return False
    address = environment.get("MASTER_ADDR", "")
    try:
        return address == "localhost" or ipaddress.ip_address(address) == ipaddress.ip_address("127.0.0.1")
    except ValueError:
        return False


def require_restartable(environment: Mapping[str, str]) -> None:
    """Refuses a torchrun that is to start dead ranks again, but whose ranks would meet those before them.

    torchrun 2.14 lends all its attempts one store, in which the second finds the addresses of the first; that is known
    at the start, not after the first fault.
    """
    shares = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if shares and environment.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        raise ConfigError(
            "torchrun --max-restarts: ranks that are started again would find the addresses of the dead ones in the "
            "store that torchrun shares: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment"
        )


def join_here(environment: Mapping[str, str], backend: str) -> None:
    """Makes the default process group over the loopback interface (collective).

    Raises:
        ConfigError: another program has the port.
    """
    for name in _INTERFACES:
        if any(interface == "lo" for _, interface in socket.if_nameindex()):
            os.environ.setdefault(name, "lo")
    rank, ranks, port = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    store = _serve(port, ranks) if rank == 0 else dist.TCPStore("127.0.0.1", port, ranks, is_master=False)
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=_TIMEOUT)


def _serve(port: int, ranks: int) -> dist.TCPStore:
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise ConfigError(
                f"--master_port {port}: another program, perhaps another run, listens there: end it, or give another "
                "port to the launcher (deepspeed --master_port 29501 ...)"
            ) from None
        listening.listen(1024)
        store = dist.TCPStore(
            "127.0.0.1",
            port,
            ranks,
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=listening.fileno(),
        )
        listening.detach()  # it is the store's now
        return store
