"""The contrast of images with texts, softmax (CLIP) or sigmoid (SigLIP), of a rank's pairs against those of all ranks.

The arithmetic is that of `cross_entropy` and of `sigmoid`. Alone, a rank takes both directions from one matrix of
logits. Beside others its rows meet the gathered columns; their gradients go back to the ranks that they came from
(`gather`). The softmax does so first in one direction, then in the other, so that the gathered columns of only one are
in memory. The sigmoid judges each pair by itself and has no directions: images meet the gathered texts, and images are
never sent. (The thesis masked nothing; ``mask=False`` keeps that for comparison.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmke.objectives.cross_entropy import MAX_LOGITS, cosine_cross_entropy, symmetric_cross_entropy
from ssmke.objectives.gather import all_gather, rank, world_size
from ssmke.objectives.sigmoid import pairwise_sigmoid


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
    row_ids = image_ids if mask else None
    if world_size() == 1:
        return symmetric_cross_entropy(image, text, scale, row_ids, max_logits)
    all_ids = all_gather(image_ids)
    labels = torch.arange(image.shape[0], device=image.device) + rank() * image.shape[0]

    def direction(rows: Tensor, columns: Tensor) -> Tensor:
        gathered = all_gather(normalise(columns))  # [world * B, D]
        return cosine_cross_entropy(
            rows, gathered, scale, labels, row_ids, all_ids, max_logits, normalise_rows=True
        )

    return (direction(image, text) + direction(text, image)) / 2


def sigmoid_image_text_contrast(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    image_ids: Tensor,
    *,
    mask: bool = True,
    max_logits: int = MAX_LOGITS,
) -> Tensor:
    """Sigmoid loss (SigLIP) of this rank's images with the texts of all ranks.

    Arguments as of `image_text_contrast`, and ``bias``: one element. Returns the sum over all texts, averaged over the
    local images; averaged over ranks it is the loss of the joined batch.
    """
    alone = world_size() == 1
    return pairwise_sigmoid(
        image,
        text if alone else all_gather(normalise(text)),  # [world * B, D]
        scale,
        bias,
        torch.arange(image.shape[0], device=image.device) + rank() * image.shape[0],
        image_ids if mask else None,
        all_gather(image_ids),
        max_logits,
        normalise_columns=alone,
    )
