"""Shortages of memory, real ones, are one message that says what to lower."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ssmke.cost.ledger.reader import read_run
from ssmke.training.memory_errors import OutOfMemory, clear_memory_errors, explain
from tests.e2e.runs import ZERO2, environment, start

SCRIPT = Path(__file__).with_name("limited_pretrain.py")


@contextmanager
def little_memory() -> Iterator[None]:
    """This process may map 64 MB more."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (64 << 20), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize(
    ("phase", "remedy"),
    [
        (
            "train",
            r"a training step on rank 0.*train_micro_batch_size_per_gpu in zero2\.json \(now 16;.*ssmke plan",
        ),
        ("target_cache", r"Lower --targets\.batch-size, and --data\.stream\.workers"),
        ("evaluation", r"ssmke evaluate retrieval"),
        ("data_wait", r"Lower --data\.stream\.workers"),
    ],
)
def test_torch_without_memory_says_what_to_lower(phase: str, remedy: str) -> None:
    with (
        pytest.raises(OutOfMemory, match=rf"out of main memory in.*{remedy}"),
        clear_memory_errors(phase, micro_batch=16, config="zero2.json"),
        little_memory(),
    ):
        torch.ones(1 << 28)


def test_numpy_without_memory_says_so_too() -> None:
    with (
        pytest.raises(OutOfMemory, match=r"the set-up.*Unable to allocate"),
        clear_memory_errors("setup", micro_batch=16, config="zero2.json"),
        little_memory(),
    ):
        np.ones(1 << 28)


def test_other_failures_pass_as_they_are() -> None:
    for failure in (
        RuntimeError("shapes do not match"),
        OSError(errno.EIO, "Input/output error"),
        KeyError("x"),
    ):
        assert explain(failure, "train", micro_batch=1, config="c.json") is None
    with (
        pytest.raises(RuntimeError, match="do not match"),
        clear_memory_errors("train", micro_batch=1, config="c"),
    ):
        raise RuntimeError("shapes do not match")


def test_an_error_of_the_gpu_is_told_from_one_of_the_host() -> None:
    found = explain(
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        "train",
        micro_batch=1,
        config="c",
    )
    assert found is not None
    assert "out of GPU memory" in str(found)
    assert "higher ZeRO stage" in str(found)
    assert "workers" not in str(found)


class _Killed(torch.utils.data.Dataset[int]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_a_worker_that_the_kernel_kills_is_named() -> None:
    loader: DataLoader[int] = DataLoader(_Killed(), num_workers=1)
    with (
        pytest.raises(OutOfMemory, match=r"data worker \d+ of rank 0 was killed \(Killed\).*--resume auto"),
        clear_memory_errors("data_wait", micro_batch=16, config="zero2.json"),
    ):
        list(loader)


@pytest.mark.e2e
def test_a_worker_that_dies_while_it_hands_over_is_named() -> None:
    """First a broken connection; what torch's handler of SIGCHLD raises comes while that is being explained."""

    def late(*_: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    def breaks() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        raise ConnectionResetError(104, "Connection reset by peer")

    before = signal.signal(signal.SIGALRM, late)
    try:
        with (
            pytest.raises(OutOfMemory, match=r"was killed \(Killed\)"),
            clear_memory_errors("data_wait", micro_batch=16, config="zero2.json"),
        ):
            breaks()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_rank_without_memory_ends_all_with_its_message(flags: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ["--run-dir", str(run), "--optim.batch-size", "128", "--model.shared.dim", "512"]
    command = start(ZERO2, 2, [*flags, *more])
    command = [str(SCRIPT) if part.endswith("launchers/pretrain.py") else part for part in command]
    variables = {**environment(), "LIMITED_RANK": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=variables, check=False, timeout=120
    )
    output = done.stdout + done.stderr
    assert done.returncode in (2, 4), output
    assert "out of main memory in a training step on rank 1" in output
    assert "train_micro_batch_size_per_gpu" in output
    assert "Traceback" not in output, output
    [ledger] = read_run(run)
    assert ledger.reason == "failed"
