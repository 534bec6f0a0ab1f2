"""Accounting of a two-rank training that is killed again and again, against the same training unbroken.

    python -m benchmarks.kills [--kills 20] [--pace 0.6] [--out benchmarks/results/kills-cpu.md] [recipe flags]

Each attempt gets SIGKILL (launcher and ranks) at a random moment of its set-up or its training, and the next one
resumes with `--resume auto`; after the last kill the run may finish. Steps are drawn out to a fixed pace
(`paced_pretrain`), since the useful seconds of two runs on a machine whose speed drifts say nothing otherwise.
Then the ledgers are compared: the useful time of the killed run must be that of the unbroken one, give or take a
heartbeat for each kill; in what does not keep the pace (set-up, checkpoints, evaluation) the machine shows too.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from ssmke.cost.ledger.outcomes import OUTCOMES, by_outcome
from ssmke.cost.ledger.reader import read_run
from ssmke.cost.ledger.usage import Usage, total

ROOT = Path(__file__).resolve().parents[1]
HEARTBEAT_S = 1.0


@dataclass(frozen=True)
class Comparison:
    """An unbroken and a killed run of the same recipe."""

    kills: int
    resumed_steps: tuple[int, ...]
    unbroken: Usage
    paid: Usage
    outcomes: dict[str, Usage]

    @property
    def allowed_s(self) -> float:
        """One heartbeat for each kill."""
        return self.kills * HEARTBEAT_S

    def off_s(self, phase: str) -> float:
        """Useful seconds of a phase in the killed run less those in the unbroken one."""
        return (self.outcomes["useful"].phases.get(phase, 0) - self.unbroken.phases.get(phase, 0)) / 1e9


def compare(flags: Sequence[str], folder: Path, *, kills: int, pace_s: float, seed: int = 0) -> Comparison:
    """Trains twice in ``folder``, the second time with ``kills`` kills; RuntimeError if an attempt fails by itself."""
    unbroken, killed = folder / "unbroken", folder / "killed"
    # What only the first run of a folder does (data, target cache, operators) is no difference between the two.
    _finish(start([*flags, "--run-dir", str(folder / "warm-up"), "--stop-after", "1"], folder, 0.0))
    _finish(start([*flags, "--run-dir", str(unbroken)], folder, pace_s))
    chance = random.Random(seed)
    done = 0
    while done < kills:
        process = start([*flags, "--run-dir", str(killed), "--resume", "auto"], folder, pace_s)
        in_setup = chance.random() < 0.2
        _wait_for_attempt(process, killed, attempts=done + 1, training=not in_setup)
        time.sleep(chance.uniform(0.0, 2.0 if in_setup else 12 * pace_s))
        if process.poll() is not None:
            raise RuntimeError(f"the run was done after {done} kills: give it more epochs\n{_tail(folder)}")
        _kill(process)
        done += 1
        print(f"kill {done} of {kills}", flush=True)
    _finish(start([*flags, "--run-dir", str(killed), "--resume", "auto"], folder, pace_s))
    found = read_run(killed)
    return Comparison(
        kills=done,
        resumed_steps=tuple(
            s.resumed_step for s in sorted(found, key=lambda s: s.begin_ns) if s.resumed_step is not None
        ),
        unbroken=total(read_run(unbroken)),
        paid=total(found),
        outcomes=by_outcome(found),
    )


def table(result: Comparison) -> str:
    """The comparison as Markdown."""
    lines = [
        f"{result.kills} kills; attempts resumed after steps {', '.join(map(str, result.resumed_steps))}.",
        "",
        "| phase | unbroken s | useful part of the killed run s | difference s | allowed s |",
        "| --- | --: | --: | --: | --: |",
    ]
    for phase in sorted(result.unbroken.phases):
        whole, useful = (
            result.unbroken.phases[phase] / 1e9,
            result.outcomes["useful"].phases.get(phase, 0) / 1e9,
        )
        lines.append(
            f"| {phase} | {whole:.2f} | {useful:.2f} | {result.off_s(phase):+.2f} | {result.allowed_s:.0f} |"
        )
    whole, useful = result.unbroken.device_ns / 1e9, result.outcomes["useful"].device_ns / 1e9
    lines.append(f"| all | {whole:.2f} | {useful:.2f} | {useful - whole:+.2f} | {result.allowed_s:.0f} |")
    lines += ["", "| outcome in the killed run | device-seconds | share |", "| --- | --: | --: |"]
    for name in OUTCOMES:
        ns = result.outcomes[name].device_ns
        lines.append(f"| {name} | {ns / 1e9:.2f} | {ns / result.paid.device_ns:.1%} |")
    lines.append(f"| paid | {result.paid.device_ns / 1e9:.2f} | 100 % |")
    return "\n".join(lines) + "\n"


def start(flags: Sequence[str], folder: Path, pace_s: float) -> subprocess.Popen[bytes]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    scripts = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(ROOT),
        "PACE_SECONDS": str(pace_s),
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [
        str(scripts / "deepspeed"), "--num_gpus", "2", "--master_port", str(port),
        str(ROOT / "benchmarks" / "paced_pretrain.py"), "--deepspeed_config", str(ROOT / "ds_configs" / "zero2.json"),
        "--cost.heartbeat_seconds", str(HEARTBEAT_S), "--cost.price", "3.6", *flags,
    ]  # fmt: skip
    log = (folder / "output.log").open("ab")
    return subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment)


def _finish(process: subprocess.Popen[bytes]) -> None:
    if process.wait() != 0:
        raise RuntimeError(f"a run failed with code {process.returncode}: see output.log in its folder")


def _wait_for_attempt(
    process: subprocess.Popen[bytes], run_dir: Path, *, attempts: int, training: bool
) -> None:
    """Until the newest attempt has a ledger, or until that says that training began."""
    while process.poll() is None:
        found = read_run(run_dir)
        if len({s.attempt for s in found}) >= attempts:
            newest = max(found, key=lambda s: s.begin_ns)
            if newest.begun is not None or not training:
                return
        time.sleep(0.05)


def _kill(process: subprocess.Popen[bytes]) -> None:
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=10)
    process.wait()


def _tail(folder: Path) -> str:
    return "\n".join((folder / "output.log").read_text(errors="replace").splitlines()[-20:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--pace", type=float, default=0.6)
    parser.add_argument("--out", type=Path)
    arguments, flags = parser.parse_known_args()
    flags = flags or [
        "--optim.epochs",
        "2",
        "--checkpoint.minutes",
        "0.06",
        "--tracking.no-enabled",
        "--log-every",
        "5",
    ]
    with tempfile.TemporaryDirectory() as folder:
        result = compare(flags, Path(folder), kills=arguments.kills, pace_s=arguments.pace)
    text = (
        f"# Accounting under kill -9\n\nMeasured with `python -m benchmarks.kills --kills {arguments.kills} --pace "
        f"{arguments.pace:g}` on {os.cpu_count()} cores ({platform.machine()}), flags {' '.join(flags)}; steps drawn "
        f"out to {arguments.pace:g} s, heartbeat {HEARTBEAT_S:g} s.\n\n{table(result)}"
    )
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
