"""A day of training in small: 20,000 real steps in eleven attempts, and whether anything grows that should not.

    python -m benchmarks.endurance [--steps 20000] [--resumes 10] [--every 50] [--no-unbroken] [--out FILE.md]

A day of a real run is about 20,000 steps of four seconds with a checkpoint every ten minutes; here a step takes some
25 ms and everything else keeps its proportion to the steps: about 150 checkpoints, an evaluation every few epochs,
MLflow on sqlite, a data worker, a ledger with beats. Each attempt but the last gets SIGTERM on its way and the next
one goes on with `--resume auto`. Every so many steps the process is looked at from outside: resident memory, open
files, threads, children, and the size of what it writes.

What leaks shows as a slope over the second half of each attempt (its first half is warm-up: allocators, caches,
lazily imported modules), in MB per 1,000 steps, as the median over attempts with its standard error, and in the table
of the attempts' ends. Flat means that the median plus two standard errors stays below `LIMIT_MB`: a day then costs less
than 10 MB. With the unbroken run (twice the time) losses, keys and final weights are compared too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import describe, publish
from ssmke.data.sources.scenes import ScenesConfig, write_scenes

ROOT = Path(__file__).resolve().parents[1]
LIMIT_MB = 0.5
"""Growth of resident memory per 1,000 steps that is still called flat."""
BATCH = 8
IMAGES = 512
STEPS_PER_EPOCH = IMAGES * 5 // BATCH
HEARTBEAT_S = 0.25
CHECKPOINTS_PER_STEP = 144 / 20_000
DAY_BEATS = 24 * 3600 // 5


@dataclass(frozen=True)
class Look:
    """What was seen of a run at one moment; sizes in bytes."""

    attempt: int
    step: int
    rss: int
    """Of the training process."""
    workers_rss: int
    files: int
    threads: int
    children: int
    ledger: int
    metrics: int
    checkpoints: int
    checkpoint_bytes: int
    mlflow: int


@dataclass(frozen=True)
class Slope:
    """Bytes per 1,000 steps, with its standard error."""

    median: float
    error: float

    @property
    def flat(self) -> bool:
        """Whether the growth is below the limit, its uncertainty included."""
        return self.median + 2 * self.error <= LIMIT_MB * 1e6


def endure(folder: Path, *, steps: int, resumes: int, every: int, step_seconds: float = 0.03) -> list[Look]:
    """Trains in ``folder`` with so many stops; RuntimeError where an attempt ends otherwise than it should."""
    if not (folder / "scenes" / "manifest.json").exists():
        write_scenes(
            folder / "scenes", ScenesConfig(train=IMAGES, val=16, test=32, images_per_shard=256), workers=1
        )
    flags = _flags(folder, steps, step_seconds)
    looks: list[Look] = []
    for attempt in range(resumes + 1):
        stop_at = steps * (attempt + 1) // (resumes + 1) if attempt < resumes else None
        found = _attempt(folder, [*flags, "--resume", "auto"], attempt, every, stop_at)
        looks += [look for look in found if look.step < steps]  # at the end there is no worker any more
        print(
            f"attempt {attempt + 1} of {resumes + 1}: step {_step(folder / 'run/metrics.jsonl')}", flush=True
        )
    if not (folder / "run" / "results.json").exists():
        raise RuntimeError(f"the last attempt did not finish: see {folder / 'output.log'}")
    return looks


def unbroken(folder: Path, *, steps: int, step_seconds: float = 0.03) -> str:
    """Trains once more without a stop, and says how the two runs differ."""
    flags = _flags(folder, steps, step_seconds)
    flags[flags.index("--run-dir") + 1] = str(folder / "whole")
    process = _start(folder, flags)
    if process.wait() != 0:
        raise RuntimeError(f"the unbroken run failed: see {folder / 'output.log'}")
    one, other = (_lines(folder / name / "metrics.jsonl") for name in ("whole", "run"))
    if [line["keys"] for line in one] != [line["keys"] for line in other]:
        return "sample keys DIFFER from the unbroken run's"
    off = max(abs(a["loss"] - b["loss"]) for a, b in zip(one, other, strict=True))
    same = (folder / "whole/model/model.safetensors").read_bytes() == (
        folder / "run/model/model.safetensors"
    ).read_bytes()
    return (
        f"sample keys of all {len(one):,} steps are those of an unbroken run, losses differ by at most {off:g}, "
        f"final weights are {'the same bytes' if same else 'NOT the same bytes'}"
    )


def growth(looks: Sequence[Look], field: str) -> Slope:
    """Growth of ``field`` per 1,000 steps over the second half of each attempt.

    Medians (Theil and Sen within an attempt, then over attempts), since memory also rises once by some megabytes when
    something is done for the first time; a leak raises every attempt. The error is that of a median, from the median
    deviation.
    """
    slopes = []
    for attempt in sorted({look.attempt for look in looks}):
        found = [look for look in looks if look.attempt == attempt]
        late = found[len(found) // 2 :]
        if len({look.step for look in late}) >= 2:
            pairs = [(a, b) for a, b in itertools.combinations(late, 2) if a.step != b.step]
            slopes.append(
                1000
                * statistics.median(
                    (getattr(b, field) - getattr(a, field)) / (b.step - a.step) for a, b in pairs
                )
            )
    if not slopes:
        raise ValueError("no attempt was seen twice in its second half: sample more often")
    median = statistics.median(slopes)
    deviation = 1.4826 * statistics.median(abs(slope - median) for slope in slopes)
    return Slope(median, 1.2533 * deviation / len(slopes) ** 0.5)


def least_at_end(looks: Sequence[Look], field: str) -> list[int]:
    """The least value in the last quarter of each attempt: what is open for a moment (an evaluation) is no growth."""
    attempts = [
        [look for look in looks if look.attempt == a] for a in sorted({look.attempt for look in looks})
    ]
    return [min(getattr(look, field) for look in found[-max(1, len(found) // 4) :]) for found in attempts]


def last_of_each(looks: Sequence[Look]) -> list[Look]:
    """The last look at each attempt."""
    return list({look.attempt: look for look in looks}.values())


def table(looks: Sequence[Look], beats: int) -> str:
    """The looks as Markdown, with the verdict."""
    rss, workers = growth(looks, "rss"), growth(looks, "workers_rss")
    ends = last_of_each(looks)
    counts = {
        name: (
            sorted({getattr(look, name) for look in looks[len(looks) // 20 :]}),
            least_at_end(looks, name),
        )
        for name in ("files", "threads", "children")
    }
    lines = [
        "| what | growth per 1,000 steps after warm-up | verdict |",
        "| --- | --: | --- |",
        *(
            f"| {name} | {slope.median / 1e6:+.3f} ± {slope.error / 1e6:.3f} MB | "
            f"{'flat' if slope.flat else 'NOT FLAT'} |"
            for name, slope in (
                ("resident memory, training process", rss),
                ("resident memory, data worker", workers),
            )
        ),
        *(
            f"| {name} | {growth(looks, name).median:+.2f}; least {seen[0]}, most {seen[-1]} | "
            f"{'flat' if max(at_end) - min(at_end) <= 2 else 'NOT FLAT'} |"
            for name, (seen, at_end) in counts.items()
        ),
        "",
        f"Flat: median + 2 standard errors (over {len(ends)} attempts) at most {LIMIT_MB:g} MB per 1,000 steps; what "
        "the attempts never have less of in their last quarters within 2 of each other.",
        "",
        "| attempt | last step seen | RSS MB | worker MB | files | threads | children | ledger KB | metrics.jsonl KB | "
        "checkpoints | their MB | MLflow MB |",
        "| --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |",
        *(
            f"| {e.attempt + 1} | {e.step:,} | {e.rss / 1e6:.1f} | {e.workers_rss / 1e6:.1f} | {e.files} | "
            f"{e.threads} | {e.children} | {e.ledger / 1e3:.0f} | {e.metrics / 1e3:.0f} | {e.checkpoints} | "
            f"{e.checkpoint_bytes / 1e6:.1f} | {e.mlflow / 1e6:.2f} |"
            for e in ends
        ),
        "",
        f"The ledger has {beats:,} records of {ends[-1].ledger / max(beats, 1):.0f} bytes on average; a day of beats "
        f"every 5 s would be {DAY_BEATS * ends[-1].ledger / max(beats, 1) / 1e6:.1f} MB. metrics.jsonl: "
        f"{ends[-1].metrics / max(ends[-1].step, 1):.0f} bytes a step.",
    ]
    return "\n".join(lines) + "\n"


def _flags(folder: Path, steps: int, step_seconds: float) -> list[str]:
    minutes = step_seconds / CHECKPOINTS_PER_STEP / 60
    return [
        "--data.make", "nothing", "--data.shards", str(folder / "scenes"), "--data.stream.workers", "1",
        "--model.image.depth", "1", "--model.text.depth", "1", "--model.text.max-tokens", "16",
        "--model.shared.dim", "32", "--model.shared.heads", "2", "--loss.bank-size", "64",
        "--optim.batch-size", str(BATCH), "--optim.epochs", str(-(-steps // STEPS_PER_EPOCH)), "--log-every", "10",
        "--evaluate-every", "1", "--checkpoint.no-every-epoch", "--checkpoint.minutes", f"{minutes:.4f}",
        "--cost.heartbeat_seconds", str(HEARTBEAT_S), "--cost.price", "3.6",
        "--runs-dir", str(folder / "runs"), "--run-dir", str(folder / "run"),
    ]  # fmt: skip


def _start(folder: Path, flags: Sequence[str]) -> subprocess.Popen[bytes]:
    scripts = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [
        sys.executable, str(ROOT / "launchers/pretrain.py"), "--deepspeed_config", str(ROOT / "ds_configs/zero1.json"),
        *flags,
    ]  # fmt: skip
    with (folder / "output.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment)


def _attempt(folder: Path, flags: Sequence[str], attempt: int, every: int, stop_at: int | None) -> list[Look]:
    process = _start(folder, flags)
    metrics = folder / "run/metrics.jsonl"
    looks: list[Look] = []
    begin: int | None = None
    due = 0
    told = False
    while process.poll() is None:
        time.sleep(0.1)
        step = _step(metrics)
        if begin is None:
            # Lines of steps that this attempt will do again are dropped only when it resumes.
            if f"{_TRAINING}{attempt + 1}" not in _marks(folder):
                continue
            begin = due = step
        if step >= due and not told:
            look = _look(folder, process.pid, attempt, step)
            if look is not None:
                looks.append(look)
                due = step + every
        if stop_at is not None and step >= stop_at and not told:
            process.send_signal(signal.SIGTERM)
            told = True
    if process.returncode != 0:
        raise RuntimeError(
            f"attempt {attempt + 1} ended with {process.returncode}: see {folder / 'output.log'}"
        )
    if stop_at is not None and not told:
        raise RuntimeError(
            f"attempt {attempt + 1} was done before it was stopped: see {folder / 'output.log'}"
        )
    return looks


_TRAINING = "training "


def _marks(folder: Path) -> set[str]:
    """ "training 1", ... for every attempt whose training began, as its output says."""
    said = (folder / "output.log").read_text(encoding="utf-8", errors="replace").splitlines()
    began = sum(line.startswith("training ") and " steps of " in line for line in said)
    return {f"{_TRAINING}{number}" for number in range(1, began + 1)}


def _look(folder: Path, pid: int, attempt: int, step: int) -> Look | None:
    run = folder / "run"
    try:
        process = psutil.Process(pid)
        children = process.children(recursive=True)
        database = folder / "runs/mlflow.db"
        checkpoints = [path for path in (run / "checkpoints").glob("step-*") if path.is_dir()]
        return Look(
            attempt=attempt,
            step=step,
            rss=process.memory_info().rss,
            workers_rss=sum(child.memory_info().rss for child in children),
            files=process.num_fds(),
            threads=process.num_threads(),
            children=len(children),
            ledger=_bytes(run / "cost"),
            metrics=_bytes(run / "metrics.jsonl"),
            checkpoints=len(checkpoints),
            checkpoint_bytes=sum(map(_bytes, checkpoints)),
            mlflow=_bytes(database),
        )
    except (psutil.Error, OSError):
        return None  # it, or a file that it just replaced, has gone


def _bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _step(metrics: Path) -> int:
    """The step of the last whole line."""
    try:
        with metrics.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 4096))
            lines = file.read().split(b"\n")
        return int(json.loads(lines[-2])["step"])
    except (OSError, ValueError, IndexError, KeyError):
        return 0


def _lines(metrics: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]


def _records(run: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (run / "cost").rglob("*.jsonl"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--resumes", type=int, default=10)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--unbroken", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--looks", type=Path, help="every sample, one JSON line each")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begin = time.monotonic()
        looks = endure(folder, steps=arguments.steps, resumes=arguments.resumes, every=arguments.every)
        minutes = (time.monotonic() - begin) / 60
        if arguments.looks is not None:
            arguments.looks.write_text("".join(json.dumps(asdict(look)) + "\n" for look in looks))
        text = (
            "# A day of training in small\n\n"
            f"Measured with `python -m benchmarks.endurance --steps {arguments.steps} --resumes {arguments.resumes}` "
            f"on {describe()}: {_step(folder / 'run/metrics.jsonl'):,} steps in {minutes:.0f} minutes, "
            f"{len(looks)} samples.\n\n{table(looks, _records(folder / 'run'))}"
        )
        publish(text, arguments.out)
        if arguments.unbroken:
            said = unbroken(folder, steps=arguments.steps)
            publish(f"{text}\nAgainst an unbroken run: {said}.\n", arguments.out)


if __name__ == "__main__":
    main()
