"""Step time of the full-size model: online teacher against cached targets, padded and unpadded captions.

    python -m benchmarks.step [--batch 8] [--rounds 3] [--out benchmarks/results/step.md]

Each round runs one optimiser step (forward, backward, AdamW) of every variant in turn, on the same batch, so that a
drifting machine speed hits all alike; ratios are of medians. Weights are random: they do not change the time. Text
lengths are drawn like captions' (13 tokens on average); "padded" is the thesis' way, always 64. What reading a cached
row costs is part of the cached variants: the rows are read through the memory map in each step.

Arithmetic to compare with (forward and backward of the student 3x its forward, the teacher forward only): online over
cached is 1.43 padded and 1.53 unpadded.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ssmke.data.augmentation import AugmentationConfig
from ssmke.data.batch import Batch
from ssmke.models.image_encoders import ImageEncoderConfig
from ssmke.models.student import SSMKE, StudentConfig
from ssmke.models.teachers import Teacher, TeacherConfig, build_teacher
from ssmke.models.text_encoders import TextEncoderConfig
from ssmke.objectives.pretraining import LossConfig, SSMKEPretraining
from ssmke.targets.cache import CacheIdentity, TargetCache
from ssmke.training import ds_config
from ssmke.training.engine import Engine
from ssmke.training.launch import stand_alone
from ssmke.training.loop import with_targets
from ssmke.training.optimizer import OptimConfig, Schedule

IMAGES = 512
VARIANTS = ("online, padded", "cached, padded", "online, unpadded", "cached, unpadded")


def caption_batch(size: int, padded: bool, vocabulary: int = 30_000) -> Batch:
    """``size`` pairs with random pixels and captions of 8 to 22 tokens, 13 on average."""
    generator = torch.Generator().manual_seed(0)
    lengths = (8 + torch.empty(size).exponential_(1 / 5, generator=generator).round().clamp(0, 14)).long()
    width = 64 if padded else int(lengths.max())
    return Batch(
        images=torch.randint(0, 256, (size, 3, 224, 224), generator=generator, dtype=torch.uint8),
        ids=torch.randint(1000, vocabulary, (size, width), generator=generator),
        mask=torch.arange(width) < lengths[:, None],
        image_ids=torch.arange(size),
    )


def cache_of(teacher: Teacher, folder: Path) -> TargetCache:
    """A cache of random targets of the teacher's width, on disk."""
    path = folder / "rows.npy"
    rows = np.random.default_rng(0).standard_normal((IMAGES, 1, teacher.dim)).astype(np.float16)
    np.save(path, rows)
    return TargetCache(CacheIdentity.of(teacher.describe(), 224, 1, AugmentationConfig()), [path], [0])


def step_seconds(
    engine: Engine, batch: Batch, teacher: Teacher | None, cache: TargetCache, step: int
) -> float:
    """Seconds of one optimiser step, targets included."""
    begin = time.perf_counter()
    moved = batch.to(engine.device)
    if teacher is None:
        images = np.arange(len(batch)) * 7 % IMAGES
        moved.targets = torch.from_numpy(cache.rows(images)).to(engine.device)
    engine.step(with_targets(moved, teacher), step)
    if engine.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def build(batch_size: int, teacher: Teacher) -> Engine:
    """The full-size student (117.2M parameters) under DeepSpeed, ZeRO-2, one process."""
    student = SSMKE(
        StudentConfig(
            image=ImageEncoderConfig(weights="none"),
            text=TextEncoderConfig(weights="none"),
            prediction_dim=teacher.dim,
        ),
        quiet=True,
    )
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", 0) if cuda else torch.device("cpu")
    path = Path(__file__).parents[1] / "ds_configs" / "zero2.json"
    config = ds_config.resolve(ds_config.load(path), path, batch_size=batch_size, world_size=1, cuda=cuda)
    optim = OptimConfig(batch_size=batch_size)
    module = SSMKEPretraining(student.to(device), LossConfig(bank_size=65_536), device)
    engine = Engine(module, config, optim, Schedule(optim, 1_000_000))
    assert module.bank is not None
    generator = torch.Generator().manual_seed(1)
    rows = torch.nn.functional.normalize(torch.randn(65_536, teacher.dim, generator=generator), dim=1)
    module.bank.push(rows.to(device), torch.arange(65_536, device=device) + 10**6)
    return engine


def measure(batch_size: int, rounds: int) -> dict[str, list[float]]:
    """Seconds per step of every variant, ``rounds`` of each, after one warm-up round."""
    teacher = build_teacher(TeacherConfig(weights="none"), quiet=True)
    engine = build(batch_size, teacher)
    teacher.to(engine.device)
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        cache = cache_of(teacher, Path(folder))
        for number in range(rounds + 1):
            for name in VARIANTS:
                batch = caption_batch(batch_size, padded=name.endswith(", padded"))
                online = teacher if name.startswith("online") else None
                taken = step_seconds(engine, batch, online, cache, number)
                if number > 0:
                    seconds[name].append(taken)
    return seconds


def table(seconds: dict[str, list[float]], batch_size: int) -> str:
    """Markdown of medians, ratios and the machine."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    lines = [
        f"Full-size student, batch {batch_size}, bank 65,536, {device}, {len(os.sched_getaffinity(0))} cores, "
        f"torch {torch.__version__}, {time.strftime('%Y-%m-%d')}; {len(seconds[VARIANTS[0]])} rounds.",
        "",
        "| variant | s / step (median, min-max) | pairs/s |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| {name} | {medians[name]:.2f} ({min(values):.2f}-{max(values):.2f}) | {batch_size / medians[name]:.2f} |"
        for name, values in seconds.items()
    ]
    padded, unpadded = (medians[f"online, {p}"] / medians[f"cached, {p}"] for p in ("padded", "unpadded"))
    whole = medians["online, padded"] / medians["cached, unpadded"]
    lines += [
        "",
        f"Online over cached: {padded:.2f} padded (arithmetic 1.43), {unpadded:.2f} unpadded (1.53). Online padded "
        f"(the thesis) over cached unpadded (ours): {whole:.2f}.",
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints the table; ``--out`` also writes it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args(argv)
    import deepspeed

    stand_alone()
    deepspeed.init_distributed()
    text = table(measure(options.batch, options.rounds), options.batch)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
