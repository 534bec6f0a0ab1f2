"""Nearest neighbours by FAISS: which of its indexes, how it is built, and how it is opened.

Embeddings have length one, so the inner product is the cosine. Three kinds, all FAISS's own:

- flat: every query reads every vector. Exact; 256 MB of vectors take 18 ms on one core.
- hnsw: a graph in memory; about a millisecond, at the price of building it and 272 bytes more a vector.
- ivf: lists of neighbours in a file that is memory-mapped (`OnDiskInvertedLists`, merged from blocks as FAISS's own
  `merge_ondisk` does it); a query reads the few lists nearest to it, so the index may be larger than memory.

What is not exact is tuned while building: captions (else pictures) are asked for, the exact answer is computed beside
it, and the search gets as wide as `RECALL` needs. The width and the recall that it gave go into the manifest.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssmke.data.atomic import TEMPORARY_SUFFIX, atomic_writer
from ssmke.data.shards import file_sha256
from ssmke.errors import ConfigError, DataError
from ssmke.search.parts import Vectors

KINDS = ("auto", "flat", "hnsw", "ivf")
FLAT_BYTES = 256_000_000
RECALL = 0.95
"""Of the exact ten nearest, how many an index that is not exact has to find."""
PROBES = 200
"""Queries that a search is tuned with."""
LINKS = 32
"""Of a vector in the HNSW graph, each way."""
BLOCK = 262_144
"""Vectors of an IVF block: what is in memory at a time while it is built."""
TRAINED_PER_LIST = 64
"""FAISS asks for 39 at least."""

Blocks = Callable[[], Iterator[Vectors]]
"""All vectors in order, some [n, D] at a time; may be asked for again."""


@dataclass(frozen=True)
class Nearest:
    """A FAISS index on the disk, as the manifest describes it."""

    kind: str
    """flat, hnsw or ivf."""
    why: str
    """Why this kind."""
    vectors: int
    """How many it holds."""
    bytes: int
    """Size of the index file."""
    sha256: str
    """Of the index file."""
    lists_bytes: int = 0
    """Size of the file with the lists of an ivf index."""
    width: int = 0
    """efSearch of hnsw, nprobe of ivf."""
    recall: float = 1.0
    """Of the exact ten nearest, as measured when it was built."""


def choose(kind: str, count: int, dim: int, memory: int) -> tuple[str, str]:
    """The kind for ``count`` vectors [dim] where ``memory`` bytes are free, and why."""
    size = 4 * count * dim
    held = f"{count:,} vectors of {dim} are {_megabytes(size)}"
    if kind != "auto":
        return kind, f"{held}; {kind} was asked for"
    if size <= FLAT_BYTES:
        return "flat", f"{held}: small enough to compare a query with every one"
    graph = count * 8 * (LINKS + 2)
    if size + graph <= memory // 2:
        return (
            "hnsw",
            f"{held}: too many to compare with every one, and they fit into {_megabytes(memory)} of free memory",
        )
    return (
        "ivf",
        f"{held}, more than half of {_megabytes(memory)} of free memory: lists in a memory-mapped file",
    )


def build(
    folder: Path,
    name: str,
    blocks: Blocks,
    count: int,
    dim: int,
    kind: str,
    memory: int,
    probes: Vectors,
    threads: int = 0,
) -> Nearest:
    """Builds ``folder/name.faiss`` of all vectors of ``blocks``; ``probes`` [q, D] are the queries to tune it with.

    ``threads`` of FAISS; 0 is as many as there are cores.

    Raises:
        DataError: the file system refused, or has too little room.
    """
    faiss = library(threads)
    kind, why = choose(kind, count, dim, memory)
    index = {"flat": _flat, "hnsw": _hnsw, "ivf": _ivf}[kind](faiss, folder, name, blocks, count, dim)
    width, recall = (0, 1.0) if kind == "flat" else _tuned(index, blocks, probes, count)
    path = folder / f"{name}.faiss"
    with atomic_writer(path) as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(lambda data: file.write(bytes(data))))
    lists = folder / f"{name}.ivfdata"
    size = lists.stat().st_size if kind == "ivf" else 0
    return Nearest(kind, why, count, file.bytes, file.sha256, size, width, round(recall, 4))


def load(folder: Path, name: str, facts: Nearest, dim: int) -> Any:
    """Opens ``folder/name.faiss``; the lists of an ivf index stay on the disk and are mapped.

    Raises:
        DataError: missing, damaged, or not what ``facts`` say.
    """
    faiss = library()
    path, lists = folder / f"{name}.faiss", folder / f"{name}.ivfdata"
    again = "restore it from a copy, or index again into another folder"
    try:
        sizes = (path.stat().st_size, lists.stat().st_size if facts.kind == "ivf" else 0)
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}): {again}.") from None
    for at, found, stated in ((path, sizes[0], facts.bytes), (lists, sizes[1], facts.lists_bytes)):
        if found != stated:
            raise DataError(f"{at} is damaged: it has {found:,} bytes, index.json says {stated:,}; {again}.")
    # FAISS trusts what it reads, so it gets to see only what was written.
    if file_sha256(path) != facts.sha256:
        raise DataError(f"{path} is damaged: its SHA-256 is not that of index.json; {again}.")
    try:
        with _silent():
            index = faiss.read_index(str(path), faiss.IO_FLAG_ONDISK_SAME_DIR | faiss.IO_FLAG_READ_ONLY)
    except (RuntimeError, MemoryError) as error:
        raise DataError(f"{path} cannot be read by FAISS ({_first_line(error)}): {again}.") from None
    if (index.ntotal, index.d) != (facts.vectors, dim):
        raise DataError(
            f"{path} holds {index.ntotal} vectors of {index.d}, index.json says {facts.vectors} of {dim}; {again}."
        )
    _widen(index, facts.width)
    return index


def library(threads: int = 0) -> Any:
    """The module faiss, with as many threads.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import faiss
        import faiss.contrib.ondisk
    except ImportError as error:
        raise ConfigError(f"search needs FAISS ({error}): pip install faiss-cpu") from None
    if threads:
        faiss.omp_set_num_threads(threads)
    return faiss


