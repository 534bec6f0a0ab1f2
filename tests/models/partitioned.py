"""Parameters as ZeRO-3 has them: there for the time of the forward of the module that owns them, empty otherwise."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def release_outside_their_owner(model: nn.Module) -> None:
    """Empties all parameters of ``model`` now; hooks bring each back around its owner's forward."""
    for module in model.modules():
        whole = {key: p.detach().clone() for key, p in module.named_parameters(recurse=False)}

        def gather(owner: nn.Module, _: object, whole: dict[str, Tensor] = whole) -> None:
            for key, p in owner.named_parameters(recurse=False):
                p.data = whole[key]

        def release(owner: nn.Module, *_: object) -> None:
            for p in owner.parameters(recurse=False):
                p.data = torch.empty(0)

        release(module)
        module.register_forward_pre_hook(gather)
        module.register_forward_hook(release)
