"""A head of masked words for a teacher that was saved without one.

Soft targets need the teacher's distribution over words. Encoders that were saved bare have lost their head; then a new
one is fitted to the frozen encoder by masked language modelling on the run's own corpus, before the distillation, on
rank 0. It lies in the run folder (``head.safetensors``), so that a resumed run has the very same teacher. The output
matrix stays tied to the word embeddings, which are frozen: only the transform before it and the biases are fitted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from ssmke.errors import CheckpointError
from ssmke.training.unimodal.corpus import Corpus
from ssmke.training.unimodal.masked_lm import MaskedLM
from ssmke.training.unimodal.text_batches import IGNORED, Masking, masked_rows

FILE = "head.safetensors"
ROWS = 32
LR = 1e-3


def fit_head(
    teacher: MaskedLM,
    corpus: Corpus,
    masking: Masking,
    trained: int,
    steps: int,
    file: Path,
    device: torch.device,
    check: Callable[[], None],
) -> float:
    """Fits the head on the first ``trained`` rows and writes it to ``file``; gives the share of masked words it knows.

    The share is over the last tenth of the steps. ``check`` is called in every step and may raise.
    """
    parameters = teacher.head_parameters()
    values = list(parameters.values())
    optimizer = torch.optim.AdamW(values, lr=LR, weight_decay=0.01)
    random = np.random.default_rng(masking.seed)
    right = seen = 0
    for value in values:
        value.requires_grad_(True)
    for step in range(steps):
        check()
        rows = random.integers(trained, size=min(ROWS, trained)).tolist()
        batch = masked_rows(corpus, masking, rows, epoch=step).to(device)
        assert batch.labels is not None
        chosen = batch.labels != IGNORED
        with torch.no_grad():
            hidden = teacher(batch.ids)[chosen]  # [B * M, D]
        scores = teacher.logits(hidden)
        loss = F.cross_entropy(scores, batch.labels[chosen])
        optimizer.param_groups[0]["lr"] = LR * min(1.0, (step + 1) / 20) * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= steps - max(1, steps // 10):
            right += int((scores.argmax(-1) == batch.labels[chosen]).sum())
            seen += int(chosen.sum())
    for value in values:
        value.requires_grad_(False)
    save_file({name: value.detach().cpu().contiguous() for name, value in parameters.items()}, file)
    return right / seen


def load_head(teacher: MaskedLM, file: Path) -> None:
    """Gives the teacher the head that `fit_head` wrote. Raises `CheckpointError` where that is damaged."""
    try:
        state = load_file(file)
        with torch.no_grad():
            for name, parameter in teacher.head_parameters().items():
                parameter.copy_(state[name])
    except Exception as error:  # whatever a damaged file makes of itself
        raise CheckpointError(
            f"{file} is damaged ({type(error).__name__}: {error}): start a new run"
        ) from None
