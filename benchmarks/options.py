"""What the options that change the recipe save: patch dropping, smaller images first, frozen lower blocks.

    python -m benchmarks.options [--recipe ssmke-base] [--batch 16] [--rounds 5] [--out FILE.md]

Each round runs one step (forward, backward, AdamW) of every variant in turn, on the same pairs and with the same
weights, in fp32 on a CPU and bf16 on a GPU, so that a drifting machine speed hits all alike; ratios are of medians.
Targets come with the batch, as from the cache. A curriculum lasts for `SHARE` of a run, the rest is the plain step;
"over the run" is the mean of both. Weights are random: they do not change the time.

What an option costs in recall is another measurement: benchmarks/results/options-cpu.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from benchmarks.machine import describe, product_ceiling, publish, synchronise
from ssmke.cost.efficiency.flops import per_pair
from ssmke.data.batch import Batch
from ssmke.data.curriculum import CurriculumConfig, kept_patches
from ssmke.data.packing import pack
from ssmke.models.shapes import shapes_of
from ssmke.models.student import SSMKE
from ssmke.objectives.pretraining import SSMKEPretraining
from ssmke.recipes import Recipe, named
from ssmke.training.optimizer import build_optimizer, parameter_groups

SHARE = 0.8
TARGET_DIM = 768


@dataclass
class Variant:
    """One option, and the seconds of its steps while it lasts."""

    name: str
    curriculum: CurriculumConfig
    freeze: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds of a step while the option lasts."""
        return statistics.median(self.seconds)


