"""S-SMKE's training objective: L = L_KD + L_CL, as one module that owns every trained parameter.

    student(batch) -> [CLS] per level, predictions -> contrast per level (averaged) + distillation -> losses

Everything with parameters lives in `SSMKEPretraining`, and everything that touches them happens in its
`forward`: under ZeRO-3 a parameter is empty anywhere else. The frozen teacher is not here; its targets come
with the batch, from the cache or from the online teacher alike.

Gradient accumulation must not shrink the set of negatives, so it runs in two passes (GradCache, Gao et al.
2021; open_clip's accum-freq): `EMBED` all micro-batches without gradient, differentiate the loss of the whole
batch with respect to the outputs (`GRADIENTS`), then per micro-batch back-propagate ``sum(output * gradient)``
(`SURROGATE`). Costs one more forward pass; gives the gradient of the one big batch exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Literal

import torch
from torch import Tensor, nn

from ssmke.data.batch import Batch
from ssmke.errors import ConfigError
from ssmke.models.student import SSMKE, Outputs
from ssmke.objectives.bank import TargetBank
from ssmke.objectives.contrast import (
    MAX_LOGITS,
    image_text_contrast,
    normalise,
    sigmoid_image_text_contrast,
)
from ssmke.objectives.distillation import contrastive_distillation, kl_distillation, mse_distillation
from ssmke.objectives.gather import all_gather
from ssmke.objectives.objective import Objective

Losses = dict[str, Tensor]
"""Scalars by name; "loss" is the sum that is minimised, "scale.*" the temperatures, "bias.*" the sigmoid's."""

LOG_SCALE_INIT = math.log(1 / 0.07)
LOG_SCALE_RANGE = (0.0, math.log(100.0))
SIGMOID_LOG_SCALE_INIT = math.log(10.0)
SIGMOID_BIAS_INIT = -10.0
"""Zhai et al. 2023, section 3.2: nearly all pairs are negative, and training should not begin by unlearning that."""


@dataclass
class LossConfig:
    """Which losses train the student (thesis: L = L_KD + L_CL, contrastive + bank, both levels)."""

    distillation: Literal["none", "mse", "kl", "contrastive"] = "contrastive"
    """How the student learns from the teacher; `kl` needs a teacher with class logits."""
    bank: Literal["none", "fifo", "cache"] = "fifo"
    """Targets of earlier batches as negatives; `cache` fills the bank from the target cache at step 0."""
    bank_size: int = 65_536
    """Rows of the bank (G)."""
    contrast: Literal["output", "all"] = "all"
    """Contrast on the shared encoder's output, or averaged over all its levels."""
    pairing: Literal["softmax", "sigmoid"] = "softmax"
    """How the contrast judges pairs: a pair among all others of its image or caption (CLIP), or by itself (SigLIP)."""
    mask_same_image: bool = True
    """Other captions of an image are not its negatives (False: the thesis' behaviour)."""
    max_logits: int = MAX_LOGITS
    """Logits held at once by a loss; larger blocks are computed in chunks."""

    def __post_init__(self) -> None:
        for flag, value, choices in (
            ("distillation", self.distillation, ("none", "mse", "kl", "contrastive")),
            ("bank", self.bank, ("none", "fifo", "cache")),
            ("contrast", self.contrast, ("output", "all")),
            ("pairing", self.pairing, ("softmax", "sigmoid")),
        ):
            if value not in choices:
                raise ConfigError(f"--loss.{flag} {value!r}: must be one of {', '.join(choices)}")
        if self.bank_size < 1:
            raise ConfigError(f"--loss.bank-size {self.bank_size}: must be at least 1 (or --loss.bank none)")

    @property
    def uses_bank(self) -> bool:
        """Whether a bank takes part in the loss."""
        return self.distillation == "contrastive" and self.bank != "none"


class Stage(Enum):
    """What one call of `SSMKEPretraining.forward` computes."""

    LOSS = "losses of a whole batch"
    EMBED = "student outputs of a micro-batch"
    GRADIENTS = "losses and output gradients of a whole batch, from its outputs"
    SURROGATE = "scalar whose gradient is a micro-batch's share"


