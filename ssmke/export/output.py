"""The folder that an export writes: new, whole, or not there."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from ssmke.data.atomic import make_folder, write_error
from ssmke.errors import ConfigError


@contextlib.contextmanager
def new_output(out: Path) -> Iterator[Path]:
    """A hidden folder beside ``out`` that takes its name when the block ends well, and goes when it does not.

    Raises:
        ConfigError: ``out`` holds something already.
        DataError: the file system refused.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} is there already and not empty: choose a new folder, or remove it")
    hidden = out.with_name(f".{out.name}.partial")
    shutil.rmtree(hidden, ignore_errors=True)
    make_folder(hidden)
    try:
        try:
            yield hidden
            if out.exists():
                out.rmdir()
            hidden.replace(out)
        except OSError as error:
            raise write_error(out, error) from error
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
