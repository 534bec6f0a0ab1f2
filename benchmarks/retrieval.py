"""Time of exact retrieval metrics: COCO 5K test in size, random embeddings.

    python -m benchmarks.retrieval [--images 5000 --captions 25010 --dim 768]

Everything that `ssmke evaluate retrieval` computes once the embeddings are there: the full scores in both
directions, and the 5 x 5 rounds of the fold median rank. The float32 line is what the float64 arithmetic is
paid for with: the bare product, without counting anything.
"""

from __future__ import annotations

import argparse
import platform
import resource
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from rich.console import Console
from rich.table import Table

from ssmke.evaluation.retrieval import five_fold_1k_median_rank, retrieval_metrics, retrieval_table

T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--captions", type=int, default=25010)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    generator = torch.Generator().manual_seed(0)
    image = torch.randn(args.images, args.dim, generator=generator).to(args.device)
    text = torch.randn(args.captions, args.dim, generator=generator).to(args.device)
    owner = (torch.arange(args.captions) % args.images).to(args.device)

    table = Table(title=f"{args.images:,} images x {args.captions:,} captions x {args.dim}")
    for column in ("what", "seconds", "CPU seconds", "peak memory above the inputs"):
        table.add_column(column, justify="left" if column == "what" else "right")

    def timed(what: str, run: Callable[[], T]) -> T:
        before, wall, cpu = _peak_mib(), time.perf_counter(), time.process_time()
        result = run()
        seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
        table.add_row(what, f"{seconds:.2f}", f"{cpu_seconds:.2f}", f"{_peak_mib() - before:,.0f} MiB")
        return result

    def float32_product() -> float:
        return sum(float((rows @ text.T).sum()) for rows in image.split(160))

    metrics = timed("all metrics", lambda: retrieval_metrics(image, text, owner))
    timed("  of these, fold median rank", lambda: five_fold_1k_median_rank(image, text, owner))
    timed("float32 product alone", float32_product)

    console = Console()
    console.print(retrieval_table(metrics, title="Random embeddings: chance, both ways"))
    console.print(table)
    console.print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {args.device}"
    )


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
