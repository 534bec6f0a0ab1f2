"""Packed rows hold every token once, whole captions, in order, and little else."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from ssmke.data.packing import ROW, pack


@given(st.lists(st.integers(1, 64), min_size=1, max_size=80))
def test_each_caption_is_whole_and_in_one_row(lengths: list[int]) -> None:
    padded = max(lengths)
    rows = pack(lengths, padded, 64)
    owners = torch.where(rows >= 0, rows // padded, -1)
    for caption, length in enumerate(lengths):
        row, place = (owners == caption).nonzero(as_tuple=True)
        assert len(row) == length
        assert (row == row[0]).all()
        assert (place == torch.arange(int(place[0]), int(place[0]) + length)).all()
        assert (rows[row, place] == caption * padded + torch.arange(length)).all()
    assert (rows >= 0).sum() == sum(lengths)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=200))
def test_no_two_rows_would_fit_into_one(lengths: list[int]) -> None:
    filled = (pack(lengths, max(lengths), 64) >= 0).sum(dim=1)
    assert len(filled) < 2 or int(filled.sort().values[:2].sum()) > ROW


def test_captions_of_usual_length_leave_little_empty() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = (8 + torch.empty(512).exponential_(1 / 5, generator=generator).round().clamp(0, 30)).long()
    rows = pack(lengths.tolist(), int(lengths.max()), 64)
    assert float((rows < 0).float().mean()) < 0.04
    assert float(lengths.max() / lengths.float().mean()) > 2


def test_rows_have_one_width_until_a_caption_is_longer() -> None:
    assert pack([5, 9], 9, 512).shape == (1, ROW)
    assert pack([5, 65], 65, 512).shape == (1, 512)
    assert pack([5, 9], 9, 16).shape == (1, 16)
