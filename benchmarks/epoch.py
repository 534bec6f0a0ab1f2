"""Start and resume of a long epoch, and memory over it: a million samples unless told otherwise.

    python -m benchmarks.epoch [--samples 1000000] [--batches 400] [--keep DIR] [--out benchmarks/results/epoch-cpu.md]

Writes shards of 1,000 small JPEGs (about 2.6 KB a sample with its captions: 2.6 GB for a million) to a temporary
folder, then times, each in a fresh process: opening the dataset, ordering an epoch, and the first batch of a run that
starts at step 0 and of one that is resumed in the middle of its second epoch. Memory is that of the process that feeds,
before and after ``--batches`` batches, when the index of every shard has been read. For comparison: how fast webdataset
reads the same tars from their beginning, which is what reaching the middle of an epoch costs without an index.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from benchmarks.machine import publish
from ssmke.data.augmentation import AugmentationConfig
from ssmke.data.dataset import ImageTextShards
from ssmke.data.manifest import Manifest, Split
from ssmke.data.order import EpochOrder, Source
from ssmke.data.parallel import run_jobs
from ssmke.data.shards import Sample, write_shard
from ssmke.data.stream import BatchStream, PairBatches, StreamConfig, StreamPlan
from ssmke.models.text_encoders import TextEncoderConfig, load_tokenizer

SHARD, BATCH, SIZE, READ = 1000, 256, 32, 20_000


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints the table; ``--out`` also writes it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--batches", type=int, default=400)
    parser.add_argument("--keep", type=Path, default=None, help="folder to write to once, and to use again")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() if options.keep is None else nullcontext(str(options.keep)) as folder:
        make(Path(folder), options.samples)
        fresh, resumed = (_fresh(start_up, folder, late, options.batches) for late in (False, True))
        text = table(fresh, resumed, options.samples, _fresh(read_through, folder))
    publish(text, options.out)
    return 0


def make(folder: Path, samples: int) -> None:
    """Shards of small JPEGs, unless they are there; two captions for every third image."""
    if (folder / "manifest.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(folder, first, min(SHARD, samples - first)) for first in range(0, samples, SHARD)]
    infos = run_jobs(_write, jobs, 2)
    Manifest("epoch", {"fingerprint": str(samples)}, {"train": Split(tuple(infos))}).save(folder)


def _write(job: tuple[Path, int, int]) -> Any:
    folder, first, count = job
    rng = np.random.default_rng(first)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(buffer, "JPEG", quality=50)
    captions = ("a large red circle left of two small blue squares", "two squares and a circle")
    rows = (
        Sample(f"{i:08d}", buffer.getvalue(), captions[: 2 if i % 3 == 0 else 1], "epoch")
        for i in range(first, first + count)
    )
    return write_shard(folder / f"train-{first // SHARD:05d}.tar", rows, "train")


def _fresh(function: Any, *arguments: Any) -> dict[str, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result: dict[str, float] = pool.apply(function, arguments)
        return result


def start_up(folder: str, resumed: bool, batches: int) -> dict[str, float]:
    """Seconds until the first batch, by part, and megabytes before and after ``batches`` batches."""
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(TextEncoderConfig(weights="package:scenes_text_encoder"))
    begin = time.perf_counter()
    shards = ImageTextShards.open([folder], "train")
    opened = time.perf_counter()
    order = EpochOrder([Source(shards.pairs)], 0, shards.first_pairs)
    plan = StreamPlan(order, BATCH, 3)
    data = PairBatches(shards, plan, tokenizer, 64, SIZE, AugmentationConfig())
    start = plan.steps_per_epoch * 3 // 2 if resumed else 0
    stream = iter(BatchStream(data, StreamConfig(workers=0), start, pin=False))
    next(stream)
    first = time.perf_counter()
    order.epoch(0)
    ordered = time.perf_counter() - first
    for index in range(len(shards.shards)):
        shards.read(shards.shards[index][2])
    process = psutil.Process()
    before, by_batch = process.memory_info().rss, []
    for _ in range(batches):
        next(stream)
        by_batch.append(process.memory_info().rss)
    return {
        "open": opened - begin,
        "order": ordered,
        "first batch": first - begin,
        "pairs": shards.pairs,
        "before": before / 1e6,
        "after": by_batch[-1] / 1e6,
        "most": max(by_batch) / 1e6,
    }


def read_through(folder: str) -> dict[str, float]:
    """Samples a second that webdataset reads from the beginning, nothing decoded but JSON."""
    import webdataset as wds

    urls = [str(path) for path in sorted(Path(folder).glob("*.tar"))]
    begin = time.perf_counter()
    for number, sample in enumerate(wds.WebDataset(urls, shardshuffle=False)):
        json.loads(sample["json"])
        if number == READ:
            break
    return {"speed": READ / (time.perf_counter() - begin)}


def table(fresh: dict[str, float], resumed: dict[str, float], samples: int, reading: dict[str, float]) -> str:
    """Markdown of both starts."""
    lines = [
        f"{samples:,} images, {fresh['pairs']:,.0f} pairs, {-(-samples // SHARD):,} shards; batches of {BATCH}; "
        f"torch {torch.__version__}, {time.strftime('%Y-%m-%d')}.",
        "",
        "| | from step 0 | in the middle of epoch 2 |",
        "| --- | --- | --- |",
    ]
    for name, key, form in (
        ("open the dataset, s", "open", ".2f"),
        ("order an epoch, s", "order", ".2f"),
        ("until the first batch is there, all in all, s", "first batch", ".2f"),
        ("memory when every index is read, MB", "before", ",.0f"),
        ("memory at the end, MB", "after", ",.0f"),
        ("most memory meanwhile, MB", "most", ",.0f"),
    ):
        lines.append(f"| {name} | {fresh[key]:{form}} | {resumed[key]:{form}} |")
    lines += [
        "",
        f"webdataset reads the same tars at {reading['speed']:,.0f} samples/s: reading up to the middle would take "
        f"{samples / 2 / reading['speed']:,.0f} s (derived).",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
