"""Many faults against scenes-tiny on two ranks, and a table of what they cost.

    python -m benchmarks.faults [--count 50] [--seed 0] [--pace 0.2] [--out FILE.md]

Nearly all the time is set-up (imports of launcher and ranks): about 15 seconds a fault on two quiet cores.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.faults.accounting import lineages_table
from benchmarks.faults.attempts import HEARTBEAT_S, VICTIMS, tiny
from benchmarks.faults.campaign import SIGNALS, Campaign, Injury, Lineage, deal
from benchmarks.faults.moments import PLACES
from benchmarks.machine import describe, publish

EPOCHS = 2


def main() -> int:
    """Returns 0 when every lineage ended as the unbroken run did."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pace", type=float, default=0.2, help="seconds of a step")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # so that no training outlives this
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        campaign = Campaign(
            folder,
            tiny(folder, EPOCHS),
            pace_s=arguments.pace,
            seed=arguments.seed,
            say=lambda line: print(line, flush=True),
        )
        unbroken = campaign.unbroken()
        lineages = [
            campaign.lineage(f"lineage-{number}", faults, unbroken)
            for number, faults in enumerate(deal(arguments.count, arguments.seed))
        ]
    minutes = (time.monotonic() - begin) / 60
    publish(
        f"# Faults\n\n`python -m benchmarks.faults --count {arguments.count} --seed {arguments.seed} --pace "
        f"{arguments.pace:g}` on {describe()}: {minutes:.0f} minutes. scenes-tiny with 192 images, {unbroken.steps} "
        f"steps of {arguments.pace:g} s on two CPU ranks, ZeRO-2, a checkpoint every 1.2 s, heartbeat "
        f"{HEARTBEAT_S:g} s.\n\n{tables(lineages)}",
        arguments.out,
    )
    return 1 if any(lineage.problems for lineage in lineages) else 0


def tables(lineages: Sequence[Lineage]) -> str:
    """What the faults cost by place and by victim, what was said, the accounts, and all that was wrong."""
    good = {id(injury) for lineage in lineages if not lineage.problems for injury in lineage.injuries}
    injuries = [injury for lineage in lineages for injury in lineage.injuries]
    left: Counter[str] = sum((lineage.left for lineage in lineages), Counter())
    problems = [f"{lineage.folder.name}: {problem}" for lineage in lineages for problem in lineage.problems]
    parts = [
        f"{len(injuries)} faults in {len(lineages)} runs. Survived: the run ended with losses, rates and samples of "
        "every step, weights, target cache and scores of the unbroken one, bit for bit, with whole checkpoints only. "
        "Steps and seconds lost: work of the attempt that was done again.",
        _rows(injuries, good, "place", PLACES, lambda injury: injury.fault.place),
        _rows(injuries, good, "victim", VICTIMS, lambda injury: injury.fault.victim),
        _said(injuries),
        lineages_table([lineage.accounts for lineage in lineages if lineage.accounts is not None]),
        "Left behind: " + (", ".join(f"{n} {what}" for what, n in left.items() if n) or "nothing") + ".",
        "Wrong:\n\n" + "\n".join(f"- {problem}" for problem in problems)
        if problems
        else "Nothing was wrong.",
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _rows(
    injuries: Sequence[Injury],
    good: set[int],
    title: str,
    names: Iterable[str],
    key: Callable[[Injury], str],
) -> str:
    lines = [
        f"| signal | {title} | injected | survived | steps lost mean / max | seconds lost mean / max "
        "| all gone after s mean / max | orphans | explained | tracebacks |",
        "| --- | --- " + "| --: " * 8 + "|",
    ]
    for name_of_signal in SIGNALS:
        for name in names:
            some = [i for i in injuries if i.fault.signal == name_of_signal and key(i) == name]
            if not some:
                continue
            lines.append(
                f"| {name_of_signal} | {name} | {len(some)} | {sum(id(i) in good for i in some)} "
                f"| {_mean_max([i.lost_steps for i in some])} | {_mean_max([i.lost_s for i in some])} "
                f"| {_mean_max([i.gone_s for i in some])} | {sum(len(i.orphans) for i in some)} "
                f"| {sum(bool(i.said) for i in some)} | {sum(bool(i.tracebacks) for i in some)} |"
            )
    return "\n".join(lines)


def _mean_max(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.1f} / {max(values):.1f}"


def _said(injuries: Sequence[Injury]) -> str:
    lines = ["| signal | victim | said | times |", "| --- | --- | --- | --: |"]
    found = Counter(
        (
            i.fault.signal,
            i.fault.victim,
            re.sub(r"/\S+", "PATH", re.sub(r"(step|process) \d+", r"\1 N", i.said)),
        )
        for i in injuries
    )
    lines += [f"| {s} | {v} | {text or '(nothing)'} | {n} |" for (s, v, text), n in sorted(found.items())]
    tracebacks = Counter(text for i in injuries for text in i.tracebacks)
    lines += ["", *(f"- traceback, {n} times: `{text}`" for text, n in tracebacks.most_common())]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
