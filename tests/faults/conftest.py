"""The tiny pretraining of the end-to-end tests, to be disturbed here."""

from __future__ import annotations

from tests.e2e.conftest import flags, pairs_dir, pretrain, teacher_file, unbroken

__all__ = ["flags", "pairs_dir", "pretrain", "teacher_file", "unbroken"]
