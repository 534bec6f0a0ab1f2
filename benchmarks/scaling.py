"""Memory, communication and step time by ZeRO stage: predicted beside measured on 1 and 2 CPU ranks, modelled beyond.

    python -m benchmarks.scaling [--micro-batch 4] [--steps 2] [--out benchmarks/results/scaling.md]

(a) Real ranks, one process each, train a student of half the width of ssmke-base under every shipped DeepSpeed JSON.
Allocated bytes are followed tensor by tensor in a step of their own; resident bytes are the kernel's high-water mark
over the timed steps, less what the process had before the model. (Pages of a bucket that nothing was written to are not
resident, so that may be far less.) On a CPU the number format is fp32, and host and device are one memory.
(b) The model of step time for 8, 64 and 512 GPUs on stated links.
(c) What binds the CPU step.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import copy_ceiling, describe, product_ceiling, publish

ROOT = Path(__file__).resolve().parents[1]
HALF = {"width": 384, "heads": 6, "depth": 6, "vocabulary": 30_522, "image": 224, "bank": 8192}


def shipped() -> dict[str, dict[str, Any]]:
    """The shipped JSONs by name, and the same without ZeRO."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "ds_configs").glob("*.json"))}
    without = {key: value for key, value in found["zero1"].items() if key != "zero_optimization"}
    return {"no ZeRO": without, **found}


