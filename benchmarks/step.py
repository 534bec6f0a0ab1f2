"""The full-size training step, from the thesis' way to all that this project does, with open_clip's step beside it.

    python -m benchmarks.step [--batch 16] [--rounds 3] [--memory] [--out benchmarks/results/step-cpu.md]

Each round runs one optimiser step (forward, backward, AdamW) of every variant in turn, on the same pairs, so that a
drifting machine speed hits all alike; ratios are of medians. Each variant adds one thing to the one before it:

- thesis: teacher in every step, captions padded to 64, shared block at all tokens, losses by plain autograd, eager;
- teacher in every step, captions packed, shared block at the [CLS];
- targets from the cache, a row read through the memory map for every image;
- fused losses: gradients made in the forward pass, in blocks;
- compiled blocks;
- all of it in bf16 (on a CPU that has no matrix products in bf16 this is slower, and says so).

Weights are random: they do not change the time. Lengths are drawn like captions' (13 tokens on average). Operations
are those of the arithmetic of `ssmke.models.shapes`, real tokens only; open_clip's are counted by torch. ``--memory``
also runs every variant in a process of its own and reports its peak; ``--profile`` shows instead where the time of our
step and of open_clip's goes. On a GPU the table is in bf16 (the thesis ran fp16), and a micro-batch of 512 is a better
choice.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.machine import copy_ceiling, describe, product_ceiling, publish, synchronise
from benchmarks.open_clip_step import MODEL, OpenClipStep
from benchmarks.thesis import original_arithmetic
from ssmke.cost.efficiency.flops import per_pair
from ssmke.data.augmentation import AugmentationConfig
from ssmke.data.batch import Batch
from ssmke.data.packing import pack
from ssmke.models.image_encoders import ImageEncoderConfig
from ssmke.models.shapes import shapes_of
from ssmke.models.student import SSMKE, StudentConfig
from ssmke.models.teachers import Teacher, TeacherConfig, build_teacher
from ssmke.models.text_encoders import TextEncoderConfig
from ssmke.objectives.pretraining import LossConfig, SSMKEPretraining
from ssmke.targets.cache import CacheIdentity, TargetCache
from ssmke.training import ds_config
from ssmke.training.compute import DTYPES, student_blocks, vision_blocks
from ssmke.training.engine import Engine
from ssmke.training.launch import stand_alone
from ssmke.training.loop import with_targets
from ssmke.training.optimizer import OptimConfig, Schedule

IMAGES, BANK = 512, 65_536


@dataclass(frozen=True)
class Variant:
    """One way to compute the step of S-SMKE."""

    name: str
    online: bool = False
    packed: bool = True
    whole_block: bool = False
    plain_losses: bool = False
    compiled: bool = False
    dtype: str = "fp32"


def variants(dtype: str) -> list[Variant]:
    """From the thesis' way to ours in ``dtype``; on a CPU in fp32, then in bf16."""
    found = [
        Variant(
            "thesis: online, padded, whole block",
            online=True,
            packed=False,
            whole_block=True,
            plain_losses=True,
        ),
        Variant("online, packed, [CLS] only", online=True, plain_losses=True),
        Variant("cached", plain_losses=True),
        Variant("cached, fused losses"),
        Variant("cached, fused losses, compiled", compiled=True),
    ]
    found = [Variant(**{**vars(each), "dtype": dtype}) for each in found]
    if dtype == "fp32":
        found.append(Variant("all of it in bf16", compiled=True, dtype="bf16"))
    return found


def caption_lengths(size: int) -> list[int]:
    """8 to 22 tokens, 13 on average."""
    generator = torch.Generator().manual_seed(0)
    return (
        (8 + torch.empty(size).exponential_(1 / 5, generator=generator).round().clamp(0, 14)).long().tolist()
    )


