"""Which DeepSpeed configuration, micro-batch and accumulation: the largest that fits, for each, and the best of them.

A micro-batch divides the rank's share of the global batch. Larger is better: fewer and larger kernels, and without
accumulation no second forward pass; so each configuration gets the largest that fits. Among configurations the
simplest of the fastest by the step's model wins (under ZeRO-3 blocks are not compiled, and offload moves bytes).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ssmke.errors import ConfigError
from ssmke.planning.communication import Communication, communication
from ssmke.planning.memory import Memory, Zero, memory
from ssmke.planning.steptime import StepTime
from ssmke.planning.student import Model
from ssmke.training import ds_config

ALIKE = 1.1
"""Step times within this factor are alike: the model knows no better."""


@dataclass(frozen=True)
class Option:
    """One configuration at one micro-batch."""

    name: str
    zero: Zero
    micro_batch: int
    accumulation: int
    memory: Memory
    traffic: Communication
    time: StepTime | None = None

    @property
    def order(self) -> tuple[float, ...]:
        """Smaller is simpler: no second pass, nothing offloaded, blocks that can be compiled, less to send."""
        offload = self.zero.offload_optimizer + self.zero.offload_param
        return (self.accumulation, offload, self.zero.stage == 3, self.traffic.sent, self.zero.stage)


def configs(folder: Path, *, batch_size: int, ranks: int, cuda: bool) -> dict[str, Zero]:
    """The DeepSpeed configurations in a folder by name; `ConfigError` where there are none, or one is wrong.

    Batch keys in them are left aside: they are what is looked for.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise ConfigError(
            f"--configs {folder}: no DeepSpeed JSON there: give the ds_configs folder of the project's repository, or "
            "one of your own"
        )
    found = {}
    for path in paths:
        document = ds_config.load(path)
        for key in (ds_config.MICRO, ds_config.ACCUMULATION, ds_config.GLOBAL):
            document.pop(key, None)
        resolved = ds_config.resolve(document, path, batch_size=batch_size, world_size=ranks, cuda=cuda)
        found[path.stem] = Zero.of(resolved)
    return found


def divisors(number: int) -> list[int]:
    """All divisors, largest first."""
    return [n for n in range(number, 0, -1) if number % n == 0]


def largest(
    name: str, model: Model, zero: Zero, *, batch_size: int, ranks: int, room: int
) -> tuple[Option, bool]:
    """The largest micro-batch that fits into ``room`` bytes of a device, or a micro-batch of 1 that does not."""
    local = batch_size // ranks
    option: Option | None = None
    for micro in divisors(local):
        accumulation = local // micro
        needed = memory(model, zero, micro_batch=micro, accumulation=accumulation, ranks=ranks)
        traffic = communication(model, zero, micro_batch=micro, accumulation=accumulation, ranks=ranks)
        option = Option(name, zero, micro, accumulation, needed, traffic)
        if needed.device_total <= room:
            return option, True
    assert option is not None
    return option, False


def best(options: list[Option]) -> Option:
    """The one to take: the simplest of those that are about as fast as the fastest."""
    known = [option.time.total.point for option in options if option.time is not None]
    fast = [
        option for option in options if option.time is None or option.time.total.point <= ALIKE * min(known)
    ]
    return min(fast, key=lambda option: option.order)


def advice(refused: list[Option], room: int, *, checkpointing: bool, ranks: int) -> list[str]:
    """What would help where nothing fits: the configuration that is nearest, and what to change."""
    nearest = min(refused, key=lambda option: option.memory.device_total)
    part = max(nearest.memory.device, key=lambda name: nearest.memory.device[name])
    lines = [
        f"nothing fits into {room / 2**30:.4g} GiB: nearest is {nearest.name} at micro batch 1, which needs "
        f"{nearest.memory.device_total / 2**30:.2f} GiB (most of it {part})"
    ]
    if not checkpointing:
        lines.append("keep fewer activations: --set compute.checkpointing True")
    if part in ("losses", "outputs", "input"):
        lines.append("take a smaller global batch: --set optim.batch-size N")
    if not any(option.zero.offload_optimizer for option in refused):
        lines.append("add a configuration with offload_optimizer (ds_configs/zero2_offload.json)")
    lines.append(f"take more GPUs than {ranks}: ZeRO shares out weights and optimiser states among them")
    if part in ("buckets", "gathered weights", "reduction"):
        lines.append(
            "make reduce_bucket_size and stage3_prefetch_bucket_size in the JSON smaller: 5000000 for example"
        )
    return lines
