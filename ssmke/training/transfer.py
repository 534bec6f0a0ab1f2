"""Batches to the device, beside the step that is still computing there.

A training step only enqueues work, so the host is a step ahead of the device. A copy enqueued behind that work would
wait for it; on a stream of its own it runs beside it, from page-locked memory, and the next step waits for the copy
alone. A batch of 512 images is 77 MB, 3 ms on PCIe 4.
"""

from __future__ import annotations

import torch

from ssmke.data.batch import Batch


class Transfer:
    """Moves batches to ``device``."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Batch) -> Batch:
        """The batch on the device, for the current stream."""
        if self._stream is None:
            return batch.to(self.device)
        with torch.cuda.stream(self._stream):
            moved = batch.to(self.device)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        for tensor in moved.tensors():
            # Freed by the step, it must not be overwritten by the next copy before the step has used it.
            tensor.record_stream(current)
        return moved