def run(spec: dict[str, Any], ranks: int, timeout: float = 280) -> list[dict[str, Any]]:
    """Starts ``ranks`` processes of `benchmarks.scaling_rank` and gives what rank 0 wrote."""
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        path = Path(folder) / "spec.json"
        path.write_text(json.dumps(spec), encoding="utf-8")
        started = []
        for rank in range(ranks):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
            environment = {k: str(v) for k, v in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
            environment |= {"MASTER_PORT": str(port), "OMP_NUM_THREADS": str(spec["threads"])}
            log = (Path(folder) / f"rank{rank}.log").open("w")
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.scaling_rank", str(path)],
                    env=os.environ | environment,
                    cwd=ROOT,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
        try:
            codes = [process.wait(timeout) for process in started]
        finally:
            for process in started:
                process.kill()
        if any(codes):
            logs = "\n".join((Path(folder) / f"rank{rank}.log").read_text()[-3000:] for rank in range(ranks))
            raise RuntimeError(f"ranks left with {codes}:\n{logs}")
        found: list[dict[str, Any]] = json.loads(path.with_suffix(".out").read_text())
        return found


def measured_table(rows: list[dict[str, Any]]) -> list[str]:
    """Predicted beside measured."""
    lines = [
        "| config | ranks | allocated MB | predicted MB | error | resident MB | sent MB, counted | predicted | error | "
        "s / step |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    from ssmke.planning.communication import SENT, sent

    for row in rows:
        known = {kind: size for kind, size in row["counted"].items() if kind in SENT}
        counted, theory = sent(known, row["ranks"]), sent(row["traffic"], row["ranks"])
        lines.append(
            f"| {row['config']} | {row['ranks']} | {row['allocated'] / 1e6:.0f} | {row['predicted'] / 1e6:.0f} | "
            f"{row['predicted'] / row['allocated'] - 1:+.1%} | {row['resident'] / 1e6:.0f} | {counted / 1e6:.2f} | "
            f"{theory / 1e6:.2f} | {f'{theory / counted - 1:+.2%}' if counted else '-'} | {row['seconds']:.2f} |"
        )
    return lines


def modelled_table() -> list[str]:
    """ssmke-base on 8, 64 and 512 H100: seconds of a step and efficiency against one GPU, by stage and network."""
    from ssmke.cost.efficiency.devices import named as device
    from ssmke.cost.estimates.plan import MFU
    from ssmke.models.shapes import shapes_of_recipe
    from ssmke.planning.choose import configs
    from ssmke.planning.communication import communication
    from ssmke.planning.steptime import GB, Hardware, flops_of_pair, ring_rate, step_time
    from ssmke.planning.student import model_of
    from ssmke.recipes import named

    spec, recipe, micro = device("H100-SXM")[0], named("ssmke-base"), 512
    model = model_of(recipe, dtype="bf16", cuda=True, text_tokens=13.0)
    assert spec.bf16 is not None
    assert spec.bandwidth_gb_s is not None
    lines = [
        f"ssmke-base, bf16, {micro} pairs a GPU, H100-SXM, NVLink 4 inside nodes of 8, MFU {MFU.low:g}-{MFU.high:g}; "
        "modelled, not measured.",
        "",
        "| GPUs | config | network | sent MB / GPU | s / step | pairs/s | efficiency | binds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for gpus in (8, 64, 512):
        recipe.optim.batch_size = gpus * micro
        flops = flops_of_pair(shapes_of_recipe(recipe), 13.0, accumulation=1, checkpointing=False)
        zeros = configs(ROOT / "ds_configs", batch_size=gpus * micro, ranks=gpus, cuda=True)
        for name in ("zero1", "zero2", "zero3"):
            for network in ("ndr400", "hdr200", "ethernet100", "ethernet25") if gpus > 8 else ("-",):
                ring = ring_rate(gpus, "nvlink4", network if gpus > 8 else "ndr400")
                hardware = Hardware(spec.bf16 * 1e12, spec.bandwidth_gb_s * GB, ring)
                traffic = communication(model, zeros[name], micro_batch=micro, accumulation=1, ranks=gpus)
                time = step_time(model, zeros[name], traffic, hardware, flops=flops, pairs=micro, mfu=MFU)
                total, alone = time.total, time.compute.point
                lines.append(
                    f"| {gpus} | {name} | {network} | {traffic.sent / 1e6:.0f} | {total.low:.3f}-{total.high:.3f} | "
                    f"{gpus * micro / total.high:,.0f}-{gpus * micro / total.low:,.0f} | {alone / total.point:.0%} | "
                    f"{time.binds} |"
                )
    return lines


def roofline(rows: list[dict[str, Any]], threads: int) -> str:
    """What binds the step of one rank on this CPU."""
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    width = HALF["width"]
    ceiling = product_ceiling(torch.float32, device, inner=width, columns=4 * width)
    copy = copy_ceiling(device, 128)
    row = next(row for row in rows if row["ranks"] == 1 and row["config"] == "zero2")
    reached = row["flops"] / row["seconds"]
    # AdamW in fp32: parameter, both moments and gradient read, three of them written.
    optimiser = 28 * row["parameters"] / copy
    return (
        f"Roofline (zero2, 1 rank, {threads} thread): {reached / 1e9:.1f} GFLOP/s of a measured ceiling of "
        f"{ceiling / 1e9:.1f} ({reached / ceiling:.0%}); a copy moves {copy / 1e9:.1f} GB/s, at which the optimiser is "
        f"{optimiser / row['seconds']:.0%} of the step: {'FLOP/s' if optimiser < row['seconds'] / 2 else 'memory'} "
        "binds."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, models and prints; ``--out`` also writes it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--width", type=int, default=HALF["width"], help="a multiple of 64")
    parser.add_argument("--configs", nargs="*", default=None, help="some of the shipped ones (default: all)")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args(argv)
    size = {**HALF, "width": options.width, "heads": options.width // 64}
    rows = []
    for name, document in shipped().items():
        if options.configs and name not in options.configs:
            continue
        for ranks in (1, 2):
            spec = {
                "size": size,
                "micro_batch": options.micro_batch,
                "steps": options.steps,
                "threads": 1,
                "configs": {name: document},
            }
            rows += run(spec, ranks)
            print(f"{name}, {ranks} ranks: {rows[-1]['seconds']:.2f} s / step", file=sys.stderr, flush=True)
    parameters = rows[0]["parameters"] / 1e6
    lines = [
        f"Student of {parameters:.1f}M parameters (width {options.width}), {options.micro_batch} pairs a rank, fp32, "
        f"one thread a rank, {describe()}.",
        "",
        *measured_table(rows),
        "",
    ]
    if any(row["config"] == "zero2" for row in rows):
        lines += [roofline(rows, 1), ""]
    lines += modelled_table()
    text = "\n".join(lines) + "\n"
    publish(text, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