class SSMKEPretraining(Objective):
    """Student, temperatures, biases and target bank; ``forward(batch)`` gives the losses."""

    student: SSMKE
    separable = False  # every pair of the batch is a negative of every other

    def __init__(self, student: SSMKE, config: LossConfig, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.student = student
        self.config = config
        self.levels = student.levels if config.contrast == "all" else student.levels[:1]
        self.scale_names = [*self.levels] + (["distillation"] if config.distillation == "contrastive" else [])
        self.bias_names = [*self.levels] if config.pairing == "sigmoid" else []
        # Shape [1]: a 0-d bf16 parameter breaks DeepSpeed's broadcast (0.19.8).
        for name in self.scale_names:
            value = SIGMOID_LOG_SCALE_INIT if name in self.bias_names else LOG_SCALE_INIT
            setattr(self, f"log_scale_{name}", nn.Parameter(torch.full((1,), value)))
        for name in self.bias_names:
            # What is learned is how far it is from where it begins: at -10 numbers in bf16 are 1/16 apart.
            setattr(self, f"bias_{name}", nn.Parameter(torch.zeros(1)))
        self.bank: TargetBank | None = None
        if config.distillation != "none":
            dim = student.config.prediction_dim
            if dim is None:
                raise ConfigError("--model.prediction-dim must be the teacher's width where it distils")
            if config.uses_bank:
                self.bank = TargetBank(config.bank_size, dim, device)

    def forward(
        self,
        batch: Batch,
        stage: Stage = Stage.LOSS,
        outputs: Outputs | None = None,
        gradients: dict[str, Tensor] | None = None,
    ) -> Losses | Outputs | tuple[Losses, dict[str, Tensor]] | Tensor:
        """See `Stage`. ``outputs``: for GRADIENTS, of the whole local batch; ``gradients``: for SURROGATE."""
        if stage is Stage.LOSS:
            return self.losses(self._student(batch), batch, self._scalars())
        if stage is Stage.EMBED:
            return self._student(batch)
        if stage is Stage.GRADIENTS:
            assert outputs is not None
            return self._gradients(outputs, batch)
        assert gradients is not None
        return self._surrogate(self._student(batch), gradients)

    def _student(self, batch: Batch) -> Outputs:
        (packing,) = batch.packing or (None,)
        outputs: Outputs = self.student(batch.images, batch.ids, batch.mask, packing, batch.kept)
        return outputs

    def _scalars(self) -> dict[str, Tensor]:
        """Log scales and biases by the names of their parameters."""
        names = [f"log_scale_{name}" for name in self.scale_names]
        names += [f"bias_{name}" for name in self.bias_names]
        return {name: getattr(self, name) for name in names}

    def losses(self, outputs: Outputs, batch: Batch, scalars: dict[str, Tensor]) -> Losses:
        """Losses of this rank's rows against all ranks' columns; averaged over ranks: the joined batch's."""
        config = self.config
        scales = {name: scalars[f"log_scale_{name}"].float().exp() for name in self.scale_names}
        biases = {name: SIGMOID_BIAS_INIT + scalars[f"bias_{name}"].float() for name in self.bias_names}
        losses: Losses = {}
        for level in self.levels:
            pairs: tuple[Tensor, ...] = outputs[f"image.{level}"], outputs[f"text.{level}"], scales[level]
            contrast: Callable[..., Tensor] = image_text_contrast
            if level in biases:
                contrast, pairs = sigmoid_image_text_contrast, (*pairs, biases[level])
            losses[f"contrast.{level}"] = contrast(
                *pairs, batch.image_ids, mask=config.mask_same_image, max_logits=config.max_logits
            )
        losses["contrast"] = torch.stack([losses[f"contrast.{level}"] for level in self.levels]).mean()
        losses["loss"] = losses["contrast"]
        if config.distillation != "none":
            losses["distillation"] = self._distillation(outputs, batch, scales)
            losses["loss"] = losses["contrast"] + losses["distillation"]
        losses |= {f"scale.{name}": value.detach().squeeze() for name, value in scales.items()}
        return losses | {f"bias.{name}": value.detach().squeeze() for name, value in biases.items()}

    def _distillation(self, outputs: Outputs, batch: Batch, scales: dict[str, Tensor]) -> Tensor:
        assert batch.targets is not None
        predictions = outputs["image.prediction"], outputs["text.prediction"]
        if self.config.distillation == "mse":
            return mse_distillation(*predictions, batch.targets)
        if self.config.distillation == "kl":
            return kl_distillation(*predictions, batch.targets)
        return contrastive_distillation(
            *predictions,
            batch.targets,
            scales["distillation"],
            batch.image_ids,
            None if self.bank is None else self.bank.columns(),
            mask=self.config.mask_same_image,
            max_logits=self.config.max_logits,
        )

    @torch.enable_grad()
    def _gradients(self, outputs: Outputs, batch: Batch) -> tuple[Losses, dict[str, Tensor]]:
        leaves = {name: value.detach().float().requires_grad_() for name, value in outputs.items()}
        scalars = {name: value.detach().clone().requires_grad_() for name, value in self._scalars().items()}
        losses = self.losses(leaves, batch, scalars)
        leaves |= scalars
        found = torch.autograd.grad(losses["loss"], list(leaves.values()), allow_unused=True)
        gradients = {name: grad for name, grad in zip(leaves, found, strict=True) if grad is not None}
        return {name: value.detach() for name, value in losses.items()}, gradients

    def _surrogate(self, outputs: Outputs, gradients: dict[str, Tensor]) -> Tensor:
        values = outputs | self._scalars()
        terms = [
            (values[name].float() * gradient.float()).sum()
            for name, gradient in gradients.items()
            if name in values
        ]
        return torch.stack(terms).sum()

    @torch.no_grad()
    def remember(self, batch: Batch) -> None:
        """Pushes the global batch's targets into the bank; called after the step that used the batch."""
        if self.bank is not None:
            assert batch.targets is not None
            self.bank.push(all_gather(normalise(batch.targets)), all_gather(batch.image_ids))
