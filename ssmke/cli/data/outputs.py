"""Where a command may write what it finds, checked before the work, which may take hours.

Datasets are only read, so nothing is written into a folder that is an input: a slip of the hand
(``--out DIR/manifest.json``) would cost the manifest of a dataset that took days to make.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from ssmke.errors import ConfigError


def check_outputs(outputs: Mapping[str, Path | None], inputs: Iterable[str | Path]) -> None:
    """Make sure that the files to write, by flag, are outside the folders that are read, and can be made.

    Raises:
        ConfigError: one is in an input, is a folder, has a file for a folder, or is the file of another flag.
    """
    from ssmke.data.remote.fetch import is_remote

    folders = [Path(os.path.realpath(place)) for place in inputs if not is_remote(place)]
    taken: dict[str, str] = {}
    for flag, path in outputs.items():
        if path is None:
            continue
        # Of os.path: those of `Path` raise where a folder above may not be looked into.
        if os.path.isdir(path):  # noqa: PTH112
            raise ConfigError(f"{flag} {path}: is a folder; give the name of a file")
        # A link in an input would be replaced; one to an input written through.
        places = [Path(os.path.realpath(path)), Path(os.path.realpath(path.parent)) / path.name]
        for folder in folders:
            if any(folder in place.parents for place in places):
                raise ConfigError(
                    f"{flag} {path}: is in the input {folder}, which is only read; choose another"
                )
        there = next(str(parent) for parent in path.absolute().parents if os.path.lexists(parent))
        if not os.path.isdir(there):  # noqa: PTH112
            raise ConfigError(f"{flag} {path}: {there} is not a folder; choose another")
        if not os.access(there, os.W_OK | os.X_OK):
            raise ConfigError(f"{flag} {path}: there is no permission to write to {there}; choose another")
        other = taken.setdefault(str(places[0]), flag)
        if other != flag:
            raise ConfigError(f"{flag} {path}: is the file of {other}, too; choose another")