def caption_batch(size: int, *, packed: bool) -> Batch:
    """``size`` pairs with random pixels and captions, packed or padded to 64."""
    generator = torch.Generator().manual_seed(0)
    lengths = caption_lengths(size)
    width = max(lengths) if packed else 64
    return Batch(
        images=torch.randint(0, 256, (size, 3, 224, 224), generator=generator, dtype=torch.uint8),
        ids=torch.randint(1000, 30_000, (size, width), generator=generator),
        mask=torch.arange(width) < torch.tensor(lengths)[:, None],
        image_ids=torch.arange(size),
        packing=(pack(lengths, width, 64),) if packed else (),
    )


class Student:
    """The full-size student (117.2M parameters) and its teacher in one number format, under ZeRO-2, one process."""

    def __init__(self, batch_size: int, dtype: str, folder: Path) -> None:
        self.teacher = build_teacher(TeacherConfig(weights="none"), quiet=True)
        self.engine = _engine(batch_size, dtype, self.teacher.dim)
        self.teacher.to(self.engine.device, DTYPES[dtype])
        self.blocks = [*student_blocks(self.engine.module.student), *vision_blocks(self.teacher.network)]
        self.targets = _cache_of(self.teacher, folder / f"{dtype}.npy")
        self._step = 0

    def seconds(self, variant: Variant, batch_size: int) -> float:
        """Seconds of one optimiser step, targets included."""
        batch = caption_batch(batch_size, packed=variant.packed)
        with (
            _compiled(self.blocks, on=variant.compiled),
            original_arithmetic(
                self.engine.module, whole_block=variant.whole_block, plain_losses=variant.plain_losses
            ),
        ):
            begin = time.perf_counter()
            moved = batch.to(self.engine.device)
            if not variant.online:
                rows = self.targets.rows(np.arange(len(batch)) * 7 % IMAGES)
                moved.targets = torch.from_numpy(rows).to(self.engine.device)
            self.engine.step(with_targets(moved, self.teacher if variant.online else None), self._step)
            synchronise(self.engine.device)
            self._step += 1
            return time.perf_counter() - begin

    def flops_per_pair(self, batch_size: int, *, online: bool) -> float:
        """Operations of a pair that the result needs: real tokens, shared block at the [CLS]."""
        module, tokens = self.engine.module, statistics.mean(caption_lengths(batch_size))
        shapes = shapes_of(
            module,
            self.teacher,
            distillation=True,
            online_teacher=online,
            max_tokens=64,
            batch_size=batch_size,
        )
        return per_pair(shapes, tokens).total


@contextmanager
def _compiled(blocks: Sequence[nn.Module], *, on: bool) -> Iterator[None]:
    """Blocks that are called compiled inside; what was compiled once is kept for the next time."""
    for block in blocks:
        block._compiled_call_impl = _compile_once(block) if on else None
    yield
    for block in blocks:
        block._compiled_call_impl = None


@cache
def _compile_once(block: nn.Module) -> Callable[..., object]:
    compiled: Callable[..., object] = torch.compile(block._call_impl)
    return compiled


def _engine(batch_size: int, dtype: str, target_dim: int) -> Engine:
    student = SSMKE(
        StudentConfig(
            image=ImageEncoderConfig(weights="none"),
            text=TextEncoderConfig(weights="none"),
            prediction_dim=target_dim,
        ),
        quiet=True,
    )
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", 0) if cuda else torch.device("cpu")
    path = Path(__file__).parents[1] / "ds_configs" / "zero2.json"
    document = ds_config.load(path) | {"bf16": {"enabled": dtype == "bf16"}}
    config = ds_config.resolve(document, path, batch_size=batch_size, world_size=1, cuda=cuda)
    optim = OptimConfig(batch_size=batch_size)
    module = SSMKEPretraining(student.to(device), LossConfig(bank_size=BANK), device)
    engine = Engine(module, config, optim, Schedule(optim, 1_000_000))
    assert module.bank is not None
    generator = torch.Generator().manual_seed(1)
    rows = nn.functional.normalize(torch.randn(BANK, target_dim, generator=generator), dim=1)
    module.bank.push(rows.to(device), torch.arange(BANK, device=device) + 10**6)
    return engine


