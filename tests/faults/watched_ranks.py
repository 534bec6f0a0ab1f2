"""Groups of real ranks under a watchdog, each group with one fault: started by `test_watchdog`.

    python -m tests.faults.watched_ranks FOLDER

Forks three ranks for every scenario, all at once, and writes what each said to FOLDER/<scenario>/rank-N.log and its
exit code to FOLDER/<scenario>/rank-N.code.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from ssmke.errors import DataError, SSMKEError
from ssmke.training.faults import FaultConfig
from ssmke.training.watchdog import Watchdog

RANKS = 3
SECONDS = 5.0


def wait_for_others() -> None:
    dist.all_reduce(torch.ones(1))


def killed(rank: int, dog: Watchdog) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    wait_for_others()


def rank_0_killed(rank: int, dog: Watchdog) -> None:
    if rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    wait_for_others()


def frozen(rank: int, dog: Watchdog) -> None:
    if rank == 2:
        os.kill(os.getpid(), signal.SIGSTOP)
    wait_for_others()


def own_error(rank: int, dog: Watchdog) -> None:
    if rank == 1:
        raise DataError("the disk of rank 1 is full")
    wait_for_others()


def bug(rank: int, dog: Watchdog) -> None:
    if rank == 1:
        raise ZeroDivisionError("division by zero")
    wait_for_others()


def waits_for_data(rank: int, dog: Watchdog) -> None:
    with dog.vitals.phase("data_wait" if rank == 2 else "train"):
        if rank == 2:
            time.sleep(1000)
        wait_for_others()


def computes_for_ever(rank: int, dog: Watchdog) -> None:
    if rank == 1:
        time.sleep(1000)
    wait_for_others()


def deadlock(rank: int, dog: Watchdog) -> None:
    if rank == 0:
        dist.broadcast(torch.ones(1), src=1, group=dist.new_group([0, 1]))  # type: ignore[arg-type]
    else:
        dist.new_group([0, 1])
        wait_for_others()


def well(rank: int, dog: Watchdog) -> None:
    """Slower than the limits, but it gets on: in set-up nobody hurries, in a cache build there are beats."""
    with dog.vitals.phase("setup"):
        time.sleep(rank * SECONDS / 2)
    with dog.vitals.phase("target_cache"):
        for _ in range(int(15 * SECONDS) if rank == 1 else 0):
            time.sleep(0.1)
            dog.vitals.beat()
        wait_for_others()


SCENARIOS: dict[str, Callable[[int, Watchdog], None]] = {
    s.__name__: s
    for s in (
        *(killed, rank_0_killed, frozen, own_error, bug),
        *(waits_for_data, computes_for_ever, deadlock, well),
    )
}


def run(scenario: str, rank: int, port: int, folder: Path) -> int:
    """One rank, as `ssmke.training.pretrain` and the launcher treat it; returns the exit code."""
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    config = FaultConfig(
        hang_seconds=SECONDS / 15 if scenario == "waits_for_data" else SECONDS, dead_seconds=SECONDS
    )
    dog = Watchdog(config, folder, scenario)
    dog.start(lambda: print("last words", flush=True))
    left = ""
    try:
        with dog.vitals.phase("train"):
            dog.vitals.at(0)
            wait_for_others()
            dog.vitals.at(1)
            SCENARIOS[scenario](rank, dog)
    except SSMKEError as error:
        left = str(error)
        print(f"error: {error}", flush=True)
        return error.exit_code
    except Exception as error:
        left = f"{type(error).__name__}: {error}"
        lost = dog.explain(error)
        if lost is None:
            traceback.print_exc()
            return 1
        if not lost.told:
            print(f"error: {lost}", flush=True)
        return lost.exit_code
    finally:
        dog.stop(left)
    return 0


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    started: dict[int, Path] = {}
    for scenario in SCENARIOS:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        group = folder / scenario
        group.mkdir(parents=True)
        for rank in range(RANKS):
            process = os.fork()
            if process == 0:
                log = os.open(group / f"rank-{rank}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
                os.dup2(log, 1)
                os.dup2(log, 2)
                code = 70
                try:
                    code = run(scenario, rank, port, group)
                finally:
                    sys.stdout.flush()
                    os._exit(code)
            started[process] = group / f"rank-{rank}"
    # What stands still by itself (asleep, stopped) is ended when the ranks that notice it have had their time.
    deadline = time.monotonic() + 60
    while started:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended:
            path = started.pop(ended)
            path.with_suffix(".code").write_text(str(os.waitstatus_to_exitcode(status)))
            continue
        if time.monotonic() > deadline or list(started.values()) == [folder / "frozen" / "rank-2"]:
            for process in started:
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
