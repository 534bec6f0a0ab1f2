"""Distillation losses against float64 references, alone and with a bank."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ssmke.objectives.distillation import contrastive_distillation, kl_distillation, mse_distillation


def three(count: int = 6, dim: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, dim, generator=generator) for _ in range(3))  # type: ignore[return-value]


def unit(x: Tensor) -> np.ndarray:
    array = x.double().numpy()
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


def test_mse_is_the_mean_over_elements_and_directions() -> None:
    image, text, target = three()
    a, b, t = (x.double().numpy() for x in (image, text, target))
    expected = (((a - t) ** 2).mean() + ((b - t) ** 2).mean()) / 2
    assert float(mse_distillation(image, text, target)) == pytest.approx(expected, rel=1e-5)


def test_kl_is_from_teacher_to_student_per_row() -> None:
    image, text, target = three()

    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x - x.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)

    teacher = softmax(target.double().numpy())
    expected = 0.0
    for student in (image, text):
        q = softmax(student.double().numpy())
        expected += (teacher * (np.log(teacher) - np.log(q))).sum(axis=1).mean() / 2
    assert float(kl_distillation(image, text, target)) == pytest.approx(expected, rel=1e-5)
    assert float(kl_distillation(target, target, target)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("with_bank", [False, True])
def test_contrastive_equals_the_reference(with_bank: bool) -> None:
    image, text, target = three()
    ids = torch.tensor([0, 1, 2, 2, 3, 4])
    bank_rows, bank_ids = torch.randn(9, 5, generator=torch.Generator().manual_seed(9)), torch.arange(9) + 3
    bank = (torch.from_numpy(unit(bank_rows)).float(), bank_ids) if with_bank else None
    scale = 1 / 0.07
    ours = contrastive_distillation(image, text, target, torch.tensor([scale]), ids, bank)

    columns, column_ids = unit(target), ids.tolist()
    if with_bank:
        columns, column_ids = np.concatenate([columns, unit(bank_rows)]), column_ids + bank_ids.tolist()
    total = 0.0
    for prediction in (image, text):
        for i, row in enumerate(unit(prediction)):
            kept = [j for j in range(len(columns)) if j == i or column_ids[j] != ids[i]]
            logits = np.array([scale * row @ columns[j] for j in kept])
            total += np.log(np.exp(logits).sum()) - scale * row @ columns[i]
    assert float(ours) == pytest.approx(total / 12, rel=1e-4)


def test_the_bank_makes_the_task_harder_but_never_by_the_image_itself() -> None:
    target = torch.eye(4)
    ids = torch.arange(4)
    scale = torch.tensor([10.0])
    alone = contrastive_distillation(target, target, target, scale, ids)
    others = contrastive_distillation(target, target, target, scale, ids, (torch.eye(4), ids + 10))
    itself = contrastive_distillation(target, target, target, scale, ids, (torch.eye(4), ids))
    assert float(others) > float(alone) + 0.5
    # The bank's rows of the other three images are negatives as in the batch; its own row is masked.
    expected = np.log1p(6 * np.exp(-10))
    assert float(itself) == pytest.approx(expected, rel=1e-2)