def _flat(faiss: Any, folder: Path, name: str, blocks: Blocks, count: int, dim: int) -> Any:
    index = faiss.IndexFlatIP(dim)
    for block in blocks():
        index.add(np.ascontiguousarray(block))
    return index


def _hnsw(faiss: Any, folder: Path, name: str, blocks: Blocks, count: int, dim: int) -> Any:
    index = faiss.IndexHNSWFlat(dim, LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 100
    for block in blocks():
        index.add(np.ascontiguousarray(block))
    return index


def _ivf(faiss: Any, folder: Path, name: str, blocks: Blocks, count: int, dim: int) -> Any:
    room = shutil.disk_usage(folder).free
    needed = 2 * 4 * count * (dim + 2)  # the blocks, and the lists that they are merged into
    if needed > room:
        # The lists are written through a map, and a map of a full disk ends the process without a word.
        raise DataError(
            f"{folder} has {_megabytes(room)} free, the lists need {_megabytes(needed)}: free some space, then run the "
            "same command again."
        )
    lists = max(1, min(round(4 * math.sqrt(count)), count // 39))
    trained = faiss.index_factory(dim, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    trained.cp.seed = 1234
    trained.cp.min_points_per_centroid = 1  # few pictures are no reason for a warning
    trained.train(_drawn(blocks, count, max(lists * TRAINED_PER_LIST, 256)))
    files: list[Path] = []
    done = 0
    try:
        for vectors in _gathered(blocks()):
            block = faiss.clone_index(trained)
            block.add_with_ids(vectors, np.arange(done, done + len(vectors), dtype=np.int64))
            done += len(vectors)
            files.append(folder / f".{name}-{len(files)}.block{TEMPORARY_SUFFIX}")
            faiss.write_index(block, str(files[-1]))
        with _silent():
            faiss.contrib.ondisk.merge_ondisk(trained, list(map(str, files)), str(folder / f"{name}.ivfdata"))
        # By its name alone: an index may be moved, and where it was made is nobody's business.
        faiss.downcast_InvertedLists(trained.invlists).filename = f"{name}.ivfdata"
    except RuntimeError as error:  # what FAISS makes of every failure to write
        raise DataError(
            f"FAISS cannot write into {folder} ({_first_line(error)}): free some space, then run the same "
            "command again."
        ) from None
    finally:
        for file in files:
            file.unlink(missing_ok=True)
    return trained


def _tuned(index: Any, blocks: Blocks, probes: Vectors, count: int) -> tuple[int, float]:
    """The least width that reaches `RECALL`, set in ``index``, and the recall that it reaches."""
    exact = _exact(blocks, probes, min(10, count))  # [q, 10] scores
    width, recall = 16 if hasattr(index, "hnsw") else 1, 0.0
    most = index.nlist if hasattr(index, "nlist") else max(16, min(count, 4096))
    while True:
        _widen(index, width)
        scores, _ = index.search(probes, exact.shape[1])
        # By score and not by row, because of equal pictures any is as near as the other.
        recall = float((scores >= exact[:, -1:] - 1e-5).mean())
        if recall >= RECALL or width >= most:
            return width, recall
        width = min(2 * width, most)


def _exact(blocks: Blocks, probes: Vectors, top: int) -> Vectors:
    """The ``top`` largest scores of each of ``probes``, descending [q, top], block by block."""
    best = np.full((len(probes), top), -np.inf, np.float32)
    for block in blocks():
        best = np.sort(np.concatenate([best, probes @ block.T], axis=1), axis=1)[:, -top:]
    return best[:, ::-1]


def _widen(index: Any, width: int) -> None:
    if hasattr(index, "hnsw"):
        index.hnsw.efSearch = width
    elif hasattr(index, "nprobe"):
        index.nprobe = max(1, width)


def _drawn(blocks: Blocks, count: int, wanted: int) -> Vectors:
    """``wanted`` of all vectors, spread evenly."""
    rows = np.unique(np.linspace(0, count - 1, min(wanted, count)).astype(np.int64))
    found, first = [], 0
    for block in blocks():
        inside = rows[(rows >= first) & (rows < first + len(block))] - first
        found.append(np.asarray(block[inside], np.float32))
        first += len(block)
    return np.concatenate(found)


def _gathered(blocks: Iterator[Vectors]) -> Iterator[Vectors]:
    """Blocks of about `BLOCK` vectors."""
    waiting: list[Vectors] = []
    for block in blocks:
        waiting.append(block)
        if sum(map(len, waiting)) >= BLOCK:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keeps what FAISS's C++ prints about its files from standard output, which may be read by a program."""
    flush = ctypes.CDLL(None).fflush
    try:
        flush(None)
        kept = os.dup(1)
    except OSError:  # there is no standard output
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        flush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _megabytes(number: int) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"
