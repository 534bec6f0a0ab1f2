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
    target = out.resolve()  # "." has no name of its own
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--out {out} is there already and not empty: choose a new folder, or remove it")
    hidden = target.with_name(f".{target.name}.partial")
    shutil.rmtree(hidden, ignore_errors=True)
    make_folder(hidden)
    try:
        try:
            yield hidden
            if target.exists() and target.samefile("."):  # stays: the user's shell stands in it
                for part in hidden.iterdir():
                    part.replace(target / part.name)
                hidden.rmdir()
                return
            if target.exists():
                target.rmdir()
            hidden.replace(target)
        except OSError as error:
            raise write_error(out, error) from error
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
