"""What autograd keeps for the backward pass, counted on the student itself, without memory and without weights.

The recipe's student is built of fake tensors, which have shapes and storages but no data, and goes forward and backward
at three batch sizes; `LiveBytes` follows every storage. At every moment bytes are linear in the batch; the highest
moment is another one in a small batch, where gradients weigh more, than in a large one. That counts what is really
saved, checkpointing and frozen layers included, and not what a formula of one architecture says.

Attention: on CUDA its fused kernels save query, key, value, output and one number per row, so that is what the stand-in
saves here; on a CPU torch's own choice of kernel is followed (with a trained bias, as in BEiT, it keeps all weights).
Not seen: scratch inside of kernels, and what torch.compile saves by recomputing or fusing (so it is an upper bound
there). Cost: about two seconds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from ssmke.data.packing import ROW
from ssmke.models.student import SSMKE
from ssmke.planning.live import LiveBytes

SIZES = 2, 32, 64
"""Batches that are counted. What is kept is a line; a peak is the highest of several moments, so a convex curve."""
FILLING = 0.97
"""Share of packed places that hold a token (`ssmke.data.packing`: 2 to 3 % stay empty)."""


@dataclass(frozen=True)
class Line:
    """Bytes as a function of the pairs of a micro-batch."""

    fixed: float
    per_pair: float

    def at(self, pairs: int) -> int:
        """Bytes at this batch, never below zero."""
        return max(0, round(self.fixed + self.per_pair * pairs))


@dataclass(frozen=True)
class Peak:
    """The highest of moments that are lines each, by chords between counted batches: never below the truth there."""

    lines: tuple[Line, ...]

    def at(self, pairs: int) -> int:
        """Bytes at this batch."""
        return max(line.at(pairs) for line in self.lines)


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro-batch on one rank."""

    kept: Line
    """Alive between forward and backward pass: what autograd saved, inputs and outputs."""
    forward: Line
    """Peak of the forward pass."""
    backward: Peak
    """Peak of the backward pass, each parameter's gradient gone as soon as it is there."""
    collecting: Peak
    """Peak of the backward pass where all gradients stay (ZeRO-0 and 1)."""
    outputs: int
    """Outputs of the student for one pair, in fp32."""

    def peak(self, pairs: int, *, collecting: bool) -> int:
        """Most at any moment of both passes."""
        backward = self.collecting if collecting else self.backward
        return max(self.forward.at(pairs), backward.at(pairs))


@dataclass(frozen=True)
class Text:
    """How captions come: their mean length, the longest of a batch, and whether they are packed."""

    tokens: float
    longest: int
    packed: bool
    width: int = ROW
    """Places of a packed row."""
    cached: int | None = None
    """Numbers per caption where a frozen encoder's features come from a cache; None: tokens."""

    @property
    def input_bytes(self) -> int:
        """Bytes of one caption as it comes: ids and mask, or its features."""
        return 9 * self.longest if self.cached is None else 2 * self.cached + 1


def fake(module: nn.Module, mode: FakeTensorMode, dtype: torch.dtype) -> None:
    """Turns parameters and buffers (of the meta device) into fake CPU tensors of ``dtype``, in place."""

    def made(tensor: Tensor) -> Tensor:
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        return torch.empty(tensor.shape, dtype=kind, device="cpu")

    with mode:
        for part in module.modules():
            for name, parameter in list(part._parameters.items()):
                if parameter is not None:
                    part._parameters[name] = nn.Parameter(made(parameter), parameter.requires_grad)
            for name, buffer in list(part._buffers.items()):
                if buffer is not None:
                    part._buffers[name] = made(buffer)


def count(
    student: SSMKE,
    text: Text,
    *,
    dtype: torch.dtype,
    cuda: bool,
    mode: FakeTensorMode,
    cached_tokens: int | None = None,
) -> Activations:
    """Counts a student of fake tensors.

    ``cached_tokens``: numbers per image where the frozen encoder's tokens come from a cache; None: pixels.
    """

    def run(pairs: int) -> tuple[int, int, int, int]:
        return _run(student, text, pairs, dtype=dtype, cuda=cuda, mode=mode, cached_tokens=cached_tokens)

    collecting = []
    for pairs in SIZES:
        collecting.append(run(pairs)[2])
        for parameter in student.parameters():
            parameter.grad = None
    for parameter in student.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_forget)
    found = [run(pairs) for pairs in SIZES]
    kept, forward = (_line([each[i] for each in found]) for i in (0, 1))
    return Activations(
        kept, forward, _peak([each[2] for each in found]), _peak(collecting), outputs=found[0][3]
    )


