"""A file system of its own size, to be filled."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """``folder``, made and mounted as a tmpfs of ``size``; skips where that needs rights that are not here."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def fill(folder: Path, leave: int = 0) -> Path:
    """A file that leaves ``leave`` bytes free."""
    path = folder / "someone else's file"
    with path.open("wb") as file:
        while (size := shutil.disk_usage(folder).free - leave) > 0:
            with suppress(OSError):  # somebody else has written meanwhile: a little less, then
                os.posix_fallocate(file.fileno(), 0, size)
                break
    return path
