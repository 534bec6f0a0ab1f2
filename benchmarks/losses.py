"""Time and memory of the contrastive losses against batch and bank: ours, all logits at once, checkpoints, open_clip.

    python -m benchmarks.losses [--rounds 5] [--small] [--out benchmarks/results/losses-cpu.md]
    python -m benchmarks.losses --full [--batch 32768 --bank 65536]

Each round runs forward and backward of every variant in turn, on the same inputs, so that a drifting machine speed hits
all alike; ratios are of medians. Peak memory is the growth of the resident memory of a process of its own per variant
(Linux' high-water mark, inputs there; the matrix library's own buffers, some MiB, are in it); on CUDA the allocator's.
Variants: "all logits" is the plain formula under autograd, "checkpoint" the same in blocks of rows that are computed
again in the backward pass, "open_clip" its `ClipLoss` on normalised features (it masks nothing, so it does less).

The roofline is that of the matrix products: FLOP of the products that a variant makes (2 x rows x columns x width each)
over its time, against the measured ceiling of one product. What is missing to 100 % is exponentials, sums, masks and
the normalisation, which are bound by memory.

``--full`` runs all three losses of a step at the size of the goal once and reports the peak beside the accounting. That
takes about 53 TFLOP: ten minutes and more on one core.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.machine import describe, product_ceiling, publish, synchronise
from ssmke.objectives.contrast import image_text_contrast, normalise
from ssmke.objectives.cross_entropy import MAX_LOGITS, loss_bytes, waiting_bytes
from ssmke.objectives.distillation import contrastive_distillation

VARIANTS = {
    "contrast": ("ours", "all logits", "checkpoint", "open_clip"),
    "distillation": ("ours", "all logits", "checkpoint"),
}


@dataclass(frozen=True)
class Case:
    """One problem: a loss, its pairs, their width, and the rows of the bank (0 for the contrast)."""

    loss: str
    batch: int
    dim: int
    bank: int = 0

    @property
    def columns(self) -> int:
        """What a row meets."""
        return self.batch + self.bank

    @property
    def blocks(self) -> bool:
        """Whether the logits are more than are held at once."""
        held = MAX_LOGITS // 2 if self.loss == "contrast" else MAX_LOGITS
        return (1 if self.loss == "contrast" else 2) * self.batch * self.columns > held

    def flop(self, variant: str) -> int:
        """Of the matrix products that a variant makes, forward and backward."""
        product = 2 * self.batch * self.columns * self.dim
        # Each direction: logits and gradient of the rows, and of the columns where they are trained.
        direction = 3 if self.loss == "contrast" else 2
        if variant == "checkpoint":
            # It judges a direction alone, by MAX_LOGITS, and makes the logits of blocks again.
            direction += self.batch * self.columns > MAX_LOGITS
        if self.loss == "contrast" and variant == "ours":
            return product * (4 if self.blocks else 3)
        return product * direction * 2


CASES = (
    Case("contrast", 256, 768),
    Case("contrast", 1024, 768),
    Case("contrast", 4096, 768),
    Case("contrast", 1024, 3072),
    Case("contrast", 8192, 768),
    Case("distillation", 64, 768, 65_536),
    Case("distillation", 256, 768, 65_536),
    Case("distillation", 1024, 768, 65_536),
    Case("distillation", 256, 768, 8192),
)
SMALL = (
    Case("contrast", 256, 768),
    Case("contrast", 1024, 768),
    Case("distillation", 64, 768, 65_536),
    Case("distillation", 256, 768, 8192),
)


def all_logits(
    rows: Tensor, columns: Tensor, scale: Tensor, labels: Tensor, row_ids: Tensor, column_ids: Tensor
) -> Tensor:
    """Sum of the cross-entropies of rows [R, D] against columns [M, D], by autograd."""
    logits = scale * (rows @ columns.T)
    same_image = row_ids[:, None] == column_ids[None, :]
    own = labels[:, None] == torch.arange(columns.shape[0], device=labels.device)[None, :]
    return F.cross_entropy(logits.masked_fill(same_image & ~own, float("-inf")), labels, reduction="sum")


def checkpointed(
    rows: Tensor, columns: Tensor, scale: Tensor, labels: Tensor, row_ids: Tensor, column_ids: Tensor
) -> Tensor:
    """The same in blocks of rows; only the inputs of a block are kept."""
    size = max(1, MAX_LOGITS // columns.shape[0])
    if size >= rows.shape[0]:
        return all_logits(rows, columns, scale, labels, row_ids, column_ids)
    total = rows.new_zeros(())
    for part in torch.arange(rows.shape[0], device=rows.device).split(size):
        piece = slice(int(part[0]), int(part[-1]) + 1)
        arguments = (rows[piece], columns, scale, labels[piece], row_ids[piece], column_ids)
        total = total + checkpoint(all_logits, *arguments, use_reentrant=False)
    return total


def both_directions(
    direction: Callable[..., Tensor], rows: Sequence[Tensor], columns: Sequence[Tensor], scale: Tensor,
    ids: Tensor, column_ids: Tensor,
) -> Tensor:  # fmt: skip
    """Mean over both sets of rows, each against its columns."""
    labels = torch.arange(rows[0].shape[0], device=ids.device)
    sums = [direction(r, c, scale, labels, ids, column_ids) for r, c in zip(rows, columns, strict=True)]
    return (sums[0] + sums[1]) / (2 * rows[0].shape[0])


def problem(case: Case, device: torch.device) -> tuple[dict[str, Callable[[], Tensor]], list[Tensor]]:
    """The loss of every variant on the same inputs, and what they are differentiated by."""
    torch.manual_seed(0)
    image, text = (torch.randn(case.batch, case.dim, device=device, requires_grad=True) for _ in range(2))
    scale = torch.tensor([1 / 0.07], device=device, requires_grad=True)
    ids = torch.arange(case.batch, device=device)
    if case.loss == "contrast":

        def written_out(direction: Callable[..., Tensor]) -> Tensor:
            i, t = normalise(image), normalise(text)
            return both_directions(direction, (i, t), (t, i), scale, ids, ids)

        def open_clip() -> Tensor:
            loss: Tensor = ClipLoss()(normalise(image), normalise(text), scale)
            return loss

        return {
            "ours": lambda: image_text_contrast(image, text, scale, ids),
            "all logits": partial(written_out, all_logits),
            "checkpoint": partial(written_out, checkpointed),
            "open_clip": open_clip,
        }, [image, text, scale]
    targets = torch.randn(case.batch, case.dim, device=device)
    rows = torch.empty(case.bank, case.dim, dtype=torch.float16, device=device)
    for part in rows.split(1024):
        part.copy_(F.normalize(torch.randn(part.shape, device=device), dim=1))
    bank = (rows, torch.arange(case.bank, device=device) + 10**6)

    def against_the_bank(direction: Callable[..., Tensor]) -> Tensor:
        columns = torch.cat([normalise(targets), bank[0].float()])
        predictions = normalise(image), normalise(text)
        return both_directions(
            direction, predictions, (columns, columns), scale, ids, torch.cat([ids, bank[1]])
        )

    return {
        "ours": lambda: contrastive_distillation(image, text, targets, scale, ids, bank),
        "all logits": partial(against_the_bank, all_logits),
        "checkpoint": partial(against_the_bank, checkpointed),
    }, [image, text, scale]


def seconds_of(loss: Callable[[], Tensor], leaves: list[Tensor]) -> float:
    """Of one forward and backward pass."""
    device = leaves[0].device
    gc.collect()
    synchronise(device)
    begin = time.perf_counter()
    torch.autograd.grad(loss(), leaves)
    synchronise(device)
    return time.perf_counter() - begin


def peak(case: Case, variant: str, device: torch.device) -> int:
    """Most bytes beyond the inputs in this process; on a CPU right for a process that did nothing else before."""
    small, small_leaves = problem(Case(case.loss, 2, 8, 4 if case.bank else 0), device)
    # Libraries are loaded, threads started, the product's own buffers there.
    torch.autograd.grad(small[variant](), small_leaves)
    torch.randn(256, 768, device=device) @ torch.randn(768, 256, device=device)
    variants, leaves = problem(case, device)
    return peak_of(lambda: torch.autograd.grad(variants[variant](), leaves), device)


def peak_of(run: Callable[[], object], device: torch.device) -> int:
    """Most bytes that ``run`` needs beyond what is there before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - held
    # Not ru_maxrss: a child process starts with its parent's.
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = _resident("VmRSS")
    run()
    return _resident("VmHWM") - before


