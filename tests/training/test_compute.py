"""Every faster way to compute a step gives the losses and gradients of the plain one, and 200 steps of its curve.

Tolerances: 1e-5 on losses and 1e-4 of the largest gradient for one step in fp32; 2e-3 on each loss of 200 steps,
whose rounding errors AdamW amplifies.
"""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ssmke.data.batch import Batch
from ssmke.data.packing import pack
from ssmke.errors import ConfigError
from ssmke.models.student import SSMKE, StudentConfig
from ssmke.models.teachers import TeacherConfig, build_teacher
from ssmke.objectives.pretraining import LossConfig, Losses, SSMKEPretraining
from ssmke.training.compute import (
    ComputeConfig,
    prepare_online_teacher,
    prepare_student,
    student_blocks,
    why_not_compiled,
)

CPU = torch.device("cpu")
PLAIN = ComputeConfig(compile="off", pack_text=False)
FAST = {
    "packed": ComputeConfig(compile="off"),
    "checkpointed": ComputeConfig(compile="off", pack_text=False, checkpointing=True),
    "compiled": ComputeConfig(compile="on", pack_text=False),
    "packed, compiled and checkpointed": ComputeConfig(compile="on", checkpointing=True),
}


def batch_of(step: int, *, packed: bool) -> Batch:
    generator = torch.Generator().manual_seed(step)
    lengths = torch.randint(3, 15, (12,), generator=generator)
    ids = torch.randint(5, 17, (12, int(lengths.max())), generator=generator)
    return Batch(
        images=torch.randint(0, 256, (12, 3, 32, 32), generator=generator, dtype=torch.uint8),
        ids=ids,
        mask=torch.arange(ids.shape[1]) < lengths[:, None],
        image_ids=torch.arange(12) // 2,
        targets=torch.randn(12, 24, generator=generator),
        packing=(pack(lengths.tolist(), ids.shape[1], 16),) if packed else (),
    )


def objective_of(model: SSMKE, device: torch.device) -> SSMKEPretraining:
    torch.manual_seed(0)
    config = StudentConfig(**{**vars(model.config), "prediction_dim": 24})
    student = SSMKE(config, quiet=True).train()
    student.load_state_dict(model.state_dict(), strict=False)
    return SSMKEPretraining(student, LossConfig(bank_size=40), device)


@pytest.fixture
def objective(model: SSMKE) -> SSMKEPretraining:
    return objective_of(model, CPU)


def prepared(objective: SSMKEPretraining, config: ComputeConfig) -> SSMKEPretraining:
    torch.compiler.reset()
    other = copy.deepcopy(objective)
    said: list[str] = []
    prepare_student(other.student, config, device=CPU, zero_stage=0, say=said.append)
    assert said == []
    return other


def gradients(objective: SSMKEPretraining, config: ComputeConfig) -> tuple[Losses, dict[str, torch.Tensor]]:
    module = prepared(objective, config)
    losses: Any = module(batch_of(0, packed=config.pack_text))
    losses["loss"].backward()
    return losses, {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def curve(objective: SSMKEPretraining, config: ComputeConfig) -> list[float]:
    module = prepared(objective, config)
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3, betas=(0.9, 0.98), eps=1e-6)
    values = []
    for step in range(200):
        batch = batch_of(step % 8, packed=config.pack_text)
        losses: Any = module(batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        module.remember(batch)
        values.append(losses["loss"].detach())
    return torch.stack(values).tolist()


@pytest.mark.parametrize(
    "name",
    # Compiling takes a minute here, and the last of them is compiled, too.
    [pytest.param(name, marks=pytest.mark.long) if name == "compiled" else name for name in FAST],
)
def test_one_step_gives_the_plain_losses_and_gradients(name: str, objective: SSMKEPretraining) -> None:
    (plain, expected), (fast, found) = gradients(objective, PLAIN), gradients(objective, FAST[name])
    for key, value in plain.items():
        torch.testing.assert_close(fast[key], value, rtol=1e-5, atol=1e-5)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(
            found[key], value, rtol=0, atol=1e-4 * float(value.abs().max() + 1), msg=key
        )


@pytest.mark.long
@pytest.mark.parametrize("name", FAST)
def test_two_hundred_steps_follow_the_plain_curve(name: str, objective: SSMKEPretraining) -> None:
    plain = curve(objective, PLAIN)
    assert plain[-1] < 0.7 * plain[0]
    assert curve(objective, FAST[name]) == pytest.approx(plain, rel=2e-3)


def test_a_checkpointed_step_keeps_less(objective: SSMKEPretraining) -> None:
    def kept(config: ComputeConfig) -> int:
        seen: dict[int, int] = {}

        def pack_hook(tensor: torch.Tensor) -> torch.Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        module = prepared(objective, config)
        with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda tensor: tensor):
            held: Any = module(batch_of(0, packed=config.pack_text))
        assert held["loss"].requires_grad
        return sum(seen.values())

    assert kept(FAST["checkpointed"]) < 0.7 * kept(PLAIN)


