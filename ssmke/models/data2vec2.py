"""The image encoder of data2vec 2.0 (Baevski et al. 2022, arXiv:2212.07525), without its pretraining parts.

A ViT-B/16 that differs from timm's in four points, which is why it is written out here:

- post-norm blocks: LayerNorm after each residual sum, so a block's output is already normalised;
- positions are fixed 2-D sine-cosine vectors, added to the patches only: the extra token has none;
- a LayerNorm before the first block;
- no final norm.

Masking, the convolutional decoder and the moving-average teacher serve pretraining only and are left out;
without masking fairseq's "context encoder" is this norm and, by its configuration, some of the blocks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import Mlp, resample_abs_pos_embed
from torch import Tensor, nn

from ssmke.models.patches import select


def sincos_positions(dim: int, grid: int) -> Tensor:
    """Fixed 2-D positions of MAE and data2vec 2.0: half a vector encodes the column, the other half the row.

    Returns:
        [1, grid * grid, dim], row by row.
    """
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies  # [G, D/4]
    one_axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # [G, D/2]
    column = one_axis[None, :, :].expand(grid, grid, -1)
    row = one_axis[:, None, :].expand(grid, grid, -1)
    return torch.cat([column, row], dim=2).reshape(1, grid * grid, dim).float()


class PostNormAttention(nn.Module):
    """Multi-head self-attention with one fused projection, as fairseq's AltAttention without ALiBi."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)  # [B, H, N, D/H]
        out: Tensor = self.proj(x.transpose(1, 2).reshape(batch, tokens, dim))
        return out


class PostNormBlock(nn.Module):
    """norm1(x + attention(x)), then norm2(that + MLP(that))."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attn = PostNormAttention(dim, heads)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attn(x))
        out: Tensor = self.norm2(x + self.mlp(x))
        return out


class Data2Vec2Image(nn.Module):
    """Image [B, 3, S, S] -> tokens [B, 1 + (S / patch)^2, dim] of the last block, the [CLS] token first.

    S may be any multiple of the patch size; positions are interpolated. With ``kept``, int64 [B, K], only those patches
    are looked at, and the tokens are [B, 1 + K, dim].

    Args:
        img_size: side S in pixels, a multiple of ``patch_size``.
        patch_size, embed_dim, depth, num_heads, mlp_ratio: as in timm; the defaults are the base model.
    """

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        if img_size % patch_size:
            raise ValueError(f"img_size {img_size} is not a multiple of patch_size {patch_size}")
        self.embed_dim = embed_dim
        self.patch_size = patch_size
        self.img_size = img_size
        self.patch_embed = nn.Conv2d(3, embed_dim, patch_size, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.register_buffer("positions", sincos_positions(embed_dim, self.grid))
        self.positions: Tensor
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.blocks = nn.Sequential(*(PostNormBlock(embed_dim, num_heads, mlp_ratio) for _ in range(depth)))
        self.apply(_init_like_bert)
        nn.init.normal_(self.cls_token)

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.img_size // self.patch_size

    def set_input_size(self, img_size: int) -> None:
        """Change the side in pixels; positions are interpolated, to stay in the range of training."""
        if img_size % self.patch_size:
            raise ValueError(f"img_size {img_size} is not a multiple of patch_size {self.patch_size}")
        old, new = self.grid, img_size // self.patch_size
        self.img_size = img_size
        self.positions = resample_abs_pos_embed(
            self.positions, new_size=[new, new], old_size=[old, old], num_prefix_tokens=0
        )

    def forward(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        x = self.patch_embed(images)  # [B, D, rows, columns]
        grid = list(x.shape[2:])
        positions = resample_abs_pos_embed(self.positions, grid, [self.grid, self.grid], num_prefix_tokens=0)
        x = select(x.flatten(2).transpose(1, 2) + positions.to(x.dtype), kept)  # [B, N or K, D]
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)  # [B, 1 + N or K, D]
        out: Tensor = self.blocks(self.norm(x))
        return out


def _init_like_bert(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
