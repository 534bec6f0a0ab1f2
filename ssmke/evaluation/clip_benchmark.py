"""Our models in CLIP_benchmark (github.com/LAION-AI/CLIP_benchmark), for its datasets and its comparisons.

    pip install clip-benchmark
    python -m ssmke.evaluation.clip_benchmark eval --model_type ssmke --model RUN/model --pretrained none \\
        --dataset cifar10 --dataset_root DIR --task zeroshot_classification --no_amp --output result.json

Everything after ``clip_benchmark`` is its own command line; this module only adds the model type ``ssmke``. In Python
`register` does that, and `load` gives what its ``load_clip`` functions give: model, transform, tokenizer.

On the same images and prompts its numbers are ours (docs/evaluation.md has both), with ``--no_amp``: otherwise it
computes in half precision. Where scores tie exactly it takes the first candidate, we the expectation.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ssmke.data.augmentation import canonical_pixels
from ssmke.data.tokens import tokenize
from ssmke.errors import ConfigError
from ssmke.models.student import SSMKE

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerBase

MODEL_TYPE = "ssmke"


@dataclass(frozen=True)
class Tokens:
    """A batch of captions as the student takes it; moves like a tensor."""

    ids: Tensor
    """[B, L] int64."""
    mask: Tensor
    """[B, L] bool."""

    def to(self, device: str | torch.device) -> Tokens:
        """The same on ``device``."""
        return Tokens(self.ids.to(device), self.mask.to(device))


class Model(torch.nn.Module):
    """The student under the two names that CLIP_benchmark calls."""

    def __init__(self, student: SSMKE) -> None:
        super().__init__()
        self.student = student

    def encode_image(self, images: Tensor) -> Tensor:
        """Embeddings [B, D] of what `Transform` made, uint8 [B, 3, S, S]."""
        return self.student.encode_image(images)

    def encode_text(self, tokens: Tokens) -> Tensor:
        """Embeddings [B, D] of what `Tokenizer` made."""
        return self.student.encode_text(tokens.ids, tokens.mask)


class Transform:
    """The canonical view of a PIL image, uint8 [3, S, S]; goes to data loader workers."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image) -> Tensor:
        return torch.from_numpy(canonical_pixels(image, self.size))


class Tokenizer:
    """Captions to `Tokens`, padded to the longest of them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens

    def __call__(self, texts: str | list[str]) -> Tokens:
        return Tokens(
            *tokenize(self._tokenizer, [texts] if isinstance(texts, str) else texts, self._max_tokens)
        )


def load(
    model_name: str,
    pretrained: str = "none",
    cache_dir: str | None = None,
    device: str | torch.device = "cpu",
) -> tuple[Model, Transform, Tokenizer]:
    """The model folder ``model_name`` as CLIP_benchmark wants it; ``pretrained`` and ``cache_dir`` are not used.

    Raises:
        WeightsError: it is no model folder.
    """
    student = SSMKE.from_pretrained(model_name).to(device)
    tokenizer = Tokenizer(student.tokenizer(), student.config.text.max_tokens)
    return Model(student).eval(), Transform(student.image_size), tokenizer


def register() -> None:
    """Adds the model type ``ssmke`` to CLIP_benchmark, once.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        from clip_benchmark import models
    except ImportError as error:
        raise ConfigError(
            f"CLIP_benchmark cannot be imported ({error}): pip install clip-benchmark"
        ) from None
    models.TYPE2FUNC[MODEL_TYPE] = load
    if MODEL_TYPE not in models.MODEL_TYPES:
        models.MODEL_TYPES.append(MODEL_TYPE)


def main() -> Any:
    """CLIP_benchmark's command line with our model type."""
    from ssmke.errors import SSMKEError

    try:
        register()
        from clip_benchmark import cli

        return cli.main()
    except SSMKEError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
