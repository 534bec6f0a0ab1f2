"""Sentences and pairs as token batches: tokenised once, padded to the longest of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_AT_ONCE = 10_000


@dataclass(frozen=True)
class TokenTexts:
    """Token ids of texts, and which of their tokens are of the second sentence."""

    ids: list[list[int]]
    types: list[list[int]]
    pad: int

    def batch(self, rows: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """ids, mask (true at real tokens) and types, [B, L] each, of the texts numbered ``rows``."""
        longest = max(len(self.ids[row]) for row in rows)
        ids = torch.full((len(rows), longest), self.pad, dtype=torch.int64)
        types = torch.zeros_like(ids)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for place, row in enumerate(rows):
            length = len(self.ids[row])
            ids[place, :length] = torch.tensor(self.ids[row])
            types[place, :length] = torch.tensor(self.types[row])
            mask[place, :length] = True
        return ids.to(device), mask.to(device), types.to(device)


def tokenize_texts(
    tokenizer: PreTrainedTokenizerBase,
    first: Sequence[str],
    second: Sequence[str] | None,
    max_tokens: int,
) -> TokenTexts:
    """[CLS] first [SEP] second [SEP]; of a pair that is too long, the longer sentence is cut."""
    ids: list[list[int]] = []
    types: list[list[int]] = []
    for start in range(0, len(first), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        encoded = tokenizer(
            list(first[part]),
            None if second is None else list(second[part]),
            truncation="longest_first",
            max_length=max_tokens,
            return_token_type_ids=True,
        )
        ids += encoded["input_ids"]
        types += encoded["token_type_ids"]
    return TokenTexts(ids, types, int(tokenizer.pad_token_id))
