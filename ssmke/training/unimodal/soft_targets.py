r"""Distilling a masked language model, as DistilBERT (Sanh et al. 2019, arXiv:1910.01108) and with its weights.

    loss = soft T^2 KL(softmax(t / T) || softmax(s / T)) + cosine (1 - cos(h_s, h_t)) + mlm CE(s, masked words)

s, t: scores of student and teacher for the same masked row, h: their last hidden states, each a mean over tokens; KL
over all of them or over the masked ones, CE over the masked ones. Rows are full and have equally many masked tokens, so
means over a batch are means over its micro-batches.

Scores take 4 bytes a token and word: 256 rows of 256 tokens of BERT are 8 GB for each side. They are therefore made
for `SCORES` numbers at a time, from the hidden states, and made again in the backward pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ssmke.data.batch import Batch
from ssmke.objectives.objective import Objective
from ssmke.objectives.pretraining import Losses
from ssmke.training.unimodal.masked_lm import MaskedLM
from ssmke.training.unimodal.recipes import SoftTargetConfig
from ssmke.training.unimodal.text_batches import IGNORED

SCORES = 1 << 26
"""Scores (tokens x words) that are held at once."""


class SoftTargetDistillation(Objective):
    """``forward(batch)`` gives "loss" and those of "soft", "cosine", "mlm" that count."""

    student: MaskedLM

    def __init__(
        self,
        student: MaskedLM,
        teacher: MaskedLM,
        config: SoftTargetConfig,
        masked: int,
        scores: int = SCORES,
    ) -> None:
        """``masked``: masked tokens of every row."""
        super().__init__()
        self.student = student
        self.config = config
        self._teacher = (teacher,)  # in a tuple: it is no submodule
        self._masked, self._scores = masked, scores

    def forward(self, batch: Batch) -> Losses:
        config, (teacher,) = self.config, self._teacher
        assert batch.labels is not None
        hidden = self.student(batch.ids)  # [B, L, D]
        with torch.no_grad():
            target = teacher(batch.ids)
        losses: Losses = {}
        if config.cosine:
            losses["cosine"] = 1 - F.cosine_similarity(hidden.float(), target.float(), dim=-1).mean()
        if config.soft or config.mlm:
            losses |= self._words(hidden, target, batch.labels)
        total = sum(getattr(config, name) * value for name, value in losses.items())
        assert isinstance(total, Tensor)
        return {"loss": total, **losses}

    def _words(self, hidden: Tensor, target: Tensor, labels: Tensor) -> Losses:
        """The losses on words. Hidden states [B, L, D], labels [B, L]."""
        config, count = self.config, labels.numel()
        masked = labels.shape[0] * self._masked
        if config.tokens == "masked" or not config.soft:
            # The same number in every row: sorted, not searched, so that the host need not know how many.
            order = torch.argsort((labels != IGNORED).int(), dim=1, descending=True, stable=True)
            place = order[:, : self._masked]  # [B, M]
            index = place[..., None].expand(-1, -1, hidden.shape[-1])
            hidden, target = hidden.gather(1, index), target.gather(1, index)  # [B, M, D]
            labels, count = labels.gather(1, place), masked
        hidden, target, labels = hidden.flatten(0, 1), target.flatten(0, 1), labels.flatten()  # [T, D], [T]
        size = max(1, self._scores // self.student.vocabulary)
        soft, mlm = hidden.new_zeros((), dtype=torch.float32), hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, len(labels), size):
            part = slice(start, start + size)
            arguments = hidden[part], target[part], labels[part]
            if len(labels) <= size:
                own, words = self._sums(*arguments)
            else:
                own, words = checkpoint(self._sums, *arguments, use_reentrant=False, preserve_rng_state=False)
            soft, mlm = soft + own, mlm + words
        losses: Losses = {}
        if config.soft:
            losses["soft"] = soft / count
        if config.mlm:
            losses["mlm"] = mlm / masked
        return losses

    def _sums(self, hidden: Tensor, target: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over tokens of T^2 KL and of the masked words' cross-entropy."""
        config, (teacher,) = self.config, self._teacher
        heat = config.temperature
        scores = self.student.logits(hidden).float()  # [t, V]
        soft = mlm = scores.new_zeros(())
        if config.soft:
            with torch.no_grad():
                wanted = F.log_softmax(teacher.logits(target).float() / heat, dim=-1)
            own = F.log_softmax(scores / heat, dim=-1)
            soft = heat**2 * F.kl_div(own, wanted, log_target=True, reduction="sum")
        if config.mlm:
            mlm = F.cross_entropy(scores, labels, ignore_index=IGNORED, reduction="sum")
        return soft, mlm