def forward_peak(
    network: nn.Module, image_size: int, *, dtype: torch.dtype, cuda: bool, mode: FakeTensorMode
) -> Line:
    """Peak bytes of a frozen network's forward pass on uint8 images, which saves nothing."""
    found = []
    for pairs in SIZES:
        with mode, _attention(cuda), LiveBytes() as live, torch.no_grad():
            live.ignore([*network.parameters(), *network.buffers()])
            images = torch.empty(pairs, 3, image_size, image_size, dtype=torch.uint8)
            pixels = images.to(torch.float32).div(255.0).to(dtype)
            network(pixels.contiguous(memory_format=torch.channels_last))
            found.append(live.peak)
    return _line(found)


def _run(
    student: SSMKE,
    text: Text,
    pairs: int,
    *,
    dtype: torch.dtype,
    cuda: bool,
    mode: FakeTensorMode,
    cached_tokens: int | None,
) -> tuple[int, int, int, int]:
    with mode, _attention(cuda), LiveBytes() as live:
        live.ignore([*student.parameters(), *student.buffers()])
        size = student.image_size
        if cached_tokens is None:
            images = torch.empty(pairs, 3, size, size, dtype=torch.uint8)
        else:
            images = torch.empty(pairs, cached_tokens, dtype=torch.float16)
        if text.cached is None:
            ids = torch.zeros(pairs, text.longest, dtype=torch.int64)
        else:
            ids = torch.empty(pairs, text.cached, dtype=torch.float16)
        mask = torch.ones(pairs, 1 if text.cached else text.longest, dtype=torch.bool)
        packing = None
        if text.packed and text.cached is None:
            rows = -(-round(pairs * text.tokens / FILLING) // text.width)
            packing = torch.zeros(rows, text.width, dtype=torch.int64)
        outputs = student(images, ids, mask, packing)
        width = sum(value.shape[1] for value in outputs.values())
        kept, forward = live.live, live.peak
        live.peak = live.live
        gradients = tuple(torch.empty_like(value) for value in outputs.values())
        # Not torch.autograd.backward: it leaves the function mode, and checkpointed blocks are computed again in here.
        torch.autograd.Variable._execution_engine.run_backward(
            tuple(outputs.values()), gradients, False, False, (), allow_unreachable=True, accumulate_grad=True
        )
        return kept, forward, live.peak, 4 * width


def _line(sizes: Sequence[int]) -> Line:
    """Through the two largest batches."""
    return _chord(SIZES[-2], SIZES[-1], sizes[-2], sizes[-1])


def _peak(sizes: Sequence[int]) -> Peak:
    pairs = zip(SIZES, SIZES[1:], sizes, sizes[1:], strict=False)
    return Peak(tuple(_chord(*ends) for ends in pairs))


def _chord(few: int, many: int, low: int, high: int) -> Line:
    slope = (high - low) / (many - few)
    return Line(low - slope * few, slope)


def _forget(parameter: Tensor) -> None:
    parameter.grad = None


class _Kernel(torch.autograd.Function):
    """Saves what the fused attention of a GPU saves; computes nothing."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)
        rows = q.new_empty(q.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, mask, out, rows)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, _, _ = ctx.saved_tensors
        # Query gradients are summed in fp32; a bias gets its gradient for every pair before it is summed.
        scratch = torch.empty_like(q, dtype=torch.float32)
        bias = None
        if mask is not None and ctx.needs_input_grad[3]:
            each = q.new_empty(q.shape[0], q.shape[1], q.shape[2], k.shape[2], dtype=mask.dtype)
            bias = each.sum_to_size(mask.shape)
            del each
        del scratch
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), bias


class _Fused(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
            return _Kernel.apply(named["query"], named["key"], named["value"], named.get("attn_mask"))
        return func(*args, **kwargs)


def _attention(cuda: bool) -> contextlib.AbstractContextManager[Any]:
    return _Fused() if cuda else contextlib.nullcontext()
