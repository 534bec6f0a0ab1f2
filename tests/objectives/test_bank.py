"""The target bank: first in first out, valid from the first row, exact through a checkpoint."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmke.errors import CheckpointError
from ssmke.objectives.bank import TargetBank


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.lists(st.integers(1, 12), max_size=8))
def test_holds_the_newest_rows_whatever_the_batch(size: int, batches: list[int]) -> None:
    bank = TargetBank(size, 2)
    pushed: list[int] = []
    for batch in batches:
        ids = torch.arange(len(pushed), len(pushed) + batch)
        bank.push(torch.stack([ids.float(), -ids.float()], dim=1), ids)
        pushed += ids.tolist()
    rows, ids = bank.columns()
    assert sorted(ids.tolist()) == pushed[-size:]
    assert torch.equal(rows[:, 0], ids.float())


def test_an_empty_bank_has_no_columns() -> None:
    rows, ids = TargetBank(65_536, 8).columns()
    assert rows.shape == (0, 8)
    assert len(ids) == 0


def test_its_columns_are_not_copied() -> None:
    bank = TargetBank(8, 4)
    bank.push(torch.eye(4), torch.arange(4))
    rows, ids = bank.columns()
    assert rows.data_ptr() == bank.rows.data_ptr()
    assert ids.data_ptr() == bank.ids.data_ptr()


@pytest.mark.parametrize("pushes", [2, 5])
def test_a_restored_bank_goes_on_as_if_never_stopped(pushes: int) -> None:
    def push(bank: TargetBank, number: int) -> None:
        bank.push(torch.full((3, 4), float(number)), torch.arange(3) + 10 * number)

    unbroken, before, after = (TargetBank(7, 4) for _ in range(3))
    for number in range(pushes):
        push(unbroken, number)
        push(before, number)
    after.load_state_dict(before.state_dict())
    for number in range(pushes, pushes + 3):
        push(unbroken, number)
        push(after, number)
    assert torch.equal(unbroken.columns()[0], after.columns()[0])
    assert torch.equal(unbroken.columns()[1], after.columns()[1])


def test_a_bank_of_another_size_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match=r"--loss\.bank-size"):
        TargetBank(8, 4).load_state_dict(TargetBank(7, 4).state_dict())


def test_a_bank_that_holds_every_image_takes_no_copies() -> None:
    bank = TargetBank(4, 2)
    bank.push(torch.eye(4)[:, :2], torch.arange(4))
    bank.whole = True
    bank.push(torch.ones(3, 2), torch.arange(3))
    assert bank.columns()[1].tolist() == [0, 1, 2, 3]
    copy = TargetBank(4, 2)
    copy.load_state_dict(bank.state_dict())
    assert copy.whole
