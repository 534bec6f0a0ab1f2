"""Feeding speed: our stream beside the pipeline that a user would write, on the same photos, in one run.

    python -m benchmarks.data [--photos DIR] [--images 2000] [--rounds 5] [--out benchmarks/results/data.md]

From JPEG shards (short side 256) to batches of 224-pixel uint8 tensors with token ids and a cached 768-wide target.
Equal augmentation on all sides: random resized crop of 90-100 % of the area, bicubic with antialiasing, flip 0.5.

- reference: webdataset (shuffle, decode to PIL), torchvision v2 on PIL images, the tokenizer called once a sample and
  padded to 64, the target as an .npy in the tar.
- reference, tensors: the same, but the image becomes a uint8 tensor before the v2 transforms, as their documentation
  recommends.
- ssmke: `ssmke.data.stream`, full shuffle by index, targets from the memory map.

"One core" runs everything in this process, pinned to one core; "2 workers" is a DataLoader with two worker processes.
Rounds alternate between the pipelines, so that a machine whose speed drifts hits all alike; ratios are of medians.
Without --photos the images are made of noise with the spectrum of photos; with it, the JPEGs of that folder are
resized. --profile adds where the time of one sample of ours goes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.feed_profile import profile
from benchmarks.machine import processor, publish
from ssmke.data.augmentation import AugmentationConfig
from ssmke.data.dataset import ImageTextShards
from ssmke.data.manifest import Manifest, Split
from ssmke.data.order import EpochOrder
from ssmke.data.shards import Sample, write_shard
from ssmke.data.stream import BatchStream, PairBatches, StreamConfig, StreamPlan
from ssmke.models.text_encoders import TextEncoderConfig, load_tokenizer
from ssmke.targets.cache import CacheIdentity, TargetCache

SIZE, BATCH, WIDTH, SHARD = 224, 64, 768, 500
PIPELINES = ("reference", "reference, tensors", "ssmke")
WORDS = (
    "a",
    "the",
    "red",
    "of",
    "on",
    "two",
    "circle",
    "square",
    "blue",
    "green",
    "left",
    "below",
    "small",
    "large",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints the table; ``--out`` also writes it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, default=None)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        samples, kind = photos(options.photos, options.images), "noise with the spectrum of photos"
        if options.photos is not None:
            kind = "photos"
        feed = Feed(Path(folder), samples)
        one = measure(feed, 0, options.rounds)
        two = measure(feed, 2, options.rounds)
        text = table(one, two, feed, kind)
        if options.profile:
            text += "\n" + profile(feed.batches())
    publish(text, options.out)
    return 0


def photos(folder: Path | None, count: int) -> list[tuple[bytes, str]]:
    """``count`` JPEGs of short side 256 with captions of 8 to 16 words."""
    rng = np.random.default_rng(0)
    files = [] if folder is None else sorted(folder.glob("*.jpg"))[:count]
    made = []
    for number in range(len(files) or count):
        if files:
            with Image.open(files[number]) as opened:
                image = opened.convert("RGB").resize((341, 256), Image.Resampling.BICUBIC)
        else:
            image = _noise(rng)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=92)
        made.append((buffer.getvalue(), " ".join(rng.choice(WORDS, rng.integers(8, 17)))))
    return made


def _noise(rng: np.random.Generator) -> Image.Image:
    """Noise whose amplitude falls with frequency, as it does in photos, [256, 341, 3]."""
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(341)[None])
    frequency[0, 0] = 1
    spectrum = rng.standard_normal((3, 256, 171)) + 1j * rng.standard_normal((3, 256, 171))
    grey = np.fft.irfft2(spectrum / frequency**1.1, s=(256, 341))  # [3, 256, 341]
    grey = 0.85 * grey[:1] + 0.3 * grey
    pixels = 128 + 55 * grey / grey.std()
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


class Feed:
    """The same samples in both layouts, with targets for both."""

    def __init__(self, folder: Path, samples: list[tuple[bytes, str]]) -> None:
        self.images = len(samples)
        self.bytes = statistics.mean(len(image) for image, _ in samples)
        self.tokenizer = load_tokenizer(TextEncoderConfig(weights="package:scenes_text_encoder"))
        self.ours, self.theirs = folder / "ssmke", folder / "webdataset"
        self.ours.mkdir()
        self.theirs.mkdir()
        targets = np.random.default_rng(1).standard_normal((len(samples), 1, WIDTH)).astype(np.float16)
        self._rows = folder / "rows.npy"
        np.save(self._rows, targets)
        shards = [range(first, min(first + SHARD, len(samples))) for first in range(0, len(samples), SHARD)]
        infos = []
        for number, part in enumerate(shards):
            rows = [Sample(f"{i:08d}", samples[i][0], (samples[i][1],), "bench") for i in part]
            infos.append(write_shard(self.ours / f"train-{number:05d}.tar", rows, "train"))
            self._write_reference(number, [(i, *samples[i], targets[i, 0]) for i in part])
        Manifest("bench", {"fingerprint": "bench"}, {"train": Split(tuple(infos))}).save(self.ours)

    def _write_reference(self, number: int, rows: list[tuple[int, bytes, str, Any]]) -> None:
        import webdataset as wds

        with wds.TarWriter(str(self.theirs / f"{number:05d}.tar")) as writer:
            for i, image, caption, target in rows:
                record = json.dumps({"captions": [caption]}).encode()
                writer.write({"__key__": f"{i:08d}", "jpg": image, "json": record, "npy": target})

    def batches(self) -> PairBatches:
        """Our map from step to batch."""
        shards = ImageTextShards.open([self.ours], "train")
        plan = StreamPlan(EpochOrder.once(shards.pairs, 0), BATCH, 1000)
        identity = CacheIdentity.of(
            {"name": "bench", "output": "cls", "dim": WIDTH}, SIZE, 1, AugmentationConfig()
        )
        cache = TargetCache(identity, [self._rows], [0])
        return PairBatches(shards, plan, self.tokenizer, 64, SIZE, AugmentationConfig(), cache)

    def start(self, pipeline: str, workers: int) -> Iterator[Any]:
        """Endless batches of one of `PIPELINES`."""
        if pipeline == "ssmke":
            return iter(BatchStream(self.batches(), StreamConfig(workers=workers), 0, pin=False))
        return iter(reference(self, workers, tensors=pipeline.endswith("tensors")))


def reference(feed: Feed, workers: int, *, tensors: bool) -> DataLoader[Any]:
    """What a user would write with webdataset, torchvision and transformers."""
    import webdataset as wds
    from torchvision.transforms import v2

    crop = v2.RandomResizedCrop(SIZE, scale=(0.9, 1.0), interpolation=v2.InterpolationMode.BICUBIC)
    steps = [crop, v2.RandomHorizontalFlip()]
    transform = v2.Compose([v2.ToImage(), *steps] if tensors else [*steps, v2.ToImage()])

    def text(record: dict[str, Any]) -> Any:
        encoded = feed.tokenizer(
            record["captions"][0],
            padding="max_length",
            truncation=True,
            max_length=64,
            return_tensors="pt",
        )
        return encoded["input_ids"][0], encoded["attention_mask"][0]

    urls = [str(path) for path in sorted(feed.theirs.glob("*.tar"))]
    dataset = (
        wds.WebDataset(urls, shardshuffle=len(urls), resampled=True, nodesplitter=wds.split_by_node)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg", "json", "npy")
        .map_tuple(transform, text, torch.from_numpy)
        .batched(BATCH)
    )
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None
    )
    return loader


def measure(feed: Feed, workers: int, rounds: int) -> dict[str, list[float]]:
    """Samples a second of every pipeline, ``rounds`` of each in turn after a warm-up."""
    before = os.sched_getaffinity(0)
    if not workers:
        os.sched_setaffinity(0, {min(before)})
    try:
        speeds: dict[str, list[float]] = {name: [] for name in PIPELINES}
        for number in range(rounds + 1):
            for name in PIPELINES:
                speed = _speed(lambda name=name: feed.start(name, workers), feed.images // BATCH)  # type: ignore[misc]
                if number:
                    speeds[name].append(speed)
        return speeds
    finally:
        os.sched_setaffinity(0, before)


def _speed(start: Callable[[], Iterator[Any]], batches: int) -> float:
    iterator = start()
    for _ in range(8):  # shuffle buffers fill, workers start
        next(iterator)
    begin = time.perf_counter()
    for _ in range(batches):
        next(iterator)
    return batches * BATCH / (time.perf_counter() - begin)


def table(one: dict[str, list[float]], two: dict[str, list[float]], feed: Feed, kind: str) -> str:
    """Markdown of medians, ratios and the machine."""
    cores = len(os.sched_getaffinity(0))
    rounds = len(one[PIPELINES[0]])
    lines = [
        f"{feed.images:,} JPEGs of 341 x 256 pixels ({kind}), {feed.bytes / 1000:.0f} kB on average, to {SIZE} pixels; "
        f"batches of {BATCH}; {cores} cores ({processor()}), torch {torch.__version__}, {time.strftime('%Y-%m-%d')}; "
        f"{rounds} rounds in turn, median (min-max).",
        "",
        "| pipeline | samples/s, one core | ours is | samples/s, 2 workers | ours is | 2 workers / one core |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    median = statistics.median
    for name in PIPELINES:
        cells = [name]
        for speeds in (one, two):
            here = speeds[name]
            cells.append(f"{median(here):,.0f} ({min(here):,.0f}-{max(here):,.0f})")
            cells.append(f"{median(speeds['ssmke']) / median(here):.2f}x" if name != "ssmke" else "")
        cells.append(f"{median(two[name]) / median(one[name]):.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
