"""The DeepSpeed engine around an `Objective`: one call is one optimiser step on one local batch.

Single pass without accumulation; with accumulation one pass for each micro-batch, or the two passes that keep all
negatives (see `objectives.pretraining`). Nothing here synchronises with the device: losses come back as tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ssmke.data.batch import Batch
from ssmke.objectives.gather import rank
from ssmke.objectives.objective import Objective
from ssmke.objectives.pretraining import Losses, Stage
from ssmke.training.ds_config import EngineConfig
from ssmke.training.optimizer import OptimConfig, Schedule, build_optimizer, parameter_groups

Trained = TypeVar("Trained", bound=Objective)


class Engine(Generic[Trained]):
    """Trains an `Objective` under DeepSpeed."""

    def __init__(self, module: Trained, config: EngineConfig, optim: OptimConfig, schedule: Schedule) -> None:
        import deepspeed
        from deepspeed.accelerator import get_accelerator

        self.config = config
        self.schedule = schedule
        self.device = torch.device(get_accelerator().current_device_name())
        groups = parameter_groups(module, optim)
        optimizer = build_optimizer(
            groups, optim, cuda=self.device.type == "cuda", offload=config.offloads_optimizer
        )
        self.deepspeed: Any
        self.deepspeed, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=config.json, dist_init_required=False
        )
        self.module: Trained = self.deepspeed.module
        _cast_batch_norms(self.module)
        self._dropped = False
        if not hasattr(self.deepspeed.optimizer, "overflow"):  # no ZeRO and fp32: the optimiser is torch's
            self._guard(self.deepspeed.optimizer)

    def step(self, batch: Batch, step: int) -> tuple[Losses, float]:
        """One optimiser step on this rank's part of the global batch; returns losses and learning rate.

        A step whose gradient is not finite on any rank changes no weight on all ranks; `applied` tells.
        """
        rate = self.schedule.apply(self.deepspeed.optimizer.param_groups, step)
        if self.config.accumulation == 1:
            losses = self._single_pass(batch)
        else:
            losses = self._accumulated(batch) if self.module.separable else self._two_passes(batch)
        # A target that is not a number would make every loss so for as long as the bank holds it.
        if self.applied:
            self.module.remember(batch)
        return losses, rate

    def _single_pass(self, batch: Batch) -> Losses:
        losses: Losses = self.deepspeed(batch)
        self.deepspeed.backward(losses["loss"])
        self.deepspeed.step()
        return {name: value.detach() for name, value in losses.items()}

    def _accumulated(self, batch: Batch) -> Losses:
        parts = [self._single_pass(micro) for micro in batch.split(self.config.accumulation)]
        return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}

    def _two_passes(self, batch: Batch) -> Losses:
        micro_batches = batch.split(self.config.accumulation)
        with torch.no_grad():
            pieces = [self.deepspeed(micro, Stage.EMBED) for micro in micro_batches]
            outputs = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
            losses, gradients = self.deepspeed(batch, Stage.GRADIENTS, outputs=outputs)
        for number, micro in enumerate(micro_batches):
            surrogate = self.deepspeed(
                micro, Stage.SURROGATE, gradients=_share(gradients, number, len(micro_batches))
            )
            self.deepspeed.backward(surrogate, scale_wrt_gas=False)
            self.deepspeed.step()
        detached: Losses = losses
        return detached

    @property
    def applied(self) -> bool:
        """Whether the last step changed the weights."""
        return not (self._dropped or getattr(self.deepspeed.optimizer, "overflow", False))

    def _guard(self, optimizer: torch.optim.Optimizer) -> None:
        """Lets ``optimizer`` leave out a step whose gradient is not finite, as DeepSpeed's own optimisers do."""
        update = optimizer.step

        def step(*args: Any, **options: Any) -> Any:
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            self._dropped = not bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients)))
            return None if self._dropped else update(*args, **options)

        optimizer.step = step  # type: ignore[method-assign]

    @contextmanager
    def whole_weights(self) -> Iterator[Trained]:
        """The module with every parameter whole on every rank, for evaluation (collective under ZeRO-3)."""
        self.module.eval()
        try:
            if self.config.zero_stage == 3:
                import deepspeed

                with deepspeed.zero.GatheredParameters(list(self.module.parameters())):
                    yield self.module
            else:
                yield self.module
        finally:
            self.module.train()

    def student_state(self) -> dict[str, Tensor] | None:
        """fp32 weights and buffers of the student on rank 0, None elsewhere; collective."""
        from deepspeed.utils import safe_get_full_fp32_param

        masters: dict[str, Tensor] = {}
        for name, parameter in self.module.student.named_parameters():
            master = safe_get_full_fp32_param(parameter)
            if master is not None and rank() == 0:
                masters[name] = master.detach().float().cpu().clone()
        with self.whole_weights() as module:
            if rank() != 0:
                return None
            state = {
                name: value.detach().cpu().clone() for name, value in module.student.state_dict().items()
            }
        return {
            name: value.float() if value.is_floating_point() else value
            for name, value in {**state, **masters}.items()
        }


def _cast_batch_norms(module: nn.Module) -> None:
    """Statistics in the dtype of the weights: DeepSpeed's bf16 casts parameters but not buffers."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.weight is not None:
            part.to(part.weight.dtype)


def _share(gradients: dict[str, Tensor], number: int, parts: int) -> dict[str, Tensor]:
    """The gradients of one micro-batch's outputs; those of temperatures and biases are spread evenly."""
    return {
        name: value / parts if name.startswith(("log_scale_", "bias_")) else value.chunk(parts)[number]
        for name, value in gradients.items()
    }
