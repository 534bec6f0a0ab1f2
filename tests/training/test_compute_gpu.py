"""On a CUDA device: the fast ways of a step in bf16 against the plain one, and no wait for the device in it.

Tolerances: losses 2e-2 relative between compiled and eager bf16, which round in different places; gradients by their
cosine.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ssmke.models.student import SSMKE
from ssmke.objectives.pretraining import SSMKEPretraining
from ssmke.training.compute import ComputeConfig, prepare_student
from tests.training.test_compute import FAST, PLAIN, batch_of, objective_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, there is none here"),
]
CUDA = torch.device("cuda", 0)


def step(model: SSMKE, config: ComputeConfig) -> tuple[float, torch.Tensor]:
    torch.compiler.reset()
    objective: SSMKEPretraining = objective_of(model, CUDA).to(CUDA, torch.bfloat16)
    prepare_student(objective.student, config, device=CUDA, zero_stage=2, say=lambda line: None)
    losses: Any = objective(batch_of(0, packed=config.pack_text).to(CUDA))
    losses["loss"].backward()
    gradient = torch.cat([p.grad.flatten().float() for p in objective.parameters() if p.grad is not None])
    return float(losses["loss"].detach()), gradient


@pytest.mark.parametrize("name", FAST)
def test_a_fast_step_in_bf16_is_the_plain_one(name: str, model: SSMKE) -> None:
    (plain, expected), (fast, found) = step(model, PLAIN), step(model, FAST[name])
    assert fast == pytest.approx(plain, rel=2e-2)
    assert float(torch.nn.functional.cosine_similarity(found, expected, dim=0)) > 0.99


def test_a_step_never_waits_for_the_device(model: SSMKE) -> None:
    objective = objective_of(model, CUDA).to(CUDA)
    batches = [batch_of(number, packed=True).to(CUDA) for number in range(3)]
    losses: Any = objective(batches[0])
    losses["loss"].backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches[1:]:
            losses = objective(batch)
            losses["loss"].backward()
            objective.remember(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