def _resident(what: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def peak_alone(case: Case, variant: str, device: torch.device) -> int:
    """`peak` in a process of its own, or on CUDA in this one."""
    if device.type == "cuda":
        return peak(case, variant, device)
    arguments = ["--peak", case.loss, variant, str(case.batch), str(case.dim), str(case.bank)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.losses", *arguments], check=True, capture_output=True, text=True
    )
    return int(done.stdout.split()[-1])


def accounted_bytes(case: Case, device: torch.device) -> int:
    """`loss_bytes` of ours."""
    return loss_bytes(
        case.batch, case.columns, case.dim, column_gradient=case.bank == 0, on_cpu=device.type == "cpu"
    )


def measure(case: Case, rounds: int, device: torch.device) -> list[str]:
    """Table rows of one case."""
    variants, leaves = problem(case, device)
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS[case.loss]}
    ceilings = []
    for number in range(rounds + 1):
        if number in (0, rounds):
            ceilings.append(product_ceiling(torch.float32, device))
        for name, taken in seconds.items():
            spent = seconds_of(variants[name], leaves)
            if number > 0:
                taken.append(spent)
    ceiling = statistics.median(ceilings)
    ours = statistics.median(seconds["ours"])
    rows = []
    for name, taken in seconds.items():
        middle, bytes_ = statistics.median(taken), peak_alone(case, name, device)
        reached = case.flop(name) / middle
        accounted = f" ({accounted_bytes(case, device) / 2**20:,.0f})" if name == "ours" else ""
        what = f"{case.loss}, {case.batch:,} x {case.columns:,} x {case.dim}"
        rows.append(
            f"| {what} | {name} | {middle * 1e3:,.0f} ({min(taken) * 1e3:,.0f}-{max(taken) * 1e3:,.0f}) | "
            f"{'' if name == 'ours' else f'{middle / ours:.2f}'} | {bytes_ / 2**20:,.0f}{accounted} | "
            f"{reached / 1e9:,.0f} of {ceiling / 1e9:,.0f} | {reached / ceiling:.0%} |"
        )
    return rows


