"""FAISS's indexes against numpy: every kind, its recall, and files that are not what was written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest

from ssmke.errors import DataError
from ssmke.search import nearest
from ssmke.search.nearest import build, choose, load

COUNT, DIM = 3000, 24
GIB = 1 << 30


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """Clustered as embeddings are; the last 100 are queries."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, DIM))
    found = centres[rng.integers(40, size=COUNT + 100)] + 0.5 * rng.normal(size=(COUNT + 100, DIM))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def built(folder: Path, vectors: np.ndarray, kind: str) -> nearest.Nearest:
    def blocks() -> Iterator[np.ndarray]:
        yield from np.array_split(vectors[:COUNT], 7)

    return build(folder, "images", blocks, COUNT, DIM, kind, GIB, vectors[COUNT : COUNT + 50], threads=1)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_finds_what_brute_force_finds(
    kind: str, vectors: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearest, "BLOCK", 700)  # several blocks to merge
    facts = built(tmp_path, vectors, kind)
    index = load(tmp_path, "images", facts, DIM)
    scores, rows = index.search(vectors[COUNT + 50 :], 10)  # queries that it was not tuned with
    exact = vectors[COUNT + 50 :].astype(np.float64) @ vectors[:COUNT].T.astype(np.float64)
    best = np.argsort(-exact, axis=1)[:, :10]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows.tolist(), best.tolist(), strict=True)])
    assert recall == 1 if kind == "flat" else recall >= 0.9
    assert facts.recall >= nearest.RECALL
    np.testing.assert_allclose(scores, np.take_along_axis(exact, rows, axis=1), atol=1e-5)
    assert not list(tmp_path.glob(".*")), "blocks and temporaries are gone"


def test_the_lists_of_ivf_stay_on_the_disk_and_may_be_moved(vectors: np.ndarray, tmp_path: Path) -> None:
    facts = built(tmp_path, vectors, "ivf")
    assert facts.lists_bytes >= 4 * COUNT * DIM > facts.bytes
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("images.faiss", "images.ivfdata"):
        shutil.move(tmp_path / name, moved / name)
    index = load(moved, "images", facts, DIM)
    lists = faiss.downcast_InvertedLists(faiss.extract_index_ivf(index).invlists)
    assert isinstance(lists, faiss.OnDiskInvertedLists)
    assert index.search(vectors[:1], 1)[1][0, 0] == 0


def test_ivf_refuses_a_disk_with_too_little_room(
    vectors: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room._replace(free=100_000))
    with pytest.raises(DataError, match=r"has 0\.1 MB free, the lists need 0\.6 MB"):
        built(tmp_path, vectors, "ivf")


def test_one_vector_is_enough_for_every_kind(tmp_path: Path) -> None:
    one = np.ones((1, 4), np.float32) / 2
    for kind in ("flat", "hnsw", "ivf"):
        facts = build(tmp_path, kind, lambda: iter([one]), 1, 4, kind, GIB, one, threads=1)
        assert load(tmp_path, kind, facts, 4).search(one, 1)[1].tolist() == [[0]]


@pytest.mark.parametrize(
    ("count", "memory", "kind"), [(1000, GIB, "flat"), (200_000, 16 * GIB, "hnsw"), (200_000, GIB, "ivf")]
)
def test_auto_goes_by_count_and_memory(count: int, memory: int, kind: str) -> None:
    assert choose("auto", count, 768, memory)[0] == kind
    assert choose("hnsw", count, 768, memory)[0] == "hnsw"


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_files_that_are_not_what_was_written_are_refused(
    kind: str, vectors: np.ndarray, tmp_path: Path
) -> None:
    facts = built(tmp_path, vectors, kind)
    path = tmp_path / "images.faiss"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(DataError, match=rf"images\.faiss is damaged: it has {facts.bytes - 9:,} bytes"):
        load(tmp_path, "images", facts, DIM)
    path.write_bytes(whole[:60] + bytes([whole[60] ^ 1]) + whole[61:])
    with pytest.raises(DataError, match=r"its SHA-256 is not that of index\.json"):
        load(tmp_path, "images", facts, DIM)
    path.write_bytes(whole)
    with pytest.raises(DataError, match=f"holds {COUNT} vectors of {DIM}, index.json says 9 of {DIM}"):
        load(tmp_path, "images", replace(facts, vectors=9), DIM)
    if kind == "ivf":
        (tmp_path / "images.ivfdata").write_bytes(b"")
        with pytest.raises(DataError, match=r"images\.ivfdata is damaged: it has 0 bytes"):
            load(tmp_path, "images", facts, DIM)
    path.unlink()
    with pytest.raises(DataError, match=r"images\.faiss cannot be read"):
        load(tmp_path, "images", facts, DIM)


def test_what_faiss_itself_cannot_read_is_one_error(vectors: np.ndarray, tmp_path: Path) -> None:
    facts = built(tmp_path, vectors, "flat")
    (tmp_path / "images.faiss").write_bytes(b"none of FAISS")
    from ssmke.data.shards import file_sha256

    lying = replace(facts, bytes=13, sha256=file_sha256(tmp_path / "images.faiss"))
    with pytest.raises(DataError, match="cannot be read by FAISS"):
        load(tmp_path, "images", lying, DIM)
