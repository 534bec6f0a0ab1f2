"""Where the time of one sample goes in `ssmke.data.stream`: each stage timed by itself on the same samples."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from ssmke.data.augmentation import render, view_box
from ssmke.data.captions import clean_caption
from ssmke.data.decode import EncodedImage
from ssmke.data.stream import PairBatches
from ssmke.data.tokens import tokenize

SAMPLES = 400


def profile(batches: PairBatches) -> str:
    """Markdown: microseconds a sample of every stage, and of whole batches."""
    shards, size = batches.shards, batches.image_size
    numbers = list(range(min(SAMPLES, shards.images)))
    samples = [shards.read(number) for number in numbers]
    pictures = [EncodedImage(sample.image) for sample in samples]
    pixels = [picture.pixels() for picture in pictures]
    views = [
        view_box(s.key, 0, batches.augmentation, *p.size) for s, p in zip(samples, pictures, strict=True)
    ]
    captions = [clean_caption(sample.captions[0]) for sample in samples]
    assert batches.targets is not None
    row = batches.targets.row
    stages: dict[str, float] = {
        "read (pread, JSON, CRC-32)": _each(shards.read, numbers),
        "decode": _each(lambda sample: EncodedImage(sample.image).pixels(), samples),
        "choose the view": _each(
            lambda i: view_box(samples[i].key, 1, batches.augmentation, *pictures[i].size), numbers
        ),
        "crop, resize, flip": _each(lambda i: render(pixels[i], views[i][0], views[i][1], size), numbers),
        "clean the caption": _each(lambda sample: clean_caption(sample.captions[0]), samples),
        "tokenise, 64 at a time": _each(
            lambda i: tokenize(batches.tokenizer, captions[i : i + 64], batches.max_tokens),
            range(0, len(captions) - 63, 64),
        )
        / 64,
        "cached target": _each(lambda i: row(i, 0), numbers),
    }
    whole = _each(batches.__getitem__, range(6)) / batches.plan.batch_size
    stages["all else (order, stacking)"] = whole - sum(stages.values())
    lines = ["| stage | microseconds a sample | share |", "| --- | --- | --- |"]
    lines += [f"| {name} | {1e6 * t:,.0f} | {t / whole:.0%} |" for name, t in stages.items()]
    lines.append(f"| a batch, per sample | {1e6 * whole:,.0f} | |")
    return "\n".join(lines) + "\n"


def _each(work: Callable[[Any], object], items: Sequence[Any]) -> float:
    """Seconds an item, the median of five rounds."""
    rounds = []
    for _ in range(5):
        begin = time.perf_counter()
        for item in items:
            work(item)
        rounds.append((time.perf_counter() - begin) / len(items))
    return statistics.median(rounds)
