"""Batches of rows of text with masked words: BERT's corruption as a function of seed, epoch and row.

In each row the same number of tokens is chosen, round(share x L), none of them [CLS], [SEP] or [MASK]; 80 % become
[MASK], 10 % a random token, 10 % stay. The equal number makes the loss of a batch the mean of its micro-batches', and
a function of the row's number makes it the same for any number of ranks, workers and restarts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, get_worker_info

from ssmke.data.batch import Batch
from ssmke.data.stream import StreamPlan
from ssmke.data.waiting import NOTHING, places
from ssmke.errors import DataError
from ssmke.training.unimodal.corpus import Corpus

IGNORED = -100
"""Label of what is not masked, as torch's cross-entropy has it."""


@dataclass(frozen=True)
class Masking:
    """What is masked, and with what."""

    seed: int
    share: float
    special: tuple[int, ...]
    """Ids that are never masked."""
    mask_id: int
    vocabulary: int
    """Ids that a random token is drawn from: 0..vocabulary-1."""

    def count(self, length: int) -> int:
        """Tokens that are masked in a row of ``length``."""
        return max(1, round(self.share * length))

    def __call__(
        self, row: npt.NDArray[np.int64], number: int, epoch: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Ids and labels [L] of row ``number`` in ``epoch``; labels are `IGNORED` where nothing was chosen."""
        ordinary = np.flatnonzero(~np.isin(row, self.special))
        count = self.count(len(row))
        if count > len(ordinary):
            raise DataError(
                f"row {number} of the text has {len(ordinary)} tokens beside special ones, {count} are to be masked: "
                "lower --distil.masked"
            )
        random = np.random.Generator(np.random.Philox(key=[self.seed, number], counter=[0, 0, 0, epoch]))
        chosen = random.choice(ordinary, count, replace=False)
        dice, noise = random.random(count), random.integers(self.vocabulary, size=count)
        ids, labels = row.copy(), np.full_like(row, IGNORED)
        labels[chosen] = row[chosen]
        ids[chosen[dice < 0.8]] = self.mask_id
        ids[chosen[dice >= 0.9]] = noise[dice >= 0.9]
        return ids, labels


@dataclass
class TextBatches(Dataset[Batch]):
    """Map from step to this rank's rows."""

    corpus: Corpus
    plan: StreamPlan
    masking: Masking
    at: npt.NDArray[np.int64] = field(default_factory=lambda: places(0), init=False, repr=False)
    """The row that each worker is at."""

    def __len__(self) -> int:
        return self.plan.steps

    def __getitem__(self, step: int) -> Batch:
        """This rank's batch of ``step``."""
        epoch = self.plan.epoch(step)
        rows = self.plan.order.epoch(epoch)[self.plan.positions(step)]
        worker = get_worker_info()
        place = 0 if worker is None else worker.id
        self.at[place] = int(rows[0])
        batch = masked_rows(self.corpus, self.masking, rows.tolist(), epoch)
        self.at[place] = NOTHING
        return batch

    def where(self, number: int) -> str:
        """The file that row ``number`` lies in."""
        return self.corpus.piece_of(number)


def masked_rows(corpus: Corpus, masking: Masking, rows: list[int], epoch: int) -> Batch:
    """These rows as they are masked in ``epoch``."""
    pairs = [masking(corpus.row(row), row, epoch) for row in rows]
    ids = torch.from_numpy(np.stack([ids for ids, _ in pairs]))  # [B, L]
    return Batch(
        images=torch.empty((len(rows), 0), dtype=torch.uint8),
        ids=ids,
        mask=torch.ones(ids.shape, dtype=torch.bool),
        image_ids=torch.tensor(rows, dtype=torch.int64),
        keys=tuple(f"row-{row}" for row in rows),
        real_tokens=ids.numel(),
        labels=torch.from_numpy(np.stack([labels for _, labels in pairs])),
    )
