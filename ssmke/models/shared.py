"""The shared encoder: what image tokens and text tokens both pass through, never at once.

`SharedBlock` (S-SMKE) is one pre-norm Transformer block; `SharedMLP` (Transformer SHRe) an MLP on the [CLS];
`SharedNothing` the [CLS] as it is: each side has its projection alone (CLIP, LiT, linear alignment of frozen towers).
All return only what the losses use: the [CLS] of each level, by name. Notable:

- The output of the block is used at the [CLS] alone, so only the [CLS] asks: keys and values are computed for
  all tokens, the query, the output projection and the MLP for one. The result is that of the full block, for a
  fifth of its operations (4 d^2 n instead of 24 d^2 n + attention); a test compares the two.
- The hidden level is the [CLS] of the MLP's hidden layer before the activation (3072 wide in the base recipe).
- Query and key-value projections are separate `nn.Linear`, because ZeRO-3 gathers parameters per module call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmke.errors import ConfigError

Levels = dict[str, Tensor]
"""[CLS] by level: "output" [B, D], "hidden" [B, 4D] and, for the MLP, "input" [B, D]."""


@dataclass
class SharedConfig:
    """The shared encoder (thesis, chapter 'Method')."""

    kind: Literal["block", "mlp", "none"] = "block"
    """`block`: one Transformer block (S-SMKE). `mlp`: an MLP on the [CLS] (Transformer SHRe). `none`: nothing is
    shared, each side ends in its projection."""
    dim: int = 768
    """Width of tokens and embedding."""
    heads: int = 12
    """Attention heads of the block."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over `dim`."""
    layer_scale: float = 0.2
    """Initial LayerScale of both residual branches of the block."""

    def __post_init__(self) -> None:
        if self.kind not in ("block", "mlp", "none"):
            raise ConfigError(f"--model.shared.kind {self.kind!r}: must be block, mlp or none")
        if self.kind == "block" and self.dim % self.heads:
            raise ConfigError(
                f"--model.shared.dim {self.dim} is not a multiple of --model.shared.heads {self.heads}"
            )


class LayerScale(nn.Module):
    """Multiplies each channel by a learned factor (Touvron et al. 2021, CaiT)."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class SharedBlock(nn.Module):
    """One pre-norm Transformer block, evaluated at the [CLS]."""

    levels = ("output", "hidden")

    def __init__(self, config: SharedConfig) -> None:
        super().__init__()
        dim, hidden = config.dim, int(config.dim * config.mlp_ratio)
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.scale1 = LayerScale(dim, config.layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.scale2 = LayerScale(dim, config.layer_scale)
        _init_linear(self)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Levels:
        """``tokens`` [B, N, D] with the [CLS] first, ``mask`` [B, N] true at real tokens."""
        batch, length, dim = tokens.shape
        x = self.norm1(tokens)
        q = self.q(x[:, :1]).view(batch, 1, self.heads, -1).transpose(1, 2)  # [B, h, 1, D/h]
        k, v = self.kv(x).view(batch, length, 2, self.heads, -1).permute(2, 0, 3, 1, 4)  # [B, h, N, D/h] each
        attention_mask = None if mask is None else mask[:, None, None, :]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)
        cls = tokens[:, 0] + self.scale1(self.proj(attended.reshape(batch, dim)))  # [B, D]
        hidden = self.fc1(self.norm2(cls))  # [B, 4D]
        return {"output": cls + self.scale2(self.fc2(F.gelu(hidden))), "hidden": hidden}


class SharedMLP(nn.Module):
    """MLP of three layers (input, hidden, output) on the [CLS]; the contrast uses all three.

    Adapts SHRe (Aytar et al. 2017) to Transformer encoders; 768 -> 3072 -> 768 gives the published 114.2M.
    """

    levels = ("output", "hidden", "input")

    def __init__(self, config: SharedConfig) -> None:
        super().__init__()
        hidden = int(config.dim * config.mlp_ratio)
        self.fc1 = nn.Linear(config.dim, hidden)
        self.fc2 = nn.Linear(hidden, config.dim)
        _init_linear(self)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Levels:
        """``tokens`` [B, N, D] with the [CLS] first; ``mask`` is not needed, only the [CLS] is read."""
        cls = tokens[:, 0]
        hidden = self.fc1(cls)
        return {"output": self.fc2(F.gelu(hidden)), "hidden": hidden, "input": cls}


class SharedNothing(nn.Module):
    """The [CLS] as it comes out of each side's projection; no parameters."""

    levels = ("output",)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Levels:
        """``tokens`` [B, N, D] with the [CLS] first; ``mask`` is not needed, only the [CLS] is read."""
        return {"output": tokens[:, 0]}


def _init_linear(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)


def build_shared(config: SharedConfig) -> SharedBlock | SharedMLP | SharedNothing:
    """The shared encoder that ``config.kind`` names."""
    if config.kind == "none":
        return SharedNothing()
    return SharedBlock(config) if config.kind == "block" else SharedMLP(config)
