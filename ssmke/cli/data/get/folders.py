"""The folders of `ssmke data get`: whether they may be used, what stays in them, what is thrown away.

All that can be refused is refused before the download, which may take hours: folders that hold something else, and
datasets that are there already but came of another request. So the request is kept in ``OUT/downloads.json``, and
before that the import's own state tells of most of it. Costs the reading of two small files.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssmke.cli.data.get.config import GetConfig
from ssmke.cli.data.get.plan import say
from ssmke.cli.data.terminal import print_dataset
from ssmke.data.atomic import TEMPORARY_SUFFIX
from ssmke.data.losses import DOWNLOADS_NAME
from ssmke.data.manifest import FILE_NAME, IMPORT_STATE_NAME, Manifest
from ssmke.differences import differences
from ssmke.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ssmke.data.download.archives import Fetched


def is_done(name: str, config: GetConfig, request: Mapping[str, Any], tars: Path | None = None) -> bool:
    """Whether ``--out`` is what an earlier `get` of ``name`` made for the same ``request``; then it is shown.

    Args:
        name: of the dataset.
        config: its folders.
        request: what is asked for, by flag.
        tars: where those are fetched to that are imported, if any are.

    Raises:
        ConfigError, DataError: the folders cannot be used, or hold what another request brought.
    """
    out = config.out
    if config.folder.absolute().is_relative_to(out.absolute()):
        raise ConfigError(f"--downloads {config.folder} is in --out {out}: choose a folder beside it.")
    if not out.exists():
        return False
    if not out.is_dir():
        raise DataError(f"--out {out} is a file: choose a folder.")
    if (out / FILE_NAME).is_file():
        record = _record(out / DOWNLOADS_NAME)
        if record.get("dataset") == name:
            before = record.get("request")
            if isinstance(before, dict):
                _refuse_other(name, config, before, request, before.keys() | request.keys())
            print_dataset(out, Manifest.load(out))
            say(f"{name} is there already; to make it anew, choose another --out")
            return True
        if record or not config.folder.is_dir():
            raise DataError(
                f"--out {out} holds the dataset {Manifest.load(out).name!r}: choose another --out."
            )
    others = sorted(child.name for child in out.iterdir() if not child.name.endswith(TEMPORARY_SUFFIX))
    if others and not (out / IMPORT_STATE_NAME).is_file():
        raise DataError(f"--out {out} is not empty (it holds {others[0]!r}): choose another --out.")
    # An import that was stopped: the importer would refuse anything else, too, but only after the download.
    if others and tars is not None and not tars.is_dir():
        raise DataError(
            f"--out {out} holds an import that was begun of other tars than those of {tars}: run the command that "
            f"began it, or choose another --out."
        )
    begun = _record(out / IMPORT_STATE_NAME).get("identity")
    if isinstance(begun, dict) and next(out.glob("*.tar"), None) is not None:  # else it was begun in vain
        cleaning = {flag for flag in begun.keys() | request.keys() if flag.startswith("--clean.")}
        _refuse_other(name, config, begun, request, cleaning | (begun.keys() & request.keys()))
    return False


def keep_record(
    out: Path, name: str, request: Mapping[str, Any], fetched: Sequence[Fetched], **facts: Any
) -> None:
    """Write what was asked for and fetched, and with which losses, into the dataset's folder."""
    from ssmke.data.download.archives import write_record

    write_record(out, fetched, dataset=name, request=dict(request), **facts)


def throw_away(
    folder: Path, fetched: Sequence[Fetched], unpacked: Sequence[str] = (), made: Sequence[str] = ()
) -> None:
    """Delete what was fetched to ``folder``, unpacked and ``made`` there; what the user put there stays."""
    from ssmke.data.download.archives import remove_fetched

    if not folder.is_dir():
        return
    remove_fetched(folder, fetched, unpacked)
    for name in made:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name, ignore_errors=True)
        else:
            (folder / name).unlink(missing_ok=True)
    for name in (*made, DOWNLOADS_NAME):
        for leftover in folder.glob(f".{name}.*{TEMPORARY_SUFFIX}"):  # of runs that were killed
            leftover.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()  # only if nothing else is in it


def _record(path: Path) -> dict[str, Any]:
    """The first JSON object of a file; empty if there is none."""
    try:
        text = path.read_text(encoding="utf-8").lstrip()
        content = json.JSONDecoder().raw_decode(text)[0]
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _refuse_other(
    name: str, config: GetConfig, before: Mapping[str, Any], now: Mapping[str, Any], flags: set[str]
) -> None:
    changed = [
        f"{flag} was {_shown(there)}, now {_shown(here)}"
        for flag, there, here in differences(before, now)
        if flag in flags
    ]
    if changed:
        raise DataError(
            f"--out {config.out} holds {name} as another command asked for it: {'; '.join(changed)}. Choose "
            f"another --out (with --downloads {config.folder} it uses what was fetched and is still there), or delete "
            f"that folder."
        )


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "all"
    return "not given" if value is None else str(value)