def _cache_of(teacher: Teacher, path: Path) -> TargetCache:
    """A cache of random targets of the teacher's width, on disk."""
    rows = np.random.default_rng(0).standard_normal((IMAGES, 1, teacher.dim)).astype(np.float16)
    np.save(path, rows)
    return TargetCache(CacheIdentity.of(teacher.describe(), 224, 1, AugmentationConfig()), [path], [0])


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    dtype: str
    seconds: list[float]
    flops: float
    """Of a pair."""

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return statistics.median(self.seconds)


def measure(batch_size: int, rounds: int) -> list[Row]:
    """Every variant and open_clip's step, ``rounds`` of each after two that warm up and compile."""
    main = "bf16" if torch.cuda.is_available() else "fp32"
    chosen = variants(main)
    dtypes = list(dict.fromkeys(each.dtype for each in chosen))
    with tempfile.TemporaryDirectory() as folder:
        students = {dtype: Student(batch_size, dtype, Path(folder)) for dtype in dtypes}
        device = students[main].engine.device
        peer = OpenClipStep(device)
        runs: list[tuple[Row, Callable[[], float]]] = [
            (
                Row(each.name, each.dtype, [], student.flops_per_pair(batch_size, online=each.online)),
                partial(student.seconds, each, batch_size),
            )
            for each in chosen
            for student in (students[each.dtype],)
        ]
        runs += [
            (
                Row(f"open_clip {MODEL}", dtype, [], peer.flops_per_pair()),
                partial(_timed, peer, batch_size, dtype),
            )
            for dtype in dtypes
        ]
        for number in range(rounds + 2):
            for row, run in runs:
                taken = run()
                print(
                    f"round {number - 1}: {row.name}, {row.dtype}: {taken:.2f} s", file=sys.stderr, flush=True
                )
                if number > 1:
                    row.seconds.append(taken)
    return [row for row, _ in runs]


KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "linear", "baddbmm", "convolution", "mkldnn", "onednn"),
    "attention": ("attention", "flash"),
    "norms, activations": ("norm", "gelu", "softmax", "cpp_fused", "compiledfx"),
    "optimiser": ("adam", "optimizer", "foreach"),
    "copies, casts, zeros": (
        "copy",
        "_to_copy",
        "cat",
        "zero",
        "fill",
        "clone",
        "contiguous",
        "index",
        "embedding",
    ),
}


def profile(batch_size: int) -> str:
    """Where a step's time goes, in ours (eager, cached, fused losses) and in open_clip's, by kind of operation."""
    dtype = "bf16" if torch.cuda.is_available() else "fp32"
    ours = next(each for each in variants(dtype) if each.name == "cached, fused losses")
    with tempfile.TemporaryDirectory() as folder:
        student, peer = Student(batch_size, dtype, Path(folder)), OpenClipStep(torch.device("cpu"))
        if torch.cuda.is_available():
            peer = OpenClipStep(torch.device("cuda", 0))
        runs: dict[str, Callable[[], float]] = {
            "ours": partial(student.seconds, ours, batch_size),
            f"open_clip {MODEL}": partial(_timed, peer, batch_size, dtype),
        }
        lines = ["| kind of operation, ms a step | " + " | ".join(runs) + " |", "| --- | --- | --- |"]
        found = {name: _by_kind(run) for name, run in runs.items()}
    for kind in (*KINDS, "other"):
        lines.append(f"| {kind} | " + " | ".join(f"{kinds[kind]:,.0f}" for kinds in found.values()) + " |")
    return "\n".join(lines) + "\n"


def _by_kind(run: Callable[[], float]) -> dict[str, float]:
    """Milliseconds of one step by kind, of the operations themselves without what they call."""
    run()
    with torch.profiler.profile() as profiler:
        run()
    kinds = dict.fromkeys((*KINDS, "other"), 0.0)
    for event in profiler.key_averages():
        name = event.key.lower()
        kind = next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "other")
        kinds[kind] += max(event.self_cpu_time_total, event.self_device_time_total) / 1e3
    return kinds


def _timed(peer: OpenClipStep, batch_size: int, dtype: str) -> float:
    images, texts = peer.batch(batch_size)
    synchronise(peer.device)
    begin = time.perf_counter()
    peer(images, texts, dtype)
    synchronise(peer.device)
    return time.perf_counter() - begin


