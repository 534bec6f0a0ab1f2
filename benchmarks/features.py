"""Frozen towers: a training step that encodes, one with the images' features cached, one with both sides' cached.

    python -m benchmarks.features --shards data/scenes [--batch 128 --steps 10 --rounds 5 --out FILE]

Each round reads and trains ``--steps`` batches each way in turn (forward, backward, AdamW; one process, no data
workers), so that a drifting machine speed hits all alike. The model is that of scenes-tiny with both encoders frozen
and pooled: small encoders, so with larger ones the caches save more. All three train on the same pairs; the first shows
crops of the images, the other two the canonical view, and these must come to the same loss.

The second table gathers batches of 32,768 rows, 2,048 wide on each side, as `frozen-towers` reads them, from files of
random numbers that the page cache holds after the first batch.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import describe, publish
from ssmke.data.batch import Batches
from ssmke.data.features import FeatureBatches
from ssmke.data.order import EpochOrder
from ssmke.data.stream import PairBatches, StreamPlan
from ssmke.models.student import SSMKE
from ssmke.objectives.pretraining import SSMKEPretraining
from ssmke.recipes import Recipe, parse_recipe
from ssmke.targets.cache import CacheIdentity, TargetCache
from ssmke.training.prepare import open_shards, prepare_text, prepare_tokens

FLAGS = (
    "--model.image.frozen", "--model.text.frozen", "--model.pool", "cls+mean", "--targets.frozen-tokens",
    "--targets.frozen-text", "--loss.distillation", "none", "--loss.bank", "none",
)  # fmt: skip
LARGE, WIDTH, ROWS = 32_768, 2_048, 100_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", default="data/scenes")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    recipe = parse_recipe(
        ["--recipe", "scenes-tiny", "--data.make", "nothing", "--data.shards", args.shards, *FLAGS],
        "benchmark",
    )
    lines = [
        f"Batch {args.batch}, {args.steps} steps a round; {describe()}, {torch.get_num_threads()} thread(s) of torch; "
        f"{args.rounds} rounds in turn, median (min-max).",
        "",
        *training(recipe, args.batch, args.steps, args.rounds),
        "",
        *gathering(args.rounds),
    ]
    publish("\n".join(lines) + "\n", args.out)


def training(recipe: Recipe, batch: int, steps: int, rounds: int) -> list[str]:
    """Pairs a second of the three ways, and the loss of their last step."""
    shards = open_shards(recipe, print)
    torch.manual_seed(0)
    student = SSMKE(recipe.model)
    module = SSMKEPretraining(student, recipe.loss)
    tokens, texts = (
        prepare_tokens(recipe, shards, student, print),
        prepare_text(recipe, shards, student, print),
    )
    assert tokens is not None
    assert texts is not None
    plan = StreamPlan(EpochOrder.once(shards.pairs, 0), batch, 1)
    rest = student.tokenizer(), recipe.model.text.max_tokens, student.image_size, recipe.data.augmentation
    ways: dict[str, Batches] = {
        "both encoders run": PairBatches(shards, plan, *rest, packed_parts=1),
        "images cached": PairBatches(shards, plan, *rest, tokens=tokens, packed_parts=1),
        "images and captions cached": FeatureBatches(shards, plan, tokens, texts),
    }
    state = {name: value.clone() for name, value in module.state_dict().items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    losses: dict[str, float] = {}
    for number in range(rounds + 1):
        for name, batches in ways.items():
            module.load_state_dict(state)
            optimiser = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-3)
            begin = time.perf_counter()
            for step in range(steps):
                loss = module(batches[step])["loss"]
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - begin)
            losses[name] = float(loss.detach())
    first = statistics.median(seconds["both encoders run"])
    lines = ["| step | pairs/s | over the first | loss of the last step |", "| --- | --- | --- | --- |"]
    for name, found in seconds.items():
        rates = sorted(batch * steps / value for value in found)
        lines.append(
            f"| {name} | {statistics.median(rates):,.0f} ({rates[0]:,.0f}-{rates[-1]:,.0f}) | "
            f"{first / statistics.median(found):.1f}x | {losses[name]:.4f} |"
        )
    return lines


def gathering(rounds: int) -> list[str]:
    """Seconds to gather a batch of `LARGE` rows of each side."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.npy" for number in range(10)]
        for file in files:
            np.save(file, rng.standard_normal((ROWS // 10, 1, WIDTH), dtype=np.float32).astype(np.float16))
        firsts = list(range(0, ROWS, ROWS // 10))
        cache = TargetCache(CacheIdentity({"dim": WIDTH}, 0, 1, {}), files, firsts)
        seconds = []
        for _ in range(rounds + 1):
            numbers = rng.integers(0, ROWS, LARGE)
            begin = time.perf_counter()
            cache.rows(numbers)
            cache.rows(numbers[::-1].copy())
            seconds.append(time.perf_counter() - begin)
    found = sorted(seconds[1:])
    size = 2 * LARGE * WIDTH * 2
    return [
        "| gathered | seconds | GB/s | pairs/s |",
        "| --- | --- | --- | --- |",
        f"| 2 x {LARGE:,} x {WIDTH:,} fp16 | {statistics.median(found):.2f} ({found[0]:.2f}-{found[-1]:.2f}) | "
        f"{size / statistics.median(found) / 1e9:.1f} | {LARGE / statistics.median(found):,.0f} |",
    ]


if __name__ == "__main__":
    main()
