"""Batches reach the device whole, whether or not they are copied beside a running step."""

from __future__ import annotations

import pytest
import torch

from ssmke.data.batch import Batch
from ssmke.training.transfer import Transfer


def batch_of(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        images=torch.randint(0, 256, (64, 3, 64, 64), generator=generator, dtype=torch.uint8),
        ids=torch.randint(0, 99, (64, 9), generator=generator),
        mask=torch.ones(64, 9, dtype=torch.bool),
        image_ids=torch.arange(64),
        targets=torch.randn(64, 8, generator=generator),
        keys=("a#0",),
        packing=(torch.randint(-1, 9, (3, 16), generator=generator),),
        kept=torch.randint(0, 9, (64, 4), generator=generator),
    )


def check(moved: Batch, original: Batch) -> None:
    assert moved.keys == original.keys
    for here, there in zip(moved.tensors(), original.tensors(), strict=True):
        assert torch.equal(here.cpu(), there)


def test_every_tensor_of_a_batch_is_moved() -> None:
    batch = batch_of(0)
    assert len(batch.tensors()) == 7
    check(Transfer(torch.device("cpu"))(batch), batch)
    assert {t.device.type for t in batch.to(torch.device("meta")).tensors()} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, there is none here")
def test_copies_beside_running_work_arrive_whole() -> None:
    device = torch.device("cuda", 0)
    transfer, busy = Transfer(device), torch.randn(4096, 4096, device=device)
    for seed in range(8):
        original = batch_of(seed)
        for _ in range(20):
            busy = torch.tanh(busy @ busy)
        moved = transfer(original.pin_memory())
        assert moved.images.device == device
        check(moved, original)
        del moved