def peak_memory(index: int, batch_size: int) -> float:
    """Bytes at the peak of two steps of a variant, or of open_clip's step after the last, in this process alone."""
    chosen = variants("bf16" if torch.cuda.is_available() else "fp32")
    dtypes = list(dict.fromkeys(each.dtype for each in chosen))
    with tempfile.TemporaryDirectory() as folder:
        if index < len(chosen):
            student = Student(batch_size, chosen[index].dtype, Path(folder))
            for _ in range(2):
                student.seconds(chosen[index], batch_size)
        else:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            peer = OpenClipStep(device)
            for _ in range(2):
                _timed(peer, batch_size, dtypes[index - len(chosen)])
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def _peaks(count: int, batch_size: int) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.step", "--batch", str(batch_size), "--peak-of"]
    outputs = [
        subprocess.run([*command, str(index)], capture_output=True, text=True, check=True).stdout
        for index in range(count)
    ]
    return [float(json.loads(output.splitlines()[-1])) for output in outputs]


def table(rows: Sequence[Row], batch_size: int, peaks: Sequence[float] | None) -> str:
    """Markdown of medians, ratios, the goals and the roofline."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ceilings = {
        dtype: product_ceiling(DTYPES[dtype], device) for dtype in dict.fromkeys(r.dtype for r in rows)
    }
    thesis = rows[0].median
    lines = [
        f"Full-size student (117.2M), batch {batch_size}, bank {BANK:,}; {describe()}; {len(rows[0].seconds)} rounds.",
        "",
        "| step | format | s (median, min-max) | pairs/s | over thesis | GFLOP a pair | GFLOP/s | of the ceiling |"
        + (" peak GB |" if peaks else ""),
        "| --- | --- | --- | --- | --- | --- | --- | --- |" + (" --- |" if peaks else ""),
    ]
    for number, row in enumerate(rows):
        rate = row.flops * batch_size / row.median
        cells = [
            row.name,
            row.dtype,
            f"{row.median:.2f} ({min(row.seconds):.2f}-{max(row.seconds):.2f})",
            f"{batch_size / row.median:.2f}",
            f"{thesis / row.median:.2f}x" if "open_clip" not in row.name else "",
            f"{row.flops / 1e9:.1f}",
            f"{rate / 1e9:,.0f}",
            f"{rate / ceilings[row.dtype]:.0%}",
            *([f"{peaks[number] / 1e9:.1f}"] if peaks else []),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    by_name = {(row.name, row.dtype): row for row in rows}
    online, cached, ours = rows[1], rows[2], rows[4]
    peer = by_name[f"open_clip {MODEL}", ours.dtype]
    per_flop = (ours.flops / ours.median) / (peer.flops / peer.median)
    lines += [
        "",
        f"Cached over online: {online.median / cached.median:.2f} (by arithmetic {online.flops / cached.flops:.2f}). "
        f"All of it over the thesis: {thesis / ours.median:.2f} in the same format. Per model FLOP over open_clip: "
        f"{per_flop:.2f} in {ours.dtype}.",
        "",
        "Roofline: matrix products bind. The ceiling is one product of 1,576 x 768 x 3,072, measured after the rounds: "
        + ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {dtype}" for dtype, rate in ceilings.items())
        + f"; copies move {copy_ceiling(device) / 1e9:.0f} GB/s. Operations are those that the result needs.",
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints the table; ``--out`` also writes it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="peak memory of each step, in its own process")
    parser.add_argument("--profile", action="store_true", help="instead: where the time of a step goes")
    parser.add_argument("--peak-of", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args(argv)
    import deepspeed

    stand_alone()
    deepspeed.init_distributed()
    torch.set_float32_matmul_precision("high")
    if options.peak_of is not None:
        print(json.dumps(peak_memory(options.peak_of, options.batch)))
        return 0
    if options.profile:
        print(profile(options.batch))
        return 0
    rows = measure(options.batch, options.rounds)
    text = table(rows, options.batch, _peaks(len(rows), options.batch) if options.memory else None)
    publish(text, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