def table(cases: Sequence[Case], rounds: int, device: torch.device) -> str:
    """Markdown of all cases."""
    lines = [
        f"Forward and backward of one loss in fp32, {MAX_LOGITS:,} logits held at once; {describe()}, "
        f"{torch.get_num_threads()} threads; {rounds} rounds in turn, median (min-max).",
        "",
        "| loss, pairs x columns x width | variant | ms | time / ours | peak MiB (accounted) | GFLOP/s of the products "
        "| of the ceiling |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in cases:
        rows = measure(case, rounds, device)
        print("\n".join(rows), file=sys.stderr, flush=True)
        lines += rows
    return "\n".join(lines) + "\n"


def levels(batch: int, bank: int) -> list[Case]:
    """The losses of a step of the full recipe."""
    return [
        Case("contrast", batch, 768),
        Case("contrast", batch, 3072),
        Case("distillation", batch, 768, bank),
    ]


def accounting(batch: int, bank: int, device: torch.device) -> tuple[str, int]:
    """What all losses of a step need on one device, as a table; and the peak beyond the inputs in bytes."""
    waiting = highest = 0
    lines = ["| bytes on one device | GB |", "| --- | --- |"]
    for case in levels(batch, bank):
        peak_here = accounted_bytes(case, device)
        highest = max(highest, waiting + peak_here)
        waiting += waiting_bytes(case.batch, case.columns, case.dim, column_gradient=case.bank == 0)
        logits = f"one copy of its logits: {2 * case.batch * case.columns * 4 / 1e9:.1f}"
        lines.append(f"| {case.loss} {case.dim}: peak of it alone | {peak_here / 1e9:.2f} ({logits}) |")
    highest = max(highest, 2 * waiting)
    outputs = 4 * batch * 2 * (768 + 3072 + 768)
    inputs = outputs + 4 * batch * 768 + 2 * bank * 768 + 8 * (batch + bank)
    states = 16 * 117_000_000
    lines += [
        f"| all losses of the step together, forward and backward | {highest / 1e9:.2f} |",
        f"| their inputs: outputs of the batch in fp32, targets, bank | {inputs / 1e9:.2f} |",
        f"| weights, gradients, AdamW of the student (117M x 16 bytes) | {states / 1e9:.2f} |",
        f"| left of 24 GB for the activations of a micro batch | {24 - (highest + inputs + states) / 1e9:.2f} |",
    ]
    return "\n".join(lines) + "\n", highest


def full(batch: int, bank: int, device: torch.device) -> str:
    """Runs the three losses of a step once; time, peak and finiteness."""
    small = [problem(Case(case.loss, 2, 8, 4 if case.bank else 0), device) for case in levels(2, 4)]
    for variants, leaves in small:
        torch.autograd.grad(variants["ours"](), leaves)
    problems = [problem(case, device) for case in levels(batch, bank)]
    every = [leaf for _, leaves in problems for leaf in leaves]
    found: list[bool] = []
    begin = time.perf_counter()

    def step() -> None:
        loss = torch.stack([variants["ours"]() for variants, _ in problems]).sum()
        gradients = torch.autograd.grad(loss, every)
        found.extend(bool(g.isfinite().all()) for g in gradients)

    taken = peak_of(step, device)
    seconds = time.perf_counter() - begin
    flop = sum(case.flop("ours") for case in levels(batch, bank))
    _, accounted = accounting(batch, bank, device)
    return (
        f"Run once at {batch:,} pairs, bank {bank:,}, both levels and distillation: {seconds:,.0f} s "
        f"({flop / 1e12:.1f} TFLOP of products, {flop / seconds / 1e9:,.0f} GFLOP/s, "
        f"{torch.get_num_threads()} threads), "
        f"measured peak beyond the inputs {taken / 1e9:.2f} GB, accounted {accounted / 1e9:.2f} GB; "
        f"{sum(found)} of {len(found)} gradients are finite. {describe()}.\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints the tables; ``--out`` also writes them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="four small cases")
    parser.add_argument("--full", action="store_true", help="run the goal's size once, instead of the table")
    parser.add_argument("--batch", type=int, default=32_768, help="pairs of --full and of the accounting")
    parser.add_argument("--bank", type=int, default=65_536, help="bank of --full and of the accounting")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--peak", nargs=5, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.peak is not None:
        loss, variant, batch, dim, bank = options.peak
        print(peak(Case(loss, int(batch), int(dim), int(bank)), variant, device))
        return 0
    if options.full:
        text = full(options.batch, options.bank, device)
    else:
        text = table(SMALL if options.small else CASES, options.rounds, device)
    size = f"Accounting for a global batch of {options.batch:,} on one device and a bank of {options.bank:,}:"
    text += f"\n{size}\n\n{accounting(options.batch, options.bank, device)[0]}"
    publish(text, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
