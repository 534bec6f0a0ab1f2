"""Search at 100,000 pictures: indexing speed beside the bare encoder's, and how long a query takes after encoding.

    python -m benchmarks.search --model DIR --photos DIR [--sample 1000 --count 100000 --out FILE]

Two parts, because 100,000 photos are not at hand everywhere, and would not all differ:

- indexing: `build_index` on a real sample of photos, beside the bare encoder on the same pictures, already decoded and
  prepared. The ratio of the two is what reading, decoding, thumbnails, files and FAISS cost. Rounds alternate.
- search: FAISS and the reading of what is shown, as `SearchIndex` does it, on ``--count`` vectors. They are drawn
  around the sample's own embeddings, with the covariance of what parts neighbours, so they lie as the encoder's do:
  random ones would have no neighbours, and FAISS would look better or worse than it is. Every query is another vector
  of that kind, one at a time; recall is against the exact answer.

A query's time counts from the embedding to the hits with their captions and thumbnails in hand.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

from benchmarks.machine import describe, publish
from ssmke.data.decode import EncodedImage
from ssmke.models.dual_encoder import DualEncoder, load_dual_encoder
from ssmke.search.build import IndexConfig, build_index, thumbnail
from ssmke.search.index import FORMAT, IndexManifest, SearchIndex
from ssmke.search.nearest import build
from ssmke.search.parts import FOLDER, Batch, PartWriter, Vectors, finished_parts, part_vectors
from ssmke.search.sources import Folder, Sources

BATCH = 64
QUERIES = 200


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--sample", type=int, default=1000)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()

    encoder = load_dual_encoder(args.model, torch.device(args.device))
    with tempfile.TemporaryDirectory() as scratch:
        sample = Path(scratch) / "sample"
        sample.mkdir()
        photos = sorted(args.photos.glob("*.jpg"))[: args.sample]
        for photo in photos:
            (sample / photo.name).symlink_to(photo.resolve())
        bare, indexed, embeddings = _indexing(encoder, sample, Path(scratch), args.rounds)
        lines = [
            f"{len(photos):,} photos and {args.count:,} vectors of {encoder.dim}; {describe()}, "
            f"{torch.get_num_threads()} thread(s) of torch; {args.rounds} rounds in turn, median (min-max).",
            "",
            "| indexing | pictures/s | share of the encoder's |",
            "| --- | --- | --- |",
            f"| the bare encoder, pictures in memory | {_spread(bare)} | |",
            f"| `build_index`: read, decode, prepare, embed, thumbnail, write, FAISS | {_spread(indexed)} | "
            f"{statistics.median(indexed) / statistics.median(bare):.0%} |",
            "",
            f"| search in {args.count:,} | built in | size | recall@10 | query, median | 95 % within | worst |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        crowd, queries = _crowd(embeddings, args.count)
        for kind in ("flat", "hnsw", "ivf"):
            lines.append(_search(Path(scratch) / kind, kind, crowd, queries, next(iter(photos))))
    command = (
        f"python -m benchmarks.search --model DIR --photos DIR --sample {args.sample} --count {args.count}"
    )
    lines += ["", f"`{command}`; the load of the machine was {os.getloadavg()[0]:.1f} at the end."]
    publish("\n".join(lines) + "\n", args.out)


def _indexing(
    encoder: DualEncoder, sample: Path, scratch: Path, rounds: int
) -> tuple[list[float], list[float], Vectors]:
    """Pictures a second of the bare encoder and of `build_index`, by round; the embeddings [n, D]."""
    prepared = [
        torch.from_numpy(
            np.ascontiguousarray(
                encoder.preprocess(Image.fromarray(EncodedImage(path.read_bytes()).pixels()))
            )
        )
        for path in sorted(sample.iterdir())
    ]
    batches = [torch.stack(prepared[i : i + BATCH]) for i in range(0, len(prepared), BATCH)]
    encoder.encode_image(batches[0])
    bare, indexed, embeddings = [], [], np.empty((0, encoder.dim), np.float32)
    for number in range(rounds):
        begin = time.perf_counter()
        embeddings = np.concatenate([encoder.encode_image(batch).numpy() for batch in batches])
        bare.append(len(prepared) / (time.perf_counter() - begin))
        begin = time.perf_counter()
        report = build_index(
            encoder, Sources([Folder(sample)]), scratch / f"index-{number}", IndexConfig(BATCH)
        )
        indexed.append(report.items / (time.perf_counter() - begin))
    return bare, indexed, embeddings


def _crowd(embeddings: Vectors, count: int) -> tuple[Vectors, Vectors]:
    """``count`` vectors and `QUERIES` more that lie as ``embeddings`` [n, D] do."""
    rng = np.random.default_rng(0)
    # What is between a picture and its nearest is the scale at which further pictures would lie.
    scores = embeddings @ embeddings.T
    np.fill_diagonal(scores, -1)
    apart = embeddings - embeddings[scores.argmax(axis=1)]
    covariance = np.cov(apart.T) / 2
    total = count + QUERIES
    noise = rng.multivariate_normal(np.zeros(embeddings.shape[1]), covariance, total)
    drawn = embeddings[rng.integers(len(embeddings), size=total)] + noise
    drawn = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    return drawn[:count], drawn[count:]


def _search(folder: Path, kind: str, crowd: Vectors, queries: Vectors, photo: Path) -> str:
    """A line of the table: an index of ``crowd``, with a real thumbnail and caption for every vector."""
    count, dim = crowd.shape
    (folder / FOLDER).mkdir(parents=True)
    with Image.open(photo) as image:
        (width, height), data = thumbnail(image.convert("RGB"), 320)
    for number, first in enumerate(range(0, count, 4096)):
        rows = crowd[first : first + 4096]
        items = [
            {
                "key": f"{first + i:06d}.jpg",
                "id": f"{first + i}",
                "source": 0,
                "member": f"{first + i:06d}.jpg",
            }
            | {"width": width, "height": height, "captions": ["four sheep in an enclosure with snow"]}
            for i in range(len(rows))
        ]
        writer = PartWriter(folder, number, first)
        none = np.empty((0, dim), np.float32)
        writer.add(Batch(first + len(rows), rows, none, items, [data] * len(rows), Counter()))
        writer.commit()
    parts = finished_parts(folder)
    begin = time.perf_counter()
    facts = build(
        folder,
        "images",
        lambda: (part_vectors(folder, part, "images", dim) for part in parts),
        count,
        dim,
        kind,
        psutil.virtual_memory().available,
        queries[: QUERIES // 2],
    )
    built = time.perf_counter() - begin
    IndexManifest(
        FORMAT, "", "", dim, ["photos"], "", asdict(facts), None, [asdict(part) for part in parts]
    ).save(folder)
    index = SearchIndex(folder)
    asked = queries[QUERIES // 2 :]  # not those that it was tuned with
    milliseconds, recalls = [], []
    exact = np.sort(asked @ crowd.T, axis=1)[:, -10:]  # [q, 10] scores
    for query, best in zip(asked, exact, strict=True):
        begin = time.perf_counter()
        (hits,) = index.images(query[None], 10)
        for hit in hits:
            index.thumbnail(hit.row)
        milliseconds.append(1000 * (time.perf_counter() - begin))
        recalls.append(np.mean([hit.score >= best[0] - 1e-5 for hit in hits]))
    size = (facts.bytes + facts.lists_bytes) / 1e6
    name = {
        "flat": "flat",
        "hnsw": f"hnsw, efSearch {facts.width}",
        "ivf": f"ivf on disk, nprobe {facts.width}",
    }[kind]
    return (
        f"| {name} | {built:.1f} s | {size:.0f} MB | {np.mean(recalls):.1%} | {np.median(milliseconds):.1f} ms | "
        f"{np.percentile(milliseconds, 95):.1f} ms | {max(milliseconds):.1f} ms |"
    )


def _spread(speeds: list[float]) -> str:
    return f"{statistics.median(speeds):,.1f} ({min(speeds):,.1f}-{max(speeds):,.1f})"


if __name__ == "__main__":
    main()
