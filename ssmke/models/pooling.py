"""One vector for an image or a caption, of all its tokens: what frozen towers hand on (SAIL, arXiv 2412.04616).

`cls` is the first token, `mean` that of the others (patches or map cells; words and [SEP]), `cls+mean` both side by
side.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Pool = Literal["none", "cls", "mean", "cls+mean"]
POOLS: tuple[Pool, ...] = ("none", "cls", "mean", "cls+mean")


def pooled_width(dim: int, pool: Pool) -> int:
    """Width of what goes on of tokens that are ``dim`` wide."""
    return 2 * dim if pool == "cls+mean" else dim


def pool_tokens(tokens: Tensor, mask: Tensor | None, pool: Pool) -> Tensor:
    """Tokens [B, N, D], [CLS] first, to one vector [B, 1, W]; ``mask`` [B, N]: true at real tokens, None: all are."""
    if pool == "none":
        return tokens
    cls = tokens[:, :1]  # [B, 1, D]
    if pool == "cls":
        return cls
    others = tokens[:, 1:]
    if mask is None:
        mean = others.mean(dim=1, keepdim=True)
    else:
        real = mask[:, 1:, None].to(tokens.dtype)  # [B, N - 1, 1]
        mean = (others * real).sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True).clamp(min=1)
    return mean if pool == "mean" else torch.cat([cls, mean], dim=-1)
