"""How a step is computed, never what: packed captions, compiled blocks, checkpointed blocks.

- Compilation is regional: each Transformer block is compiled for itself, and all blocks of an encoder share one
  piece of machine code, so that it takes seconds instead of minutes and graph breaks between blocks cost nothing.
  Blocks of images have one shape; rows of packed captions differ in their number, which the compiler is told by
  itself after it has seen the second one.
- A checkpointed block keeps its input only and is computed again in the backward pass: about a third more
  operations, for a fraction of the activations.

What cannot be had here is left out with one line that says why; the run goes on, and its losses stay the same.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssmke.errors import ConfigError
from ssmke.models.image_encoders import ImageEncoder
from ssmke.models.student import SSMKE
from ssmke.models.teachers import Teacher
from ssmke.models.text_encoders import text_layers

Say = Callable[[str], None]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Number formats by their names in `EngineConfig.dtype`."""


@dataclass
class ComputeConfig:
    """How a step is computed; no field changes its losses beyond rounding."""

    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the Transformer blocks (torch.compile). auto: on CUDA, where ZeRO does not partition parameters."""
    pack_text: bool = True
    """Compute captions in packed rows instead of padded to the longest of the batch."""
    checkpointing: bool = False
    """Keep only the inputs of the encoders' blocks for the backward pass: less memory, a third more operations."""

    def __post_init__(self) -> None:
        if self.compile not in ("auto", "on", "off"):
            raise ConfigError(f"--compute.compile {self.compile!r}: must be auto, on or off")


def prepare_student(
    student: SSMKE, config: ComputeConfig, *, device: torch.device, zero_stage: int, say: Say
) -> None:
    """Compiles and checkpoints the student's blocks in place, as ``config`` asks; parameters keep their names."""
    blocks = list(student_blocks(student))
    if config.checkpointing:
        for block in blocks:
            _checkpoint(block)
    reason = why_not_compiled(config, device, zero_stage)
    if reason is None:
        _compile(blocks)
    elif reason:
        say(f"not compiled: {reason}")
    if config.pack_text and not student.text_encoder.packs:
        say(
            f"captions are padded, not packed: {student.config.text.name} has positions that rows would mix up"
        )


def prepare_online_teacher(
    teacher: Teacher, config: ComputeConfig, *, device: torch.device, dtype: str
) -> None:
    """A teacher that runs in every step computes in the student's number format, and compiled where that is.

    Its targets then differ from those of a cache, which are computed in fp32, by the rounding of ``dtype``.
    """
    teacher.to(DTYPES[dtype])
    if why_not_compiled(config, device, zero_stage=0) is None:
        _compile(vision_blocks(teacher.network))


def student_blocks(student: SSMKE) -> Iterator[nn.Module]:
    """The Transformer blocks of both encoders that have any, in order."""
    yield from vision_blocks(student.image_encoder)
    yield from text_layers(student.text_encoder.backbone)


def vision_blocks(encoder: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a ViT, of ours or timm's; none of a conv net, whose small kernels gain nothing."""
    backbone: Any = encoder.backbone if isinstance(encoder, ImageEncoder) else encoder
    if hasattr(backbone, "patch_embed"):
        yield from getattr(backbone, "blocks", ())


def why_not_compiled(config: ComputeConfig, device: torch.device, zero_stage: int) -> str | None:
    """None: compile. Empty: nobody asked for it. Else why what was asked for cannot be had."""
    if config.compile == "off" or (config.compile == "auto" and device.type != "cuda"):
        return ""
    if zero_stage == 3:
        return "ZeRO-3 gathers the parameters of each layer by hooks that torch.compile cannot look through"
    if device.type == "cpu":
        found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
        return None if found else "there is no C++ compiler (install g++)"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    found = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return None if found else "there is no C compiler, which triton needs (install gcc)"


def _compile(blocks: Iterable[nn.Module]) -> None:
    # Blocks of a class share one cache, and need an entry each for frozen and trained, training and evaluation, sizes.
    torch._dynamo.config.recompile_limit = 64
    for block in blocks:
        block.compile()


def _checkpoint(block: nn.Module) -> None:
    forward = block.forward
    block.forward = partial(_recomputed, forward)


def _recomputed(forward: Callable[..., Any], *inputs: Any, **options: Any) -> Tensor | tuple[Tensor, ...]:
    if not torch.is_grad_enabled():
        return forward(*inputs, **options)
    return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False, **options)
