"""The DeepSpeed JSON: engine matters live there, method matters in the recipe, and neither may say the other's.

`resolve` fills every ``"auto"`` from the recipe and the machine, and refuses contradictions, naming both places.
Batch arithmetic: global batch (recipe, --optim.batch-size) = micro batch x accumulation x ranks (JSON).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssmke import credentials, foreign_json
from ssmke.errors import ConfigError

RECIPE_KEYS = {
    "optimizer": "--optim.*",
    "scheduler": "--optim.warmup and --optim.schedule",
    "data_efficiency": "the data flags",
    "curriculum_learning": "the data flags",
}
"""Sections of a DeepSpeed JSON that a recipe owns."""

MICRO, ACCUMULATION, GLOBAL = (
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "train_batch_size",
)


@dataclass(frozen=True)
class EngineConfig:
    """A DeepSpeed JSON with nothing left open."""

    json: dict[str, Any]
    path: str

    @property
    def micro_batch(self) -> int:
        """Pairs per rank and forward pass."""
        return int(self.json[MICRO])

    @property
    def accumulation(self) -> int:
        """Micro-batches per step."""
        return int(self.json[ACCUMULATION])

    @property
    def zero_stage(self) -> int:
        """ZeRO stage, 0 where DeepSpeed shards nothing."""
        return int(self.json.get("zero_optimization", {}).get("stage", 0))

    @property
    def dtype(self) -> str:
        """Number format of the matrix products: "bf16", "fp16" or "fp32"."""
        return next((name for name in ("bf16", "fp16") if (self.json.get(name) or {}).get("enabled")), "fp32")

    @property
    def offloads_optimizer(self) -> bool:
        """Whether optimiser states live in host memory."""
        device = self.json.get("zero_optimization", {}).get("offload_optimizer", {}).get("device", "none")
        return bool(device != "none")


def load(path: str | Path) -> dict[str, Any]:
    """Reads a DeepSpeed JSON; `ConfigError` names the file and the line."""
    try:
        document = foreign_json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"--deepspeed_config {path}: no such file; the shipped ones are in ds_configs/"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--deepspeed_config {path}: cannot be read ({error})") from None
    except ValueError as error:
        raise ConfigError(f"--deepspeed_config {path}: not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"--deepspeed_config {path}: must be a JSON object, as in ds_configs/zero2.json")
    return document


def resolve(
    document: dict[str, Any], path: str | Path, *, batch_size: int, world_size: int, cuda: bool
) -> EngineConfig:
    """Fills in ``"auto"`` and checks the JSON against the recipe.

    ``batch_size``: pairs per step over all ranks; ``cuda``: whether the ranks train on CUDA devices (bf16 there,
    fp32 on CPU).
    """
    credentials.refuse(document, f"{path}: ")
    resolved = copy.deepcopy(document)
    for key, owner in RECIPE_KEYS.items():
        if key in resolved:
            raise ConfigError(
                f"{path} has a section {key!r}, but that belongs to the recipe ({owner}): remove it"
            )
    _check_zero(resolved, path)
    _resolve_batch(resolved, path, batch_size, world_size)
    _resolve_precision(resolved, path, cuda)
    leftover = sorted(_autos(resolved))
    if leftover:
        known = f"{MICRO}, {ACCUMULATION}, {GLOBAL}, bf16.enabled, fp16.enabled"
        raise ConfigError(f'{path}: {", ".join(leftover)} is "auto", which is known for {known} only')
    return EngineConfig(resolved, str(path))


def _check_zero(resolved: dict[str, Any], path: str | Path) -> None:
    """What `EngineConfig` looks at must be of the kind that DeepSpeed takes."""
    zero = resolved.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise ConfigError(f'{path}: zero_optimization must be an object such as {{"stage": 2}}')
    stage = zero.get("stage", 0)
    if type(stage) is not int or stage not in range(4):
        raise ConfigError(f"{path}: zero_optimization.stage is {_shown(stage)}; it must be 0, 1, 2 or 3")
    offload = zero.get("offload_optimizer", {})
    if not isinstance(offload, dict) or not isinstance(offload.get("device", "none"), str):
        raise ConfigError(
            f'{path}: zero_optimization.offload_optimizer must be an object such as {{"device": "cpu"}}'
        )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _resolve_batch(resolved: dict[str, Any], path: str | Path, batch_size: int, world_size: int) -> None:
    def given(key: str) -> int | None:
        value = resolved.get(key, "auto")
        if value == "auto":
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(
                f'{path}: {key} is {_shown(value)}; it must be a positive whole number or "auto"'
            )
        return value

    total, micro, accumulation = given(GLOBAL), given(MICRO), given(ACCUMULATION)
    if total is not None and total != batch_size:
        raise ConfigError(
            f"{path}: {GLOBAL} is {total}, but --optim.batch-size is {batch_size}: make them equal, or write "
            f'"auto" in the JSON'
        )
    if batch_size % world_size:
        raise ConfigError(f"--optim.batch-size {batch_size} is not a multiple of the {world_size} ranks")
    local = batch_size // world_size
    if micro is None and accumulation is None:
        micro, accumulation = local, 1
    elif micro is None:
        assert accumulation is not None
        micro = local // accumulation
    elif accumulation is None:
        accumulation = local // micro
    assert accumulation is not None
    if micro * accumulation != local:
        raise ConfigError(
            f"{path}: {MICRO} {micro} x {ACCUMULATION} {accumulation} x {world_size} ranks is "
            f"{micro * accumulation * world_size}, but --optim.batch-size is {batch_size}: change one of them, or "
            f'write "auto" for one in the JSON'
        )
    resolved |= {GLOBAL: batch_size, MICRO: micro, ACCUMULATION: accumulation}


def _resolve_precision(resolved: dict[str, Any], path: str | Path, cuda: bool) -> None:
    for section, automatic in (("bf16", cuda), ("fp16", False)):
        options = resolved.get(section)
        if options is None:
            continue
        if not isinstance(options, dict):
            raise ConfigError(f'{path}: {section} must be an object such as {{"enabled": "auto"}}')
        if options.get("enabled", False) == "auto":
            options["enabled"] = automatic
        if not isinstance(options.get("enabled", False), bool):
            raise ConfigError(f'{path}: {section}.enabled must be true, false or "auto"')
    enabled = [s for s in ("bf16", "fp16") if (resolved.get(s) or {}).get("enabled")]
    if len(enabled) == 2:
        raise ConfigError(f"{path}: bf16.enabled and fp16.enabled are both true: choose one")
    if enabled == ["fp16"] and not cuda:
        raise ConfigError(f'{path}: fp16.enabled is true, but there is no GPU: write "auto" or use bf16')


def _autos(tree: Any, prefix: str = "") -> list[str]:
    if isinstance(tree, dict):
        return [name for key, value in tree.items() for name in _autos(value, f"{prefix}.{key}".lstrip("."))]
    return [prefix] if tree == "auto" else []
