"""Captions to token ids, padded to the longest of the batch.

Captions have 13 tokens on average: padding all to 64 would spend a fifth of the compute on padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenize(
    tokenizer: PreTrainedTokenizerBase, captions: Sequence[str], max_tokens: int
) -> tuple[Tensor, Tensor]:
    """Ids int64 [B, L] and mask bool [B, L], [CLS] to [SEP]; L is the longest caption's, at most ``max_tokens``."""
    encoded = tokenizer(list(captions), truncation=True, max_length=max_tokens)["input_ids"]
    longest = max(len(row) for row in encoded)
    ids = torch.full((len(encoded), longest), tokenizer.pad_token_id, dtype=torch.int64)
    for row, tokens in enumerate(encoded):
        ids[row, : len(tokens)] = torch.tensor(tokens)
    lengths = torch.tensor([len(tokens) for tokens in encoded])
    return ids, torch.arange(longest) < lengths[:, None]


def by_length(mask: Tensor, batch_size: int) -> Iterator[tuple[Tensor, int]]:
    """Rows of ``mask`` [B, L] in batches of like length, shortest first, and how long the longest of each is."""
    lengths = mask.sum(1)
    for rows in torch.argsort(lengths, stable=True).split(batch_size):
        yield rows, int(lengths[rows].max())