def variants(size: int, patch: int, blocks: int) -> list[Variant]:
    """The plain step and each option alone, for images of ``size`` pixels and encoders of ``blocks`` blocks."""
    whole = CurriculumConfig()
    grid = size // patch
    smaller = [side * patch for side in (grid // 2, 3 * grid // 4)]
    return [
        Variant("plain", whole),
        *(
            Variant(f"{drop:.0%} of the patches dropped", CurriculumConfig(None, drop, SHARE))
            for drop in (0.5, 0.75)
        ),
        *(Variant(f"{side} of {size} pixels", CurriculumConfig(side, 0.0, SHARE)) for side in smaller),
        *(
            Variant(f"lower {count} blocks and layers frozen", whole, count)
            for count in dict.fromkeys((max(1, blocks // 3), max(1, 2 * blocks // 3)))
        ),
    ]


class Bench:
    """One student whose step is timed with each option."""

    def __init__(self, recipe: Recipe, pairs: int) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        torch.manual_seed(0)
        model = replace(recipe.model, prediction_dim=TARGET_DIM)
        model = replace(model, image=replace(model.image, weights="none"))
        if model.text.weights == "hub":
            model = replace(model, text=replace(model.text, weights="none"))
        student = SSMKE(model, quiet=True)
        loss = replace(recipe.loss, bank="fifo", bank_size=4096)
        self.module = SSMKEPretraining(student, loss, self.device).to(self.device, self.dtype)
        assert self.module.bank is not None
        rows = nn.functional.normalize(torch.randn(4096, TARGET_DIM), dim=1)
        self.module.bank.push(rows.to(self.device), torch.arange(4096, device=self.device) + 10**6)
        self.student, self.pairs, self.max_tokens = student, pairs, model.text.max_tokens
        self.stacks = [list(getattr(student.image_encoder.backbone, "blocks")), _layers(student)]  # noqa: B009
        self.optimizer = build_optimizer(
            parameter_groups(self.module, recipe.optim),
            recipe.optim,
            cuda=self.device.type == "cuda",
            offload=False,
        )
        self.lengths = (8 + torch.arange(pairs) % 11).tolist()  # 13 tokens on average

    def batch(self, curriculum: CurriculumConfig) -> Batch:
        """Random pairs as the first part of a curriculum shows them."""
        encoder = self.student.image_encoder
        side = curriculum.phases(encoder.image_size)[0].side
        width, pairs = max(self.lengths), self.pairs
        generator = torch.Generator().manual_seed(0)
        kept = None
        if curriculum.patch_drop:
            assert encoder.patch_size is not None
            patches = (side // encoder.patch_size) ** 2
            rows = [kept_patches(str(pair), 0, patches, curriculum.patch_drop) for pair in range(pairs)]
            kept = torch.stack([torch.from_numpy(row) for row in rows])
        return Batch(
            images=torch.randint(0, 256, (pairs, 3, side, side), generator=generator, dtype=torch.uint8),
            ids=torch.randint(5, self.student.text_encoder.vocab_size, (pairs, width), generator=generator),
            mask=torch.arange(width) < torch.tensor(self.lengths)[:, None],
            image_ids=torch.arange(pairs),
            targets=torch.randn(pairs, TARGET_DIM, generator=generator),
            packing=(pack(self.lengths, width, self.max_tokens),),
            kept=kept,
        )

    def freeze(self, count: int) -> None:
        """Leaves the first ``count`` blocks of both encoders, and all that is below them, out of training."""
        student = self.student
        for encoder, blocks in zip((student.image_encoder, student.text_encoder), self.stacks, strict=True):
            above = {id(p) for block in blocks[count:] for p in block.parameters()}
            for parameter in encoder.parameters():
                parameter.requires_grad_(not count or id(parameter) in above)

    def step(self, variant: Variant) -> float:
        """Seconds of one step."""
        self.freeze(variant.freeze)
        batch = self.batch(variant.curriculum).to(self.device)
        synchronise(self.device)
        begin = time.perf_counter()
        losses = self.module(batch)
        losses["loss"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)  # what has no gradient is not touched by the next step
        synchronise(self.device)
        return time.perf_counter() - begin

    def flops(self, variant: Variant, share: float) -> float:
        """Operations of a pair when the curriculum lasts for ``share`` of the steps."""
        self.freeze(variant.freeze)
        shapes = shapes_of(
            self.module,
            None,
            distillation=True,
            online_teacher=False,
            max_tokens=self.max_tokens,
            batch_size=self.pairs,
            curriculum=replace(variant.curriculum, share=share),
        )
        return per_pair(shapes, statistics.mean(self.lengths)).total


def _layers(student: SSMKE) -> list[nn.Module]:
    from ssmke.models.text_encoders import text_layers

    return text_layers(student.text_encoder.backbone)


def table(bench: Bench, rows: Sequence[Variant], recipe: str) -> str:
    """Markdown of both parts of a run, and of the roofline."""
    plain = rows[0].median
    lines = [
        f"`{recipe}`, batch {bench.pairs}, {str(bench.dtype).removeprefix('torch.')}; {describe()}; "
        f"{len(rows[0].seconds)} rounds.",
        "",
        f"| option | pairs/s while it lasts | over plain | GFLOP a pair | pairs/s over the run (share {SHARE}) "
        "| over plain | GFLOP a pair |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        share = SHARE if row.curriculum.active else 1.0
        mean = share * row.median + (1 - share) * plain
        lines.append(
            f"| {row.name} | {bench.pairs / row.median:.1f} | {plain / row.median:.2f}x "
            f"| {bench.flops(row, 1.0) / 1e9:.4g} | {bench.pairs / mean:.1f} | {plain / mean:.2f}x "
            f"| {bench.flops(row, share) / 1e9:.4g} |"
        )
    ceiling = product_ceiling(bench.dtype, bench.device)
    rate = bench.flops(rows[0], 1.0) * bench.pairs / plain
    lines += [
        "",
        f"Roofline: matrix products bind; one of 1,576 x 768 x 3,072 reaches {ceiling / 1e9:,.0f} GFLOP/s here, the "
        f"plain step {rate / 1e9:,.0f} ({rate / ceiling:.0%}).",
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints the table; ``--out`` also writes it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="ssmke-base")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args(argv)
    bench = Bench(named(options.recipe), options.batch)
    encoder = bench.student.image_encoder
    assert encoder.patch_size is not None
    rows = variants(encoder.image_size, encoder.patch_size, min(len(stack) for stack in bench.stacks))
    for number in range(options.rounds + 1):
        for row in rows:
            seconds = bench.step(row)
            if number:
                row.seconds.append(seconds)
    text = table(bench, rows, options.recipe)
    publish(text, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
