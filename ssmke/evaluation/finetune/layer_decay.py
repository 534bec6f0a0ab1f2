"""Layer-wise learning rates (ELECTRA, BEiT): the further a layer is from the new head, the less it is moved.

A parameter's distance is counted from the head downwards: head 0, shared encoder 1, the encoder's top block next, its
patch or word embedding last. Its rate is ``lr * decay ** distance``. Counted from the top, image and text encoder of
different depth share one rule. Layers of timm models come from timm's own `group_matcher`.
"""

from __future__ import annotations

import re
from typing import Any, Protocol, cast

from timm.models import group_parameters
from torch import nn

from ssmke.models.image_encoders import ImageEncoder
from ssmke.models.text_encoders import TextEncoder, text_layers
from ssmke.training.optimizer import decays


class Layered(Protocol):
    """A module that knows how far each of its parameters is from its head."""

    def distances(self) -> dict[str, int]:
        """Parameter name -> layers between it and the output."""
        ...


def encoder_distances(encoder: ImageEncoder | TextEncoder, above: int, prefix: str) -> dict[str, int]:
    """Distances of an encoder's parameters.

    Args:
        encoder: its top layer has distance ``above``.
        above: layers that come after the encoder, the head among them.
        prefix: put before every name, with its dot.
    """
    numbers = _numbers(encoder)  # counted from the input; may skip some
    order = {number: place for place, number in enumerate(sorted(set(numbers.values()), reverse=True))}
    return {f"{prefix}backbone.{name}": above + order[number] for name, number in numbers.items()}


def _numbers(encoder: ImageEncoder | TextEncoder) -> dict[str, int]:
    backbone: Any = encoder.backbone
    if isinstance(encoder, TextEncoder):
        owner = {
            id(parameter): number
            for number, layer in enumerate(text_layers(backbone), start=1)
            for parameter in layer.parameters()
        }
        return {name: owner.get(id(parameter), 0) for name, parameter in backbone.named_parameters()}
    if hasattr(backbone, "group_matcher"):
        return cast(
            dict[str, int],
            group_parameters(backbone, backbone.group_matcher(coarse=False), reverse=True),
        )
    blocks = {name: re.match(r"blocks\.(\d+)\.", name) for name, _ in backbone.named_parameters()}
    return {name: int(found[1]) + 1 if found else 0 for name, found in blocks.items()}


def parameter_groups(
    model: nn.Module, lr: float, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """AdamW groups of trained parameters by distance and decay, each with its "peak_lr" and "names"."""
    distances = cast(Layered, model).distances()
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        distance, decayed = distances[name], decays(name, parameter)
        peak = lr * layer_decay**distance
        entry = groups.setdefault(
            (distance, decayed),
            {"params": [], "names": [], "lr": peak, "peak_lr": peak},
        )
        entry["weight_decay"] = weight_decay if decayed else 0.0
        entry["params"].append(parameter)
        entry["names"].append(name)
    return list(groups.values())
