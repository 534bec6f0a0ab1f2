"""The bank of teacher targets of earlier batches, used as negatives of the contrastive distillation.

First in, first out, ``size`` rows. The teacher is frozen, so rows never go stale. Rows are valid from the
first batch on: an empty bank has no columns (the thesis started from 65,536 random vectors and trained against
noise until they were replaced). All ranks hold the same rows, because what is pushed is the gathered global
batch; any size works with any batch. With cached targets the bank can be filled before step 0 (`fill`).

Memory: size x D x 2 bytes (fp16, as in the target cache): 65,536 x 768 = 101 MB.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssmke.errors import CheckpointError


class TargetBank:
    """A ring of at most ``size`` L2-normalised targets with the identity of their image."""

    def __init__(self, size: int, dim: int, device: torch.device | str = "cpu") -> None:
        self.size = size
        self.rows = torch.zeros(size, dim, dtype=torch.float16, device=device)  # [G, D]
        self.ids = torch.full((size,), -1, dtype=torch.int64, device=device)  # [G]
        self.filled = 0
        self.cursor = 0
        self.whole = False
        """Every image of the data is in it: nothing is left to push."""

    def __len__(self) -> int:
        return self.filled

    def columns(self) -> tuple[Tensor, Tensor]:
        """The valid rows [filled, D] as they are held, in fp16, and their image ids [filled]; views, not copies."""
        return self.rows[: self.filled], self.ids[: self.filled]

    def push(self, targets: Tensor, ids: Tensor) -> None:
        """Adds normalised targets [B, D] with image ids [B]; the oldest rows make room."""
        if self.whole:
            return
        targets, ids = targets[-self.size :], ids[-self.size :]
        slots = (torch.arange(targets.shape[0], device=self.ids.device) + self.cursor) % self.size
        self.rows[slots] = targets.to(self.rows)
        self.ids[slots] = ids.to(self.ids)
        self.cursor = (self.cursor + targets.shape[0]) % self.size
        self.filled = min(self.size, self.filled + targets.shape[0])

    def state_dict(self) -> dict[str, Tensor | int]:
        """The valid rows and the ring position, for checkpoints."""
        return {
            "size": self.size,
            "rows": self.rows[: self.filled].cpu().clone(),
            "ids": self.ids[: self.filled].cpu().clone(),
            "cursor": self.cursor,
            "whole": self.whole,
        }

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """Restores what `state_dict` gave; a bank of another size or width is a `CheckpointError`."""
        rows, ids, cursor = state["rows"], state["ids"], state["cursor"]
        assert isinstance(rows, Tensor)
        assert isinstance(ids, Tensor)
        assert isinstance(cursor, int)
        if state["size"] != self.size or rows.shape[1] != self.rows.shape[1]:
            raise CheckpointError(
                f"the checkpoint's target bank is {state['size']} x {rows.shape[1]}, this run's "
                f"--loss.bank-size and teacher make it {self.size} x {self.rows.shape[1]}; resume with the "
                "checkpoint's recipe, or start a new run with --resume none"
            )
        self.filled, self.cursor, self.whole = rows.shape[0], cursor, bool(state["whole"])
        self.rows[: self.filled] = rows.to(self.rows)
        self.ids[: self.filled] = ids.to(self.ids)
