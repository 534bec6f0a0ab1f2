"""ssmke: S-SMKE image-text retrieval models, trained from two pretrained unimodal halves.

``import ssmke`` costs nothing: the model class, which needs torch, is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["SSMKE", "__version__"]

if TYPE_CHECKING:
    from ssmke.models.student import SSMKE


def __getattr__(name: str) -> object:
    if name == "SSMKE":
        from ssmke.models.student import SSMKE

        return SSMKE
    raise AttributeError(f"module 'ssmke' has no attribute {name!r}")
