"""The sigmoid loss over cosine logits (SigLIP, Zhai et al. 2023, arXiv 2303.15343, eq. 1): every pair by itself.

For rows ``r_i`` and columns ``c_j``, L2-normalised, a logit scale ``s`` and a bias ``b``:

    loss = -1/B sum_i sum_{j not masked for i} log sigmoid(z_ij (s r_i.c_j + b)),   z_ij = 1 where j = y(i), else -1

No pair knows of another, so there is no softmax to sum up first: a block of rows meets all columns once, both
directions are in it, and other ranks' columns only add terms. The bias begins far below 0 (-10), because of B x M pairs
only B match. Columns that show the same image as a row without being its match say neither yes nor no: they are left
out.

How and at what cost: as in `cross_entropy`, whose blocks and columns these are. The gradient is made in the forward
pass, the arithmetic is fp32 also under autocast, nothing of size [B, M] outlives a block, and there is no second
derivative. 3 products, whatever the size of a block (1 without gradients). Half of ``max_logits`` are logits, half the
room for their losses. `cross_entropy.loss_bytes` is never less than what this takes; beside other ranks only the
columns are gathered, not the rows too, and it is about half.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssmke.objectives.cross_entropy import (
    MAX_LOGITS,
    Columns,
    back_through_unit,
    block_size,
    row_gradient,
    scaled_gradients,
    to_unit,
)


class _Options(NamedTuple):
    max_logits: int
    unit: bool
    """Columns are to be normalised here."""
    gradients: tuple[bool, bool, bool, bool]
    """Of rows, columns, scale, bias."""


class _Pairs(torch.autograd.Function):
    """Every row with every column."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        columns: Tensor,
        scale: Tensor,
        bias: Tensor,
        labels: Tensor,
        row_ids: Tensor | None,
        column_ids: Tensor,
        options: _Options,
    ) -> Tensor:
        dtype = torch.promote_types(rows.dtype, torch.float32)
        need_rows, need_columns, need_scale, need_bias = options.gradients
        c, lengths = columns, None
        if options.unit:
            c, lengths = to_unit(columns.to(dtype))
        every = Columns([c], dtype, options.max_logits)
        count = rows.shape[0]
        # Two buffers: the logits are needed by the loss and by the gradient.
        size = block_size(count, every.count, options.max_logits // 2)
        logits, work = rows.new_empty(2, size, every.count, dtype=dtype)
        s, b, zero = scale.to(dtype).reshape(()), bias.to(dtype).reshape(()), rows.new_zeros((), dtype=dtype)
        loss, d_scale, d_bias = rows.new_zeros(3, dtype=dtype)
        d_rows = torch.empty_like(rows, dtype=dtype) if need_rows else None
        d_columns = torch.zeros_like(c, dtype=dtype) if need_columns else None
        for begin in range(0, count, size):
            part = slice(begin, min(begin + size, count))
            (x, length), label = to_unit(rows[part].to(dtype)), labels[part, None]
            e = logits[: x.shape[0]]
            own = every.logits(x * s, labels[part], None if row_ids is None else row_ids[part], column_ids, e)
            own = own + b
            # The match is taken apart, so that what is left is of one sign; masked columns are -inf already.
            e.add_(b).scatter_(1, label, float("-inf"))
            # log(e^l + 1) = -log sigmoid(-l), exact at both ends.
            loss += torch.logaddexp(e, zero, out=work[: e.shape[0]]).sum(1).sum()
            loss += torch.logaddexp(-own, zero).sum()
            if not any(options.gradients):
                continue
            e.sigmoid_().scatter_(1, label, -torch.sigmoid(-own))
            if need_bias:
                d_bias += e.sum(1).sum() / count
            if need_rows or need_scale:
                g = every.weighted_sum(e).div_(count)
                d_scale += row_gradient(g, x, length, s, None if d_rows is None else d_rows[part])
            if d_columns is not None:
                d_columns.addmm_(e.T, x * (s / count))
        if d_columns is not None and lengths is not None:
            for begin in range(0, every.count, size):
                g, unit = d_columns[begin : begin + size], c[begin : begin + size]
                back_through_unit(g, unit, lengths[begin : begin + size], (g * unit).sum(1, keepdim=True))
        ctx.save_for_backward(
            d_rows,
            d_columns,
            d_scale.reshape(scale.shape) if need_scale else None,
            d_bias.reshape(bias.shape) if need_bias else None,
        )
        return loss / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*scaled_gradients(ctx.saved_tensors, grad), None, None, None, None)


def pairwise_sigmoid(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    bias: Tensor,
    labels: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor,
    max_logits: int = MAX_LOGITS,
    *,
    normalise_columns: bool = False,
) -> Tensor:
    """Sum over ``columns`` [M, D], mean over ``rows`` [B, D] of the sigmoid loss of a pair; any float type.

    Rows are normalised here; columns are already, unless ``normalise_columns``. ``scale``, ``bias``: one element each.
    ``labels`` [B]: the matching column of each row. ``row_ids`` [B] and ``column_ids`` [M]: image identity for masking;
    ``row_ids=None`` masks nothing. Returns a scalar in fp32 (in fp64 for fp64 rows).
    """
    enabled = torch.is_grad_enabled()
    first, second, third, fourth = (enabled and x.requires_grad for x in (rows, columns, scale, bias))
    options = _Options(max_logits, normalise_columns, (first, second, third, fourth))
    loss: Tensor = _Pairs.apply(rows, columns, scale, bias, labels, row_ids, column_ids, options)
    return loss
