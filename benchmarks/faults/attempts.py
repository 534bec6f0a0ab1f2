"""One attempt of a real two-rank training that is watched and hurt: its start, its processes, what it said.

The recipe is scenes-tiny on 192 rendered images (`tiny`). Steps keep a pace and some short
moments are drawn out (`paced_pretrain`), so that seconds can be compared and a moment can be hit. An attempt is a
session of its own, so that all its processes are found by it, also those whose parents are gone.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil

from ssmke.data.sources.scenes import ScenesConfig, write_scenes

ROOT = Path(__file__).resolve().parents[2]
HEARTBEAT_S = 1.0
VICTIMS = ("rank 0", "rank 1", "launcher", "group")
"""Whom a signal hits; the launcher is the `deepspeed` command, the group all processes of the attempt."""
_SAID = re.compile(
    r"^(?:.*?((?:stopped|ended at once) by .*)|(error\b.*)|.*(exits with return code = -?\d+).*)$",
    re.MULTILINE,
)
_FRAMES = re.compile(r"^Traceback .*\n((?:[ \t].*\n)*)", re.MULTILINE)


class Attempt:
    """A started training; ``folder`` gets its output, added to ``output.log``."""

    def __init__(self, flags: Sequence[str], folder: Path, pace_s: float, dwell_s: float = 0.0) -> None:
        self.log = folder / "output.log"
        self._from = self.log.stat().st_size if self.log.exists() else 0
        self._port = free_port()
        self.started = time.monotonic()
        self.process = start(flags, folder, pace_s, dwell_s, self._port)

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, *reason: object) -> None:
        """Leaves no process behind, whatever happened here."""
        self.gone(0.0)

    def running(self) -> bool:
        """Whether the command that was started still runs."""
        return self.process.poll() is None

    def members(self) -> list[psutil.Process]:
        """All processes of the attempt that live."""
        self.process.poll()
        found = []
        for pid in psutil.pids():
            try:
                process = psutil.Process(pid)
                if os.getsid(pid) == self.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (OSError, psutil.Error):
                continue
        return found

    def rank(self, number: int) -> psutil.Process | None:
        """A rank's process, None before it is there. Its data workers have its command line, but it as parent."""
        for process in self.members():
            try:
                parent = process.parent()
                above = [] if parent is None else parent.cmdline()
                if f"--local_rank={number}" in process.cmdline() and "deepspeed.launcher.launch" in above:
                    return process
            except psutil.Error:
                continue
        return None

    def send(self, number: int, victim: str) -> bool:
        """Sends a signal to one of VICTIMS; False if it is not there."""
        try:
            if victim == "group":
                os.killpg(self.process.pid, number)
            elif victim == "launcher":
                self.process.send_signal(number)
            else:
                process = self.rank(int(victim.removeprefix("rank ")))
                if process is None:
                    return False
                process.send_signal(number)
        except (OSError, psutil.Error):
            return False
        return True

    def gone(self, limit_s: float) -> list[str]:
        """Waits until no process of the attempt lives; those that outlive ``limit_s`` are killed and named."""
        deadline = time.monotonic() + limit_s
        while left := self.members():
            if time.monotonic() > deadline:
                names = [f"{p.pid} {' '.join(p.cmdline())[:200]}" for p in left]
                for process in left:
                    process.kill()
                psutil.wait_procs(left, timeout=10)
                self.process.wait()
                return names
            time.sleep(0.02)
        self.process.wait()
        return []

    def output(self) -> str:
        """What the attempt has said so far."""
        with self.log.open("rb") as file:
            file.seek(self._from)
            return file.read().decode(errors="replace")

    def said(self) -> str:
        """The line that explains the end: the run's own if there is one, else the launcher's."""
        found = ["".join(match.groups("")) for match in _SAID.finditer(self.output())]
        own = [line for line in found if not line.startswith("exits")]
        return (own or found or [""])[0][:200]

    def tracebacks(self) -> list[str]:
        """The innermost frame of each traceback of the ranks and their workers; the launcher is not ours."""
        frames = [match.group(1) for match in _FRAMES.finditer(self.output())]
        own = [text for text in frames if "pretrain.py" in text or "/ssmke/" in text]
        return [text.rstrip().splitlines()[-1].strip() for text in own]

    def leftovers(self) -> Counter[str]:
        """Shared memory that outlived the attempt, counted, and removed for the sake of this machine."""
        found = list(Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_{self._port}_*"))
        for path in found:
            path.unlink(missing_ok=True)
        return Counter({"files in /dev/shm": len(found)})

    def tail(self) -> str:
        """The last lines of the output."""
        return "\n".join(self.output().splitlines()[-20:])


def start(
    flags: Sequence[str], folder: Path, pace_s: float, dwell_s: float = 0.0, port: int | None = None
) -> subprocess.Popen[bytes]:
    """The `deepspeed` command of two CPU ranks, in a session of its own, on a free port."""
    # What a shell puts into the background ignores Ctrl-C, and so would all that it starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    scripts = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(ROOT),
        "PACE_SECONDS": str(pace_s),
        "DWELL_SECONDS": str(dwell_s),
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [
        str(scripts / "deepspeed"), "--num_gpus", "2", "--master_port", str(port or free_port()),
        str(ROOT / "benchmarks" / "paced_pretrain.py"), "--deepspeed_config", str(ROOT / "ds_configs" / "zero2.json"),
        "--cost.heartbeat_seconds", str(HEARTBEAT_S), "--cost.price", "3.6", *flags,
    ]  # fmt: skip
    with (folder / "output.log").open("ab") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True
        )


def free_port() -> int:
    """A TCP port of this machine that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def tiny(folder: Path, epochs: int) -> list[str]:
    """Flags of scenes-tiny on 192 images in 12 shards, rendered into ``folder``: 24 steps an epoch."""
    shards = folder / "scenes"
    write_scenes(shards, ScenesConfig(train=192, val=0, test=32, captions=2, images_per_shard=16), workers=1)
    return [
        "--data.shards", str(shards), "--optim.batch-size", "16", "--optim.epochs", str(epochs), "--log-every", "1",
        "--tracking.no-enabled",
    ]  # fmt: skip
