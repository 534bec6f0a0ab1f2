"""Floating-point operations of one image-text pair, by arithmetic.

A multiply-add is two operations, and only matrix products and convolutions count: norms, activations, softmax
and embedding look-ups are bound by memory, and no published peak is about them. Every part of the student
costs a polynomial in the number of text tokens, ``fixed + per_token n + per_token_squared n^2``, so a batch is
counted from its mean length alone, once with the real tokens and once with the padding. (A mean knows nothing
of the spread of lengths, which the quadratic term would want; that term is 0.3 % of the text half at 13 tokens.)

A transformer block on n tokens of width d is 24 d^2 n + 4 n^2 d. Training multiplies a part by its passes:
forward, gradient of the inputs, gradient of the weights. That is 3 for a trained part, 2 where one of the two
gradients is not needed (nothing below the patch embedding is trained; targets of a teacher are constants), and
1 for a frozen one. What an implementation computes again to save memory (attention in its backward pass, the
second forward pass of gradient accumulation) is not counted: it is how the work is done, not the work. Hence
the quotient with a device's peak is model FLOPs utilisation, MFU.
"""

from __future__ import annotations

from dataclasses import dataclass

TRAINED = 3
ONE_GRADIENT = 2
FROZEN = 1


@dataclass(frozen=True)
class Part:
    """One part of the student: operations of its forward pass as a polynomial in the text tokens.

    ``passes``: how often the forward's operations are spent in a training step.
    """

    name: str
    passes: float
    fixed: float = 0.0
    per_token: float = 0.0
    per_token_squared: float = 0.0

    def forward(self, text_tokens: float) -> float:
        """Operations of the forward pass at this caption length."""
        return self.fixed + self.per_token * text_tokens + self.per_token_squared * text_tokens**2


@dataclass(frozen=True)
class Shapes:
    """What a pair costs: the student's parts, and the teacher's forward pass if it runs in the step.

    ``max_tokens``: where captions are cut, so the length of a caption that is padded to the full.
    ``cached_teacher``: the teacher's forward pass that a cache of its targets saves in every epoch;
    ``cached_image``, ``cached_text``: the same of frozen encoders.
    """

    parts: tuple[Part, ...]
    max_tokens: int
    teacher: float = 0.0
    cached_teacher: float = 0.0
    cached_image: float = 0.0
    cached_text: tuple[Part, ...] = ()

    def forward(self, text_tokens: float) -> float:
        """The student's forward pass alone."""
        return sum(part.forward(text_tokens) for part in self.parts)

    def caching(self, *, images: int, pairs: int, views: int, text_tokens: float) -> float:
        """What it takes to fill the caches, once for all epochs."""
        text = sum(part.forward(text_tokens) for part in self.cached_text)
        return images * (self.cached_teacher * views + self.cached_image) + pairs * text


@dataclass(frozen=True)
class Flops:
    """Operations of one training pair: the student's forward and backward, the teacher's forward."""

    student: float
    teacher: float

    @property
    def total(self) -> float:
        """What a step spends on the pair."""
        return self.student + self.teacher


def per_pair(shapes: Shapes, text_tokens: float) -> Flops:
    """Operations of one training pair whose caption has ``text_tokens`` tokens (a mean is fine).

    ValueError for a length that no caption can have.
    """
    if not 0 <= text_tokens <= shapes.max_tokens:
        raise ValueError(f"{text_tokens} text tokens are not within 0 and {shapes.max_tokens}")
    student = sum(part.passes * part.forward(text_tokens) for part in shapes.parts)
    return Flops(student=student, teacher=shapes.teacher)


def linear(inputs: int, outputs: int) -> int:
    """A dense layer on one token."""
    return 2 * inputs * outputs


def image_blocks(count: int, *, per_token: int, attention_dim: int, tokens: int) -> float:
    """Forward of ``count`` transformer blocks on ``tokens`` image tokens.

    ``per_token``: the block's dense layers on one token (24 d^2 in the plain block); ``attention_dim``: width
    of all heads together.
    """
    return float(count * (per_token * tokens + 4 * attention_dim * tokens**2))


def text_blocks(name: str, count: int, *, per_token: int, attention_dim: int, passes: float) -> Part:
    """The same on the caption's tokens."""
    return Part(
        name,
        passes,
        per_token=float(count * per_token),
        per_token_squared=float(count * 4 * attention_dim),
    )


def plain_block(dim: int, mlp_ratio: float = 4.0) -> int:
    """Dense layers of a plain transformer block on one token: 24 d^2 at the usual MLP ratio of 4."""
    return 4 * linear(dim, dim) + 2 * linear(dim, int(dim * mlp_ratio))


def patch_embedding(patches: int, patch_size: int, dim: int, channels: int = 3) -> int:
    """Non-overlapping patches, each projected to a token."""
    return patches * linear(channels * patch_size**2, dim)


def cls_block(dim: int, hidden: int) -> tuple[int, int]:
    """A block that is evaluated at the [CLS] alone: (operations per pass, and per token of its input).

    Keys and values need every token; the query, the output projection and the MLP need one.
    """
    return 2 * linear(dim, dim) + 2 * linear(dim, hidden), 2 * linear(dim, dim) + 4 * dim
