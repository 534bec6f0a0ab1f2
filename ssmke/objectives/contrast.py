"""Cross-entropy over cosine logits, in chunks: the one formula behind contrast and distillation.

For rows ``r_i`` and columns ``c_j``, L2-normalised, and a logit scale ``s``:

    loss = mean_i [ -s r_i.c_y(i) + log sum_{j not masked for i} exp(s r_i.c_j) ]

Columns that show the same image as a row without being its match are masked: an image with several captions
must not be its own negative. (The thesis masked nothing; ``mask=False`` keeps that for comparison.)

Memory: local rows meet global columns, [B, M] logits. Row chunks of at most ``max_logits`` logits are
recomputed in the backward pass, so what is held is the chunk, not [B, M]; the gradient is the full one.
Arithmetic is fp32 whatever the encoders run in: a bf16 logit at scale 100 has steps of 0.5.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ssmke.objectives.gather import all_gather, rank

MAX_LOGITS = 1 << 25
"""Logits held at once: 2^25 in fp32 are 128 MiB."""


def _cross_entropy_sum(
    rows: Tensor, columns: Tensor, scale: Tensor, labels: Tensor, row_ids: Tensor | None, column_ids: Tensor
) -> Tensor:
    logits = scale * (rows @ columns.T)  # [R, M]
    if row_ids is not None:
        same_image = row_ids[:, None] == column_ids[None, :]
        own = labels[:, None] == torch.arange(columns.shape[0], device=labels.device)[None, :]
        logits = logits.masked_fill(same_image & ~own, float("-inf"))
    return F.cross_entropy(logits, labels, reduction="sum")


def cosine_cross_entropy(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    labels: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor,
    max_logits: int = MAX_LOGITS,
) -> Tensor:
    """Mean cross-entropy of ``rows`` [B, D] against ``columns`` [M, D], both L2-normalised fp32.

    ``labels`` [B]: the matching column of each row. ``row_ids`` [B] and ``column_ids`` [M]: image identity for
    masking; ``row_ids=None`` masks nothing. ``scale``: a tensor of one element. Returns a scalar.
    """
    chunk = max(1, max_logits // max(1, columns.shape[0]))
    total = rows.new_zeros(())
    for start in range(0, rows.shape[0], chunk):
        piece = slice(start, start + chunk)
        ids = None if row_ids is None else row_ids[piece]
        arguments = (rows[piece], columns, scale, labels[piece], ids, column_ids)
        if chunk >= rows.shape[0]:
            total = total + _cross_entropy_sum(*arguments)
        else:
            total = total + checkpoint(_cross_entropy_sum, *arguments, use_reentrant=False)
    return total / rows.shape[0]


def normalise(x: Tensor) -> Tensor:
    """L2-normalises the last dimension in fp32."""
    return F.normalize(x.float(), dim=-1)


def image_text_contrast(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    image_ids: Tensor,
    *,
    mask: bool = True,
    max_logits: int = MAX_LOGITS,
) -> Tensor:
    """Symmetric image-text contrastive loss (CLIP) of this rank's pairs against the pairs of all ranks.

    ``image``, ``text``: [B, D] of any float type, not normalised; ``image_ids``: [B] int64, equal for pairs of
    one image; ``scale``: one element. Returns the mean of both directions over the local rows; averaged over
    ranks it is the loss of the joined batch.
    """
    image, text = normalise(image), normalise(text)
    all_images, all_texts, all_ids = all_gather(image), all_gather(text), all_gather(image_ids)
    labels = torch.arange(image.shape[0], device=image.device) + rank() * image.shape[0]
    row_ids = image_ids if mask else None
    image_to_text = cosine_cross_entropy(image, all_texts, scale, labels, row_ids, all_ids, max_logits)
    text_to_image = cosine_cross_entropy(text, all_images, scale, labels, row_ids, all_ids, max_logits)
    return (image_to_text + text_to_image) / 2
