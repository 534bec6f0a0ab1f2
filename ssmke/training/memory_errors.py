"""A shortage of memory as one message that says what to lower, instead of an allocator's trace.

Shortages come in many shapes: Python's MemoryError, torch's OutOfMemoryError on a GPU, a RuntimeError of its CPU
allocator, an OSError of a fork or a memory map, a data worker that the kernel killed or that met the end of /dev/shm.
`clear_memory_errors` turns all of them into `OutOfMemory` where they happen, since only there it is known what was
being done; every other exception passes as it is. What the kernel kills without asking (SIGKILL of the training process
itself) nobody can turn into anything: the next attempt goes on from the last checkpoint.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from ssmke.errors import SSMKEError
from ssmke.objectives.gather import rank

_ALLOCATOR = re.compile(
    r"can't allocate memory|cannot allocate memory|out of memory|not enough memory|bad_alloc|ALLOC_FAILED",
    re.IGNORECASE,
)
_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? (?P<pids>[\d, ]+)\) (?:is killed by signal: (?P<signal>\w+)|exited)"
)
_SHARED = re.compile(r"shared memory|/dev/shm|/torch_\d+|Bus error", re.IGNORECASE)
_LATE_S = 1.0
"""A worker that dies while it hands over a batch is a broken connection first; torch's handler of SIGCHLD, which says
that it died, raises in the main thread wherever that is, a moment later."""
_EARLIER = "earlier checkpoints are kept: the same command with --resume auto goes on"


class OutOfMemory(SSMKEError):
    """There was not enough memory, or a data worker was killed, which has few other causes."""


@contextmanager
def clear_memory_errors(phase: str, *, micro_batch: int, config: str) -> Iterator[None]:
    """Raises `OutOfMemory` for a shortage of memory inside.

    Args:
        phase: what is being done, by its name in the cost ledger.
        micro_batch: pairs per rank and forward pass.
        config: path of the DeepSpeed JSON, which holds the micro-batch.
    """
    try:
        yield
    except SSMKEError:
        raise
    except Exception as failure:
        try:
            if isinstance(failure, (ConnectionError, EOFError)):
                time.sleep(_LATE_S)
            problem = explain(failure, phase, micro_batch=micro_batch, config=config)
        except RuntimeError as late:
            problem = explain(late, phase, micro_batch=micro_batch, config=config)
        if problem is None:
            raise
        raise problem from failure


def explain(failure: BaseException, phase: str, *, micro_batch: int, config: str) -> OutOfMemory | None:
    """The message for ``failure``; None if it is about something else than memory."""
    # The loader says first that a worker is gone, and what ended it only in the error below that.
    workers = [found for error in _chain(failure) if (found := _WORKER.search(str(error)))]
    for worker in sorted(workers, key=lambda found: found["signal"] is None):
        return OutOfMemory(_worker_died(worker["pids"].strip(" ,"), worker["signal"], worker.string))
    for error in _chain(failure):
        text = str(error)
        if not _is_shortage(error, text):
            continue
        if _SHARED.search(text) and not isinstance(error, torch.OutOfMemoryError):
            return OutOfMemory(_no_shared_memory(text))
        device = (
            "GPU memory" if isinstance(error, torch.OutOfMemoryError) or "CUDA" in text else "main memory"
        )
        return OutOfMemory(
            f"out of {device} in {_WORDS.get(phase, phase)} on rank {rank()} ({_state(device, text)}). "
            f"{_remedy(phase, device, micro_batch, config)}; {_EARLIER}"
        )
    return None


def _chain(failure: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    error: BaseException | None = failure
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__


def _is_shortage(error: BaseException, text: str) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and bool(_ALLOCATOR.search(text))


_WORDS = {
    "setup": "the set-up",
    "target_cache": "the build of the target cache",
    "train": "a training step",
    "data_wait": "the data stream",
    "checkpoint": "a checkpoint",
    "evaluation": "the evaluation or the export",
}


def _state(device: str, text: str) -> str:
    """How much there is, and the allocator's own first line."""
    said = (text.strip().splitlines() or ["no more is known"])[0][:200]
    if device == "GPU memory" and torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free; {said}"
    free_bytes, own = psutil.virtual_memory().available, psutil.Process().memory_info().rss
    return f"{free_bytes / 2**30:.1f} GiB free, this process holds {own / 2**30:.1f}; {said}"


def _remedy(phase: str, device: str, micro_batch: int, config: str) -> str:
    workers = "--data.stream.workers and --data.stream.prefetch"
    if phase == "target_cache":
        return "Lower --targets.batch-size" + ("" if device == "GPU memory" else f", and {workers}")
    if phase == "data_wait":
        return f"Lower {workers}"
    if phase == "evaluation":
        return "Evaluate elsewhere (`ssmke evaluate retrieval --model RUN/model`), or on more ranks"
    if phase == "checkpoint":
        return "Use a higher ZeRO stage or more ranks, which share the optimiser's state"
    smaller = (
        f"Lower train_micro_batch_size_per_gpu in {config} (now {micro_batch}; the global batch and its negatives stay)"
        if micro_batch > 1
        else f"Use a higher ZeRO stage than that of {config}"
    )
    host = "" if device == "GPU memory" else f", or {workers}"
    return (
        f"{smaller}, or add --compute.checkpointing, or lower --loss.max-logits or --loss.bank-size{host}; "
        "`ssmke plan` says what fits"
    )


def _worker_died(pids: str, signal: str | None, text: str) -> str:
    if signal == "Bus" or _SHARED.search(text.split("\n", 1)[0]):
        return _no_shared_memory(text)
    how = f"was killed ({signal})" if signal else "ended by itself"
    return (
        f"data worker {pids} of rank {rank()} {how}, as a rule by the kernel for want of memory (`dmesg` says so; "
        f"{psutil.virtual_memory().available / 2**30:.1f} GiB are free now): lower --data.stream.workers or "
        f"--data.stream.prefetch, or give the job more memory; {_EARLIER}"
    )


def _no_shared_memory(text: str) -> str:
    said = (text.strip().splitlines() or [""])[0][:200]
    return (
        f"out of shared memory (/dev/shm) on rank {rank()}, through which data workers hand over batches ({said}): "
        "enlarge it (docker run --shm-size 8g), lower --data.stream.prefetch, or use --data.stream.workers 0; "
        f"{_EARLIER}"
    )
