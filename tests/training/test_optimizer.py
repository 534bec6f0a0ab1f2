"""Groups, schedule and temperature clamp of the recipe."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from ssmke.errors import ConfigError
from ssmke.models.student import SSMKE, StudentConfig
from ssmke.objectives.pretraining import LossConfig, SSMKEPretraining
from ssmke.training.optimizer import OptimConfig, Schedule, build_optimizer, decays, parameter_groups


@pytest.fixture
def module(model: SSMKE) -> SSMKEPretraining:
    student = SSMKE(StudentConfig(**{**vars(model.config), "prediction_dim": 12}), quiet=True)
    return SSMKEPretraining(student, LossConfig(bank_size=4))


def test_every_trained_parameter_is_in_one_group(module: SSMKEPretraining) -> None:
    module.student.image_encoder.requires_grad_(False)
    groups = parameter_groups(module, OptimConfig())
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in module.parameters() if p.requires_grad)


def test_only_matrices_decay(module: SSMKEPretraining) -> None:
    decayed = {name for name, p in module.named_parameters() if decays(name, p)}
    assert any("attn" in name for name in decayed)
    assert any("shared.fc1.weight" in name for name in decayed)
    forbidden = ("bias", "norm", "embeddings", "pos_embed", "cls_token", "log_scale", "gamma", "modality")
    assert not [name for name in decayed if any(part in name.lower() for part in forbidden)]


def test_encoders_can_have_a_rate_of_their_own(module: SSMKEPretraining) -> None:
    groups = {g["name"]: g for g in parameter_groups(module, OptimConfig(lr=1e-3, encoder_lr=1e-5))}
    assert groups["encoder"]["peak_lr"] == groups["encoder_no_decay"]["peak_lr"] == 1e-5
    assert groups["new"]["peak_lr"] == groups["temperatures"]["peak_lr"] == 1e-3
    assert groups["temperatures"]["weight_decay"] == 0
    assert len(groups["temperatures"]["params"]) == 3


def test_temperatures_are_clamped_after_each_step(module: SSMKEPretraining) -> None:
    config = OptimConfig(lr=10.0, weight_decay=0.0)
    optimizer = build_optimizer(parameter_groups(module, config), config, cuda=False, offload=False)
    scales = {name: p for name, p in module.named_parameters() if name.startswith("log_scale_")}
    others = {
        name: p.detach().clone() for name, p in module.named_parameters() if name == "student.shared.q.bias"
    }
    for sign, bound in ((1.0, 0.0), (-1.0, math.log(100))):
        for p in module.parameters():
            p.grad = torch.full_like(p, sign)
        for _ in range(30):
            optimizer.step()
        for name, p in scales.items():
            assert p.item() == pytest.approx(bound, abs=1e-6), name
    # The clamp is for temperatures alone.
    moved = dict(module.named_parameters())["student.shared.q.bias"]
    assert (moved - others["student.shared.q.bias"]).abs().max() > 1


def test_warm_up_is_linear_and_the_cosine_ends_at_zero() -> None:
    schedule = Schedule(OptimConfig(lr=2.0, warmup=0.1), steps=100)
    factors = [schedule.factor(step) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert factors[10] == pytest.approx(1.0)
    assert factors[55] == pytest.approx(0.5)
    assert 0 < factors[99] < 0.001
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))


def test_the_floor_and_the_constant_schedule() -> None:
    floored = Schedule(OptimConfig(lr=1.0, min_lr=0.25, warmup=0.0), steps=10)
    assert floored.factor(0) == 1.0
    assert floored.factor(10) == pytest.approx(0.25)
    assert Schedule(OptimConfig(schedule="constant", warmup=0.0), steps=10).factor(9) == 1.0


def test_groups_follow_the_schedule_in_proportion() -> None:
    groups = [{"peak_lr": 1.0, "lr": 0.0}, {"peak_lr": 0.1, "lr": 0.0}]
    rate = Schedule(OptimConfig(lr=1.0, warmup=0.5), steps=10).apply(groups, 1)
    assert rate == pytest.approx(0.4)
    assert [g["lr"] for g in groups] == pytest.approx([0.4, 0.04])


@pytest.mark.parametrize(
    ("values", "flag"),
    [({"batch_size": 0}, "batch-size"), ({"epochs": 0}, "epochs"), ({"lr": -1.0}, "lr"), ({"lr": math.nan}, "lr"),
     ({"warmup": 1.5}, "warmup"), ({"schedule": "linear"}, "schedule")],
)  # fmt: skip
def test_impossible_settings_are_refused_by_flag(values: dict[str, float], flag: str) -> None:
    with pytest.raises(ConfigError, match=rf"--optim\.{flag}"):
        OptimConfig(**values)
