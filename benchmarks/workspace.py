"""How long `ssmke-cost` takes: its help, and the report and dashboard of workspaces of 200 and 10,000 runs.

    python -m benchmarks.workspace [--out benchmarks/results/workspace-cpu.md]

Each figure is of a whole process, the least of five. Runs are made by the real meter in simulated time: 12 hours of
beats each in the small workspace, a minute in the large one.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ssmke.cost.config import CostConfig
from ssmke.cost.ledger.writer import FOLDER
from ssmke.cost.machine import Machine
from ssmke.cost.meter import CostMeter
from ssmke.cost.probes.probe import Device, Sample
from ssmke.cost.probes.replay import FakeProbe

SECOND = 1_000_000_000
BEAT_S = 5
LINEAGE = b"0123456789abcdef"
GPU = Device(id="GPU-0", name="NVIDIA H100 80GB HBM3", memory_mib=81559, energy="counter")


def ledger(folder: Path, seconds: int) -> bytes:
    """The ledger of a run of so many seconds, with an energy reading in every beat."""
    now = 1_000 * SECOND
    readings = [
        {GPU.id: Sample(mj=3_500_000 * i, util=95.0, mem_mib=60_000)} for i in range(seconds // BEAT_S + 3)
    ]
    meter = CostMeter(
        folder, lineage=LINEAGE.decode(), attempt="a", config=CostConfig(price="6.88"), heartbeat=False,
        probe=FakeProbe([GPU], readings), machine=Machine(host="h" * 16, boot="b" * 16),
        clock=lambda: now, wall=lambda: now + 10**18,
    )  # fmt: skip
    meter.start()
    meter.progress(0, 0)
    with meter.phase("train"):
        for _ in range(seconds // BEAT_S):
            now += BEAT_S * SECOND
            meter.beat()
    meter.progress(1000, 512_000)
    meter.saved(1000)
    meter.close()
    [path] = (folder / FOLDER / "a").iterdir()
    return path.read_bytes()


def workspace(root: Path, runs: int, seconds: int) -> Path:
    """A folder of ``runs`` runs that differ in their lineage."""
    data = ledger(root / "one", seconds)
    for number in range(runs):
        folder = root / "runs" / f"recipe-{number % 7}" / f"run-{number:05d}" / FOLDER / "a"
        folder.mkdir(parents=True)
        (folder / "node0000.jsonl").write_bytes(data.replace(LINEAGE, b"%016d" % number))
    return root / "runs"


def seconds_of(*arguments: str, times: int = 5) -> float:
    """The least wall time of a whole ``ssmke-cost`` process."""
    taken: list[float] = []
    for _ in range(times):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "ssmke.cli.cost", *arguments], check=True, capture_output=True)
        taken.append(time.perf_counter() - begin)
    return min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = [("`ssmke-cost --help`", seconds_of("--help"))]
    for runs, seconds in ((200, 12 * 3600), (10_000, 60)):
        with tempfile.TemporaryDirectory() as folder:
            root = str(workspace(Path(folder), runs, seconds))
            rows.append((f"`report`, {runs:,} runs", seconds_of("report", root)))
            rows.append((f"`dashboard`, {runs:,} runs", seconds_of("dashboard", root, "--no-tracking")))
    lines = [f"| {name} | {seconds:.2f} s |" for name, seconds in rows]
    text = (
        "# Speed of ssmke-cost\n\nMeasured with `python -m benchmarks.workspace` on "
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}.\n\n"
        "| whole process, least of five | |\n| --- | --: |\n" + "\n".join(lines) + "\n"
    )
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
