"""ViT and BEiT on some of an image's patches, or on a smaller image, with the weights of the full size.

timm's models take whole images of one size. `adapt` gives a model that timm built a forward pass with two more
freedoms, ``model(images, kept)``, and leaves everything else as it is: no parameter, buffer or key of the state dict is
added, and a whole image of the full size takes timm's own path, bit for bit.

- Patches are chosen after positions are added, so a patch keeps the position that it has in the image.
- Absolute positions are resampled as timm does (``dynamic_img_size``), in each forward pass.
- BEiT's relative position bias is a table of offsets. A smaller grid reads the same table at the nearest offset of the
  full grid: half the side, every second offset. Nothing is interpolated, and the gradient goes to the entries that
  were read.

ZeRO-3 gathers a parameter only for the time of the forward of the module that owns it. So positions and [CLS] are
read in the model's own forward, and each attention reads its own table: what is passed on to it is the integer index,
in the place of timm's shared bias.

Cost: with chosen patches the bias differs from sample to sample, so BEiT's attention holds B x heads x (1+K)^2 of it
for each block, 25 MB in bf16 for 100 samples, 12 heads and half of 196 patches; a ViT has nothing of the kind.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.models.beit import Attention, Beit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


def adapt(model: nn.Module) -> bool:
    """Lets a plain ViT or BEiT of timm take fewer patches and smaller images; False where it cannot.

    timm builds models by name and class, so the class of the finished model is exchanged for one that adds no state.
    """
    if type(getattr(model, "patch_embed", None)) is not PatchEmbed:
        return False
    if type(model) is VisionTransformer and model.attn_pool is None:
        model.__class__ = PartialViT
        return True
    if type(model) is Beit and model.rel_pos_bias is None:
        model.__class__ = PartialBeit
        for block in model.blocks:
            block.attn.__class__ = IndexedAttention
        return True
    return False


def select(tokens: Tensor, kept: Tensor | None) -> Tensor:
    """Of ``tokens`` [B, N, D] those numbered in ``kept``, int64 [B, K]: [B, K, D]. None: all."""
    if kept is None:
        return tokens
    return tokens.gather(1, kept[:, :, None].expand(-1, -1, tokens.shape[2]))


class PartialViT(VisionTransformer):
    """timm's ViT; ``forward(images [B,3,S,S], kept [B,K])`` for any S that is a multiple of the patch size."""

    def forward(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        if kept is None and images.shape[2:] == self.patch_embed.img_size:
            whole: Tensor = super().forward(images)
            return whole
        patches, grid = _patches(self.patch_embed, images)  # [B, N, D]
        prefix = [token for token in (self.cls_token, self.reg_token) if token is not None]
        if self.pos_embed is not None:
            with_position = 0 if self.no_embed_class else self.num_prefix_tokens
            positions = _positions(self, grid, with_position)
            patches = patches + positions[:, with_position:]
            if with_position:
                prefix = [torch.cat(prefix, dim=1) + positions[:, :with_position]]
        tokens = _behind(prefix, select(patches, kept))  # [B, prefix + K, D]
        tokens = self.norm_pre(self.patch_drop(self.pos_drop(tokens)))
        tokens = self.blocks(tokens)
        out: Tensor = self.forward_head(self.norm(tokens))
        return out


class PartialBeit(Beit):
    """timm's BEiT; ``forward(images [B,3,S,S], kept [B,K])`` for any multiple S of the patch size up to its own."""

    def forward(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        if kept is None and images.shape[2:] == self.patch_embed.img_size:
            whole: Tensor = super().forward(images)
            return whole
        patches, grid = _patches(self.patch_embed, images)  # [B, N, D]
        cls: Tensor = self.cls_token
        if self.pos_embed is not None:
            positions = _positions(self, grid, 1)
            patches, cls = patches + positions[:, 1:], cls + positions[:, :1]
        tokens = self.pos_drop(_behind([cls], select(patches, kept)))  # [B, 1 + K, D]
        index = None
        if self.blocks[0].attn.window_size is not None:
            index = offset_index(self.patch_embed.grid_size, grid, images.device)  # [1 + N, 1 + N]
            index = index[None] if kept is None else _among(index, kept)  # [1 or B, 1 + K, 1 + K]
        for block in self.blocks:
            tokens = block(tokens, shared_rel_pos_bias=index)
        out: Tensor = self.forward_head(self.norm(tokens))
        return out


class IndexedAttention(Attention):
    """BEiT's attention that also takes an integer index into its own table in the place of a shared bias."""

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        if shared_rel_pos_bias is None or shared_rel_pos_bias.is_floating_point():
            plain: Tensor = super().forward(x, shared_rel_pos_bias)
            return plain
        batch, tokens, _ = x.shape
        qkv = self.qkv(x)
        if self.q_bias is not None:
            qkv = qkv + torch.cat((self.q_bias, self.k_bias, self.v_bias)).to(qkv.dtype)
        q, k, v = qkv.view(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)  # [B, H, N, D/H] each
        bias = F.embedding(shared_rel_pos_bias, self.relative_position_bias_table)  # [1 or B, N, N, H]
        bias = bias.permute(0, 3, 1, 2).contiguous()
        dropout = self.attn_drop.p if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        out: Tensor = self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))
        return out


def offset_index(full: tuple[int, int], grid: tuple[int, int], device: torch.device | str) -> Tensor:
    """Rows of BEiT's bias table between all tokens of a ``grid`` (rows, columns), for a table made for ``full``.

    An offset of d cells of g is the nearest whole number to d * G / g cells of the full grid's G, so for the full grid
    this is timm's own index.

    Returns:
        int64 [1 + N, 1 + N], [CLS] first; entry (i, j) is for query i and key j.
    """
    axes = []
    for cells, own in zip(grid, full, strict=True):
        place = torch.arange(cells, device=device)
        offset = place[:, None] - place[None, :]  # [g, g]
        axes.append(offset.sign() * ((2 * offset.abs() * own + cells) // (2 * cells)) + own - 1)
    rows, columns = axes
    patches = rows[:, None, :, None] * (2 * full[1] - 1) + columns[None, :, None, :]  # [g, g', g, g']
    count = grid[0] * grid[1]
    # Behind the offsets: from [CLS] to a patch, from a patch to [CLS], from [CLS] to itself.
    last = (2 * full[0] - 1) * (2 * full[1] - 1)
    index = F.pad(patches.reshape(count, count), (1, 0, 1, 0), value=last)
    index[1:, 0] = last + 1
    index[0, 0] = last + 2
    return index


def _among(index: Tensor, kept: Tensor) -> Tensor:
    """The index [1 + N, 1 + N] between [CLS] and the ``kept`` [B, K] patches of each sample: [B, 1 + K, 1 + K]."""
    tokens = F.pad(kept + 1, (1, 0))  # [B, 1 + K], [CLS] is token 0
    return index[tokens[:, :, None], tokens[:, None, :]]


def _patches(embed: Any, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """All patches of images of any size [B, N, D], and their rows and columns."""
    x = embed.proj(images)  # [B, D, rows, columns]
    grid = (x.shape[2], x.shape[3])
    return embed.norm(x.flatten(2).transpose(1, 2)), grid


def _positions(model: Any, grid: tuple[int, int], prefix: int) -> Tensor:
    positions: Tensor = resample_abs_pos_embed(
        model.pos_embed, list(grid), list(model.patch_embed.grid_size), num_prefix_tokens=prefix
    )
    return positions


def _behind(prefix: list[Tensor], patches: Tensor) -> Tensor:
    return torch.cat([*(token.expand(patches.shape[0], -1, -1) for token in prefix), patches], dim=1)
