"""How a run meets faults: how long a rank may stand still, how many bad losses it takes, who announces the end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ssmke.errors import ConfigError

CLOUDS = ("aws", "gcp", "azure")


@dataclass
class FaultConfig:
    """Limits after which a run ends cleanly instead of wasting paid time."""

    hang_seconds: float = 60.0
    """A step that makes no progress for so long (or for ten such steps, if longer) ends the run on all ranks, with the
    rank and the phase named. A first step and a wait for data may take 15 times as long; checkpoints, evaluation and
    the next part of a target cache 60 times. 0 turns it off."""
    dead_seconds: float = 30.0
    """A rank that is not heard of for so long counts as dead (a killed one on the same machine is noticed at once)."""
    max_nonfinite: int = 10
    """Steps in a row whose loss or gradient is not a number: each is skipped, so many end the run."""
    preemption: str = "off"
    """Who announces that this machine is taken away, besides SIGTERM: `aws`, `gcp` or `azure` (asked every few seconds
    at the machine's own metadata address), or a file whose appearance says so. `off`: nobody."""
    deadline_seconds: float = 30.0
    """Time between an announcement and the end of the machine. A run that needs longer to finish a step and save says
    so in advance."""

    def __post_init__(self) -> None:
        if self.hang_seconds < 0:
            raise ConfigError(f"--faults.hang-seconds {self.hang_seconds}: must be 0 or more")
        if self.dead_seconds < 5:
            raise ConfigError(f"--faults.dead-seconds {self.dead_seconds}: must be at least 5")
        if self.max_nonfinite < 1:
            raise ConfigError(f"--faults.max-nonfinite {self.max_nonfinite}: must be at least 1")
        if self.deadline_seconds <= 0:
            raise ConfigError(f"--faults.deadline-seconds {self.deadline_seconds}: must be more than 0")
        known = self.preemption in ("off", *CLOUDS)
        if not known and not (Path(self.preemption).is_absolute() and Path(self.preemption).parent.is_dir()):
            raise ConfigError(
                f"--faults.preemption {self.preemption}: must be off, {', '.join(CLOUDS)}, or the absolute path of a "
                "file in a folder that exists"
            )
