"""What the original did in a step, to measure against: the whole shared block, and losses that hold all logits.

The thesis ran the teacher in every step, padded captions to 64 tokens, evaluated the shared block at every token
although only its [CLS] is used, and left the losses to autograd. The encoders are the same, and so is the result:
`tests/models/test_student.py` and `tests/objectives` compare both forms.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.losses import all_logits, both_directions
from ssmke.models.shared import Levels, SharedBlock
from ssmke.objectives import pretraining
from ssmke.objectives.contrast import normalise
from ssmke.objectives.pretraining import SSMKEPretraining


def full_block(block: SharedBlock, tokens: Tensor, mask: Tensor | None = None) -> Levels:
    """`SharedBlock.forward` at all tokens [B, N, D], of which the [CLS] is then taken."""
    batch, length, dim = tokens.shape
    x = block.norm1(tokens)
    q = block.q(x).view(batch, length, block.heads, -1).transpose(1, 2)  # [B, h, N, D/h]
    k, v = block.kv(x).view(batch, length, 2, block.heads, -1).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(
        q, k, v, attn_mask=None if mask is None else mask[:, None, None, :]
    )
    x = tokens + block.scale1(block.proj(attended.transpose(1, 2).reshape(batch, length, dim)))
    hidden = block.fc1(block.norm2(x))
    x = x + block.scale2(block.fc2(F.gelu(hidden)))
    return {"output": x[:, 0], "hidden": hidden[:, 0]}


def plain_contrast(
    image: Tensor, text: Tensor, scale: Tensor, image_ids: Tensor, *, mask: bool, max_logits: int
) -> Tensor:
    """`image_text_contrast` on one rank, all logits held by autograd."""
    assert mask
    i, t = normalise(image), normalise(text)
    return both_directions(all_logits, (i, t), (t, i), scale, image_ids, image_ids)


def plain_distillation(
    image: Tensor,
    text: Tensor,
    targets: Tensor,
    scale: Tensor,
    image_ids: Tensor,
    bank: tuple[Tensor, Tensor],
    *,
    mask: bool,
    max_logits: int,
) -> Tensor:
    """`contrastive_distillation` on one rank, all logits held by autograd."""
    assert mask
    columns = torch.cat([normalise(targets), bank[0].float()])
    predictions = normalise(image), normalise(text)
    ids = torch.cat([image_ids, bank[1]])
    return both_directions(all_logits, predictions, (columns, columns), scale, image_ids, ids)


@contextmanager
def original_arithmetic(module: SSMKEPretraining, *, whole_block: bool, plain_losses: bool) -> Iterator[None]:
    """Inside, ``module`` computes as the original did, in the respects that are asked for."""
    with ExitStack() as stack:
        if whole_block:
            shared = module.student.shared
            assert isinstance(shared, SharedBlock)
            stack.enter_context(mock.patch.object(shared, "forward", partial(full_block, shared)))
        if plain_losses:
            stack.enter_context(mock.patch.object(pretraining, "image_text_contrast", plain_contrast))
            stack.enter_context(
                mock.patch.object(pretraining, "contrastive_distillation", plain_distillation)
            )
        yield
