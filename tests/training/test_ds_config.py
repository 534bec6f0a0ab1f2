"""The DeepSpeed JSON: "auto" is filled from the recipe, contradictions name both places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ssmke.errors import ConfigError
from ssmke.training.ds_config import load, resolve

CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"


def resolved(document: dict[str, Any], batch_size: int = 512, world_size: int = 4, cuda: bool = True) -> Any:
    return resolve(document, "my.json", batch_size=batch_size, world_size=world_size, cuda=cuda)


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"])
@pytest.mark.parametrize("cuda", [False, True])
def test_shipped_configs_resolve_completely(name: str, cuda: bool) -> None:
    config = resolve(load(CONFIGS / f"{name}.json"), name, batch_size=512, world_size=2, cuda=cuda)
    assert "auto" not in str(config.json)
    assert config.micro_batch * config.accumulation * 2 == config.json["train_batch_size"] == 512
    assert config.json["bf16"]["enabled"] is cuda
    assert config.zero_stage == int(name[4])
    assert config.offloads_optimizer is ("offload" in name)


@pytest.mark.parametrize(
    ("document", "micro", "accumulation"),
    [
        ({}, 128, 1),
        ({"train_micro_batch_size_per_gpu": 32}, 32, 4),
        ({"gradient_accumulation_steps": 8}, 16, 8),
        ({"train_micro_batch_size_per_gpu": 64, "gradient_accumulation_steps": 2}, 64, 2),
        ({"train_batch_size": 512, "train_micro_batch_size_per_gpu": "auto"}, 128, 1),
    ],
)
def test_batch_arithmetic(document: dict[str, Any], micro: int, accumulation: int) -> None:
    config = resolved(document)
    assert (config.micro_batch, config.accumulation) == (micro, accumulation)


@pytest.mark.parametrize(
    ("document", "parts"),
    [
        ({"train_batch_size": 256}, ["my.json", "train_batch_size is 256", "--optim.batch-size is 512"]),
        (
            {"train_micro_batch_size_per_gpu": 100, "gradient_accumulation_steps": 1},
            ["train_micro_batch_size_per_gpu 100", "--optim.batch-size is 512"],
        ),
        ({"train_micro_batch_size_per_gpu": 100}, ["100", "--optim.batch-size"]),
        ({"optimizer": {"type": "Adam"}}, ["optimizer", "--optim."]),
        ({"scheduler": {}}, ["scheduler", "--optim.warmup"]),
        ({"train_batch_size": -1}, ["train_batch_size", "positive"]),
        ({"train_batch_size": True}, ["train_batch_size", "positive"]),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, ["bf16.enabled", "fp16.enabled"]),
        ({"bf16": "yes"}, ["bf16", "object"]),
        ({"zero_optimization": {"stage": "auto"}}, ["zero_optimization.stage"]),
    ],
)
def test_contradictions_name_both_places(document: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        resolved(document)
    for part in parts:
        assert part in str(error.value)


def test_fp16_without_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="no GPU"):
        resolved({"fp16": {"enabled": True}}, cuda=False)


def test_a_batch_that_the_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of the 3 ranks"):
        resolved({}, world_size=3)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no such file"), ("{", "not JSON"), ("[1]", "must be a JSON object")]
)
def test_unreadable_files_are_named(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "my.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)
