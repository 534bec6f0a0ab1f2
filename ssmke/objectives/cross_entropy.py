"""Cross-entropy over cosine logits with the gradient made in the forward pass: the core of contrast and distillation.

For rows ``r_i`` and columns ``c_j``, L2-normalised, and a logit scale ``s``:

    loss = mean_i [ -s r_i.c_y(i) + log sum_{j not masked for i} exp(s r_i.c_j) ]

Columns that show the same image as a row without being its match are masked: an image with several captions must not
be its own negative.

How: a block of rows meets all columns, the logits of the block are turned into their softmax in place, and what they
add to the gradients of rows, columns and scale is taken at once; then the buffer serves the next block. Nothing of
size [B, M] outlives a block, and unlike with gradient checkpointing no product is computed twice. The backward pass
only multiplies by the incoming scalar, so there is no second derivative.
`symmetric_cross_entropy` takes both directions of a square problem from one matrix: 4 products instead of 6 (a column's
softmax has to know all rows, so the logits are made twice), 3 where one block holds all.

Columns may come in half precision (a bank); they are cast piece by piece, there is never an fp32 copy of the bank.

Costs, in tensors of the compute type (fp32, or fp64 for fp64 rows): the gradients (as large as the inputs that need
one) until the backward pass, and ``max_logits`` logits for as long as the forward pass takes. `loss_bytes` counts them.
Arithmetic is fp32 under autocast, too, which leaves products alone that write into a given tensor: a bf16 logit at
scale 100 has steps of 0.5. (On CUDA the products follow ``torch.backends.cuda.matmul.allow_tf32``.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MAX_LOGITS = 1 << 25
"""Logits held at once: 2^25 in fp32 are 128 MiB."""

_EPSILON = 1e-12
_PIECE = 1024
"""Columns per product on a CPU: a piece stays in its caches (measured: 8 to 25 % faster than all at once)."""


class _Options(NamedTuple):
    max_logits: int
    unit: bool
    """Rows are to be normalised here."""
    gradients: tuple[bool, bool, bool]
    """Of rows, columns, scale."""


class Columns:
    """Blocks of columns as one matrix [M, D] that is read in pieces of the compute type."""

    def __init__(self, blocks: Sequence[Tensor], dtype: torch.dtype, max_elements: int) -> None:
        self._blocks = [block for block in blocks if block.shape[0] > 0]
        self._dtype = dtype
        self.count = sum(block.shape[0] for block in blocks)
        self._on_cpu, self._dim = blocks[0].device.type == "cpu", blocks[0].shape[1]
        self._cast = _PIECE if self._on_cpu else max(_PIECE, max_elements // 4 // max(1, self._dim))
        casts = [block.shape[0] for block in blocks if block.dtype != dtype]
        self._buffer = blocks[0].new_empty(min(self._cast, max(casts, default=0)), self._dim, dtype=dtype)

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Places among the columns and their vectors; a piece is valid until the next one."""
        begin = 0
        for block in self._blocks:
            cast = block.dtype != self._dtype
            for piece in block.split(self._cast if cast or self._on_cpu else block.shape[0]):
                if cast:
                    piece = self._buffer[: piece.shape[0]].copy_(piece)
                yield slice(begin, begin + piece.shape[0]), piece
                begin += piece.shape[0]

    def logits(
        self, rows: Tensor, labels: Tensor, row_ids: Tensor | None, column_ids: Tensor, out: Tensor
    ) -> Tensor:
        """Writes the masked ``rows @ columns.T`` to ``out`` [R, M]; returns the own logits [R, 1]."""
        for place, piece in self.pieces():
            torch.mm(rows, piece.T, out=out[:, place])
        own = out.gather(1, labels[:, None])
        if row_ids is not None:
            step = _PIECE if self._on_cpu else -(-self.count // 4)
            for begin in range(0, self.count, step):
                place = slice(begin, begin + step)
                out[:, place].masked_fill_(row_ids[:, None] == column_ids[None, place], float("-inf"))
            out.scatter_(1, labels[:, None], own)
        return own

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """``weights @ columns``: [R, M] -> [R, D]."""
        total = weights.new_zeros(weights.shape[0], self._dim)
        for place, piece in self.pieces():
            total.addmm_(weights[:, place], piece)
        return total


def block_size(rows: int, columns: int, max_logits: int) -> int:
    """Rows of a block: as many as ``max_logits`` allows, but so that no small rest meets all columns alone."""
    most = max(1, max_logits // max(1, columns))
    return max(1, -(-rows // max(1, -(-rows // most))))


def to_unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised rows and their lengths [R, 1], as ``F.normalize`` does it."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / length.clamp_min(_EPSILON), length


def back_through_unit(gradient: Tensor, unit: Tensor, length: Tensor, dots: Tensor) -> Tensor:
    """In place: the gradient of a row from that of its direction; ``dots``: ``(gradient * unit).sum(-1)``."""
    gradient.addcmul_(unit, dots * (length >= _EPSILON), value=-1)
    return gradient.div_(length.clamp_min(_EPSILON))


def row_gradient(g: Tensor, x: Tensor, length: Tensor | None, s: Tensor, out: Tensor | None) -> Tensor:
    """From ``g``, the sum over columns of a cosine's gradient times the column: writes the rows' gradient to ``out``.

    Overwrites ``g``; returns the gradient of the scale. ``length``: of the rows before `to_unit`.
    """
    dots = (g * x).sum(1, keepdim=True)
    if out is not None:
        g.mul_(s)
        out.copy_(g if length is None else back_through_unit(g, x, length, dots * s))
    return dots.sum()


def scaled_gradients(gradients: Sequence[Tensor | None], factor: Tensor) -> list[Tensor | None]:
    return [None if gradient is None else gradient * factor for gradient in gradients]


class _Rows(torch.autograd.Function):
    """One direction: every row against all columns."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        columns: Tensor,
        scale: Tensor,
        labels: Tensor,
        row_ids: Tensor | None,
        column_ids: Tensor,
        bank: Tensor | None,
        options: _Options,
    ) -> Tensor:
        dtype = torch.promote_types(rows.dtype, torch.float32)
        need_rows, need_columns, need_scale = options.gradients
        every = Columns([columns] if bank is None else [columns, bank], dtype, options.max_logits)
        size = block_size(rows.shape[0], every.count, options.max_logits)
        buffer = rows.new_empty(size, every.count, dtype=dtype)
        s, count = scale.to(dtype).reshape(()), rows.shape[0]
        loss, d_scale = rows.new_zeros((), dtype=dtype), rows.new_zeros((), dtype=dtype)
        d_rows = torch.empty_like(rows, dtype=dtype) if need_rows else None
        d_columns = torch.zeros_like(columns, dtype=dtype) if need_columns else None
        for begin in range(0, count, size):
            part = slice(begin, min(begin + size, count))
            x, label = rows[part].to(dtype), labels[part]
            length = None
            if options.unit:
                x, length = to_unit(x)
            e = buffer[: x.shape[0]]
            own = every.logits(x * s, label, None if row_ids is None else row_ids[part], column_ids, e)
            top = e.amax(1, keepdim=True)
            total = e.sub_(top).exp_().sum(1, keepdim=True)  # [R, 1]
            loss += (total.log() + top - own).sum()
            if not any(options.gradients):
                continue
            # e / total is the softmax; the division is left to the smaller [R, D].
            e.scatter_add_(1, label[:, None], -total)
            weight = 1 / (total * count)
            if need_rows or need_scale:
                g = every.weighted_sum(e).mul_(weight)
                d_scale += row_gradient(g, x, length, s, None if d_rows is None else d_rows[part])
            if d_columns is not None:
                d_columns.addmm_(e[:, : columns.shape[0]].T, x * (weight * s))
        ctx.save_for_backward(d_rows, d_columns, d_scale.reshape(scale.shape) if need_scale else None)
        return loss / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*scaled_gradients(ctx.saved_tensors, grad), None, None, None, None, None)


class _Symmetric(torch.autograd.Function):
    """Both directions of pairs (row i, column i), from the same logits."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, ids: Tensor | None, options: _Options
    ) -> Tensor:
        dtype = torch.promote_types(rows.dtype, torch.float32)
        need_rows, need_columns, need_scale = options.gradients
        c, lengths = to_unit(columns.to(dtype))
        every = Columns([c], dtype, options.max_logits)
        count = rows.shape[0]
        # Two buffers: the logits are needed by both directions.
        size = block_size(count, count, options.max_logits // 2)
        logits, work = rows.new_empty(2, size, count, dtype=dtype)
        labels = torch.arange(count, device=rows.device)
        s = scale.to(dtype).reshape(())

        def block(begin: int) -> tuple[slice, Tensor, Tensor, Tensor, Tensor]:
            part = slice(begin, min(begin + size, count))
            x, length = to_unit(rows[part].to(dtype))
            e = logits[: x.shape[0]]
            row_ids, column_ids = (None, labels) if ids is None else (ids[part], ids)
            return part, x, length, e, every.logits(x * s, labels[part], row_ids, column_ids, e)

        def row_softmax(e: Tensor) -> tuple[Tensor, Tensor]:
            """Unnormalised in the work buffer, its sums; and the log of the sum of exponentials."""
            top = e.amax(1, keepdim=True)
            total = torch.sub(e, top, out=work[: e.shape[0]]).exp_().sum(1, keepdim=True)
            return total, total.log() + top

        loss, d_scale = rows.new_zeros((), dtype=dtype), rows.new_zeros((), dtype=dtype)
        # The least number instead of -inf: columns that are masked for all rows so far stay without NaN.
        tops, sums = c.new_full((count,), torch.finfo(dtype).min), c.new_zeros(count)
        for begin in range(0, count, size):
            part, x, length, e, own = block(begin)
            higher = torch.maximum(tops, e.amax(0))
            sums.mul_((tops - higher).exp_())
            sums += torch.sub(e, higher, out=work[: e.shape[0]]).exp_().sum(0)
            tops = higher
            loss += (row_softmax(e)[1] - 2 * own).sum() if not any(options.gradients) else -2 * own.sum()
        column_lse = sums.log() + tops
        loss += column_lse.sum()
        if not any(options.gradients):
            return loss / (2 * count)

        d_rows = torch.empty_like(rows, dtype=dtype) if need_rows else None
        d_columns = torch.zeros_like(c) if need_columns else None
        for begin in range(0, count, size):
            if size < count:
                part, x, length, e, own = block(begin)
            total, row_lse = row_softmax(e)
            loss += row_lse.sum()
            e.sub_(column_lse).exp_().addcmul_(work[: e.shape[0]], 1 / total)
            e.scatter_add_(1, labels[part, None], torch.full_like(own, -2.0))
            g = every.weighted_sum(e).div_(2 * count)
            d_scale += row_gradient(g, x, length, s, None if d_rows is None else d_rows[part])
            if d_columns is not None:
                d_columns.addmm_(e.T, x * (s / (2 * count)))
        if d_columns is not None:
            for begin in range(0, count, size):
                g, unit = d_columns[begin : begin + size], c[begin : begin + size]
                back_through_unit(g, unit, lengths[begin : begin + size], (g * unit).sum(1, keepdim=True))
        ctx.save_for_backward(d_rows, d_columns, d_scale.reshape(scale.shape) if need_scale else None)
        return loss / (2 * count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*scaled_gradients(ctx.saved_tensors, grad), None, None)


def _needed(*tensors: Tensor) -> tuple[bool, bool, bool]:
    enabled = torch.is_grad_enabled()
    first, second, third = (enabled and tensor.requires_grad for tensor in tensors)
    return first, second, third


def cosine_cross_entropy(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    labels: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor,
    max_logits: int = MAX_LOGITS,
    *,
    bank: Tensor | None = None,
    normalise_rows: bool = False,
) -> Tensor:
    """Mean cross-entropy of ``rows`` [B, D] against ``columns`` [M, D], L2-normalised, of any float type.

    ``labels`` [B]: the matching column of each row. ``row_ids`` [B] and ``column_ids`` [M + G]: image identity for
    masking; ``row_ids=None`` masks nothing. ``scale``: a tensor of one element. ``bank`` [G, D]: further columns, after
    the others, that get no gradient. ``normalise_rows``: rows are not normalised yet. Returns a scalar in fp32 (in
    fp64 for fp64 rows).
    """
    options = _Options(max_logits, normalise_rows, _needed(rows, columns, scale))
    loss: Tensor = _Rows.apply(rows, columns, scale, labels, row_ids, column_ids, bank, options)
    return loss


def symmetric_cross_entropy(
    rows: Tensor, columns: Tensor, scale: Tensor, ids: Tensor | None, max_logits: int = MAX_LOGITS
) -> Tensor:
    """Mean of `cosine_cross_entropy` of rows against columns and of columns against rows; pair i is (row i, column i).

    ``rows``, ``columns``: [B, D] of any float type, *not* normalised. ``ids`` [B]: image identity of the pairs for
    masking, or None. ``scale``: one element. Returns a scalar in fp32 (fp64 for fp64 rows).
    """
    options = _Options(max_logits, True, _needed(rows, columns, scale))
    loss: Tensor = _Symmetric.apply(rows, columns, scale, ids, options)
    return loss


def loss_bytes(
    rows: int,
    columns: int,
    dim: int,
    *,
    column_gradient: bool,
    max_logits: int = MAX_LOGITS,
    on_cpu: bool = False,
) -> int:
    """Peak bytes of one loss beyond its inputs, forward and backward, in fp32 arithmetic on one rank's device.

    ``rows``: pairs of this rank (B). ``columns``: what they meet, of all ranks, and the bank (M). ``dim``: D.
    ``column_gradient``: True counts `image_text_contrast` (both directions), False `contrastive_distillation` (both
    predictions, 2 B rows in all). Counted are the gradients that wait for the backward pass, their products with the
    incoming scalar, normalised or gathered copies, and the buffers of a block of rows; not the workspace of a
    library's matrix product. The buffers, about ``max_logits`` x 4.5 bytes, are free again when the loss is there.
    """
    one_rank = column_gradient and rows == columns
    waiting = waiting_bytes(rows, columns, dim, column_gradient=column_gradient)
    if one_rank:
        block = block_size(rows, columns, max_logits // 2)
        logits, copies = 2 * block * columns, rows * dim
    else:
        block = block_size(rows if column_gradient else 2 * rows, columns, max_logits)
        # Beside others: the gathered columns, and a rank's own normalised ones. Distillation: both predictions and
        # the targets.
        logits, copies = block * columns, (rows + columns) * dim if column_gradient else 3 * rows * dim
    piece = _PIECE if on_cpu else -(-columns // 4)
    mask = block * min(columns, piece)  # bytes
    widest = _PIECE if on_cpu else max(_PIECE, max_logits // 4 // max(1, dim))
    cast = 0 if column_gradient else min(columns, widest) * dim
    numbers = 8 * 8 * (rows + columns)  # labels, identities, sums, lengths
    return max(waiting + 4 * (copies + logits + 4 * block * dim + cast) + mask, 2 * waiting) + numbers


def waiting_bytes(rows: int, columns: int, dim: int, *, column_gradient: bool) -> int:
    """The part of `loss_bytes` that stays until the backward pass: the gradients in fp32."""
    gathered = 2 * columns if column_gradient and rows != columns else 0
    return 4 * (2 * rows + gathered) * dim
