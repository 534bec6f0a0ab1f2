"""Accounting of a two-rank training that is killed again and again, against the same training unbroken.

    python -m benchmarks.kills [--kills 20] [--pace 0.6] [--out benchmarks/results/kills-cpu.md] [recipe flags]

Each attempt gets SIGKILL (launcher and ranks) at a random moment of its set-up or its training, and the next one
resumes with `--resume auto`; after the last kill the run may finish. Steps are drawn out to a fixed pace
(`paced_pretrain`), since the useful seconds of two runs on a machine whose speed drifts say nothing otherwise.
Then the ledgers are compared: the useful time of the killed run must be that of the unbroken one, give or take a
heartbeat for each kill; in what does not keep the pace (set-up, checkpoints, evaluation) the machine shows too.
What the killed run trained must be what the unbroken one did, bit for bit, as in `benchmarks.faults`.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from benchmarks.faults.accounting import phases_table
from benchmarks.faults.attempts import HEARTBEAT_S
from benchmarks.faults.campaign import Campaign, Fault
from benchmarks.machine import describe, publish
from ssmke.data.sources.scenes import ScenesConfig, write_scenes


def main() -> int:
    """Returns 0 when the killed run ended as the unbroken one did."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--pace", type=float, default=0.6)
    parser.add_argument("--out", type=Path)
    arguments, flags = parser.parse_known_args()
    flags = flags or ["--optim.epochs", "2", "--checkpoint.minutes", "0.06"]
    chance = random.Random(0)
    faults = [
        Fault("set-up" if chance.random() < 0.2 else "training", "SIGKILL", "group")
        for _ in range(arguments.kills)
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_scenes(folder / "scenes", ScenesConfig())
        always = ["--data.shards", str(folder / "scenes"), "--tracking.no-enabled", "--log-every", "1"]
        campaign = Campaign(folder, [*always, *flags], pace_s=arguments.pace, dwell_s=0.0)
        killed = campaign.lineage("killed", faults, campaign.unbroken())
    assert killed.accounts is not None
    publish(
        f"# Accounting under kill -9\n\nMeasured with `python -m benchmarks.kills --kills {arguments.kills} --pace "
        f"{arguments.pace:g}` on {describe()}, flags {' '.join(flags)}; steps drawn out to {arguments.pace:g} s, "
        f"heartbeat {HEARTBEAT_S:g} s.\n\n{phases_table(killed.accounts)}"
        + "".join(f"\nWrong: {problem}\n" for problem in killed.problems),
        arguments.out,
    )
    return 1 if killed.problems else 0


if __name__ == "__main__":
    sys.exit(main())