class _HostReads(TorchDispatchMode):
    """Counts operations that make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in (
            "_local_scalar_dense",
            "nonzero",
            "masked_select",
            "is_nonzero",
            "unique",
            "_unique2",
            "equal",
        ):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("config", [PLAIN, FAST["packed"]], ids=["padded", "packed"])
def test_a_step_never_waits_for_the_device(objective: SSMKEPretraining, config: ComputeConfig) -> None:
    module, batch = prepared(objective, config), batch_of(0, packed=config.pack_text)
    module.remember(batch)
    with _HostReads() as reads:
        losses: Any = module(batch)
        losses["loss"].backward()
        module.remember(batch)
    assert reads.found == {}
    with _HostReads() as reads:
        float(losses["loss"].detach())
    assert reads.found == {"_local_scalar_dense": 1}


def test_blocks_of_both_encoders_are_found_and_keep_their_names(objective: SSMKEPretraining) -> None:
    before = list(objective.state_dict())
    assert len(list(student_blocks(objective.student))) == 4
    module = prepared(objective, FAST["packed, compiled and checkpointed"])
    assert list(module.state_dict()) == before


def test_what_cannot_be_compiled_is_said_in_one_line(
    objective: SSMKEPretraining, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said: list[str] = []
    on = ComputeConfig(compile="on")
    prepare_student(objective.student, on, device=CPU, zero_stage=3, say=said.append)
    assert said == [
        "not compiled: ZeRO-3 gathers the parameters of each layer by hooks that torch.compile cannot look through"
    ]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert why_not_compiled(on, CPU, 2) == "there is no C++ compiler (install g++)"
    assert why_not_compiled(ComputeConfig(), CPU, 2) == ""
    cuda = torch.device("cuda")
    assert "no C compiler" in str(why_not_compiled(ComputeConfig(), cuda, 2))
    monkeypatch.setenv("CC", "cc")
    assert why_not_compiled(ComputeConfig(), cuda, 2) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "triton is not installed" in str(why_not_compiled(ComputeConfig(), cuda, 2))


def test_an_online_teacher_computes_in_the_format_of_the_student() -> None:
    vit = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    config = TeacherConfig("vit_tiny_patch16_224", weights="none", timm_kwargs=dict(vit))
    teacher = build_teacher(config, quiet=True)
    images = batch_of(0, packed=False).images
    digest, exact = teacher.digest, teacher(images)
    prepare_online_teacher(teacher, ComputeConfig(compile="on"), device=CPU, dtype="bf16")
    rounded = teacher(images)
    assert rounded.dtype == torch.float32
    assert (rounded.bfloat16() == rounded).all()
    assert float(torch.nn.functional.cosine_similarity(rounded, exact).min()) > 0.999
    assert teacher.digest == digest


def test_a_wrong_wish_is_refused_by_flag() -> None:
    with pytest.raises(ConfigError, match=r"--compute\.compile 'maybe': must be auto, on or off"):
        ComputeConfig(compile="maybe")  # type: ignore[arg-type]
