"""What an engine, a checkpoint and an export ask of the thing that is trained."""

from __future__ import annotations

from torch import nn

from ssmke.data.batch import Batch
from ssmke.objectives.bank import TargetBank


class Objective(nn.Module):
    """A student and the losses that train it; ``forward(batch)`` gives scalars by name, of which "loss" is minimised.

    Everything with trained parameters is a submodule, and everything that touches them happens in `forward`: under
    ZeRO-3 a parameter is empty anywhere else. What is frozen (a teacher) is no submodule.
    """

    student: nn.Module
    """What is exported at the end."""
    bank: TargetBank | None = None
    """State beside the weights that a checkpoint keeps."""
    separable = True
    """Whether the loss of a batch is the mean of its micro-batches' losses, so that accumulation is plain."""

    def remember(self, batch: Batch) -> None:
        """Called after each step that changed the weights, with its batch."""
