"""Bytes that one rank sends in a step, by collective.

A ring sends (N-1)/N of a buffer for an all-gather or a reduce-scatter, and twice that for an all-reduce (Patarasuk and
Yuan 2009), whatever the library does inside. The buffers are DeepSpeed 0.19.8's, as counted during steps of two ranks
(tests/planning/test_communication.py):

- ZeRO-0: all-reduce of the gradients.
- ZeRO-1, 2: **all-reduce** of the gradients, of which each rank keeps its part, and an all-gather of the weights. The
  paper's reduce-scatter would send a third less (Rajbhandari et al. 2020, section 7); DeepSpeed's
  ``use_multi_rank_bucket_allreduce: false`` reduces each part to its owner.
- ZeRO-3: one all-gather of the weights (the paper has two: this model is smaller than stage3_max_live_parameters, so
  nothing is let go between forward and backward pass) and a true reduce-scatter: the least of all.
- With accumulation, ZeRO-2 and 3 reduce after every micro-batch. ZeRO-3 then gathers three times for each: its trace of
  the order of modules breaks on the two passes, so it lets go of every weight after use (and fetches the first and
  largest one, the word table, once more). Accumulation under ZeRO-3 is for those who have no other way.

Losses gather the embeddings of both modalities at each level, in fp32, and reduce-scatter their gradients; distillation
gathers targets; the bank gathers them once more.
"""

from __future__ import annotations

from dataclasses import dataclass

from ssmke.planning.memory import Zero
from ssmke.planning.student import Model

ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, REDUCE = "all-reduce", "all-gather", "reduce-scatter", "reduce"
SENT = {ALL_REDUCE: 2.0, ALL_GATHER: 1.0, REDUCE_SCATTER: 1.0, REDUCE: 1.0}
"""Bytes sent over bytes of the whole buffer, times (N-1)/N."""
IDS = 8
"""Bytes of an image's identity."""


@dataclass(frozen=True)
class Communication:
    """Bytes of the whole buffers of a step, by who needs them and by collective."""

    weights_and_gradients: dict[str, int]
    losses: dict[str, int]
    ranks: int

    def buffers(self) -> dict[str, int]:
        """Both together, by collective."""
        kinds = self.weights_and_gradients.keys() | self.losses.keys()
        return {
            kind: self.weights_and_gradients.get(kind, 0) + self.losses.get(kind, 0) for kind in sorted(kinds)
        }

    @property
    def sent(self) -> float:
        """Bytes that a rank sends."""
        return sent(self.buffers(), self.ranks)


def sent(buffers: dict[str, int], ranks: int) -> float:
    """Bytes that a rank sends for these buffers in a ring."""
    return sum(SENT[kind] * size for kind, size in buffers.items()) * (ranks - 1) / ranks


def communication(
    model: Model, zero: Zero, *, micro_batch: int, accumulation: int, ranks: int
) -> Communication:
    """What the ranks exchange in one step; nothing on one rank."""
    if ranks == 1:
        return Communication({}, {}, 1)
    whole = model.item * model.parameters.trained
    if zero.stage == 0:
        engine = {ALL_REDUCE: whole}
    elif zero.stage < 3:
        times = accumulation if zero.stage == 2 else 1
        engine = {REDUCE if zero.reduces_to_owner else ALL_REDUCE: times * whole, ALL_GATHER: whole}
    else:
        engine = {
            ALL_GATHER: model.item * _gathered(model, zero, accumulation),
            REDUCE_SCATTER: accumulation * whole,
        }
    rows, losses = ranks * micro_batch * accumulation, model.losses
    both = sum(2 * 4 * width for width in losses.contrast)
    gathers_of_losses = rows * (both + IDS * len(losses.contrast))
    if losses.distillation is not None:
        target = 4 * losses.distillation + IDS
        gathers_of_losses += rows * target * (2 if losses.bank else 1)
    return Communication(engine, {ALL_GATHER: gathers_of_losses, REDUCE_SCATTER: rows * both}, ranks)


def _gathered(model: Model, zero: Zero, accumulation: int) -> int:
    """Elements that ZeRO-3 gathers in a step."""
    sizes = [*(n for group in model.parameters.groups for n in group), *model.parameters.frozen]
    persistent = sum(n for n in sizes if n <= zero.persistence)
    loose = sum(sizes) - persistent
    if accumulation > 1:
        return persistent + 3 * accumulation * loose + model.parameters.largest
    return persistent + loose * (1 if sum(sizes) <= zero.live else 2)
