"""Steps whose loss or gradient is not a number: never applied, counted, and too many in a row end the run.

One such step that is applied makes all weights NaN, so the check comes before the update, on the gradients that all
ranks have reduced: all skip alike, and a wrong value that only the backward pass makes is caught too. DeepSpeed checks
under ZeRO and in half precision, where it costs one wait for the device at the end of the backward pass; `Engine` does
the rest. Bad data is the usual cause, therefore the sample keys of every skipped batch are kept for inspection:

    nonfinite.jsonl    {"step": 812, "losses": {...}, "keys": [...]}, of all ranks
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import torch.distributed as dist

from ssmke.data.atomic import encode_json, write_error
from ssmke.data.batch import Batch
from ssmke.errors import SSMKEError
from ssmke.objectives.gather import rank, world_size
from ssmke.objectives.pretraining import Losses


class NotFinite(SSMKEError):
    """Loss or gradient was not a number for too many steps in a row."""


class SkippedSteps:
    """Counts and records the skipped steps of one attempt.

    ``limit``: how many in a row end the run. ``scaled``: the loss is scaled (fp16), so that a gradient may overflow
    although the loss is finite, until the scale has found its size.
    """

    def __init__(self, file: Path, limit: int, *, scaled: bool) -> None:
        self.count = 0
        self._file, self._limit, self._scaled, self._row = file, limit, scaled, 0

    def add(self, step: int, batch: Batch, losses: Losses, *, applied: bool) -> None:
        """Step number ``step`` is done; all ranks call it with the same ``applied``.

        Raises:
            NotFinite: on all ranks, the limit is reached.
        """
        if applied:
            self._row = 0
            return
        self.count += 1
        values = {name: float(value) for name, value in losses.items()}
        told: list[tuple[float, list[str]]] = [(values["loss"], list(batch.keys))]
        if world_size() > 1:
            told = [told[0]] * world_size()
            dist.all_gather_object(told, (values["loss"], list(batch.keys)))
        bad = [loss for loss, _ in told if not math.isfinite(loss)]
        self._row = self._row + 1 if bad or not self._scaled else 0
        if rank() == 0:
            finite = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
            keys = [key for _, part in told for key in part]
            self._write(encode_json({"step": step, "losses": finite, "keys": keys}))
        if self._row >= self._limit:
            error = NotFinite(
                f"the loss or its gradient was not a number for {self._row} steps in a row, the last is step {step}; "
                f"no such step has changed the weights. The batches' sample keys are in {self._file}: look at their "
                "data, or lower --optim.lr, then go on from the last checkpoint with --resume auto"
            )
            error.told = rank() != 0
            raise error

    def _write(self, line: bytes) -> None:
        try:
            with self._file.open("ab") as file:
                file.write(line)
        except OSError as error:  # a full disk does not end a run that can go on
            warnings.warn(f"{write_error(self._file, error)} Training goes on.")
