"""The Python environment that img2dataset runs in, made on first use.

img2dataset 1.47 wants webdataset<0.3 and pandas<3, so it cannot share an environment with ssmke. It gets a
virtual environment of its own below the user's cache: this Python's `venv` and pip, with the exact versions of
``img2dataset-requirements.txt``. pip's settings (index, proxy, constraints) are the user's. About 780 MB on the
disk and one to three minutes, once. The folder's name tells img2dataset's version, Python's, and the
requirements' digest, so another ssmke makes another one; a file written last says that it is whole, and one
without it is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ssmke.data.atomic import atomic_writer, make_folder, write_error
from ssmke.data.download.group import ProcessGroup
from ssmke.data.locks import locked
from ssmke.errors import DataError

REQUIREMENTS = Path(__file__).with_name("img2dataset-requirements.txt")
_WHOLE = "ssmke-whole"
_CHECK = "import importlib.metadata as m, cv2, img2dataset; print(m.version('img2dataset'))"
_REMEDY = "or give the python of an environment that has img2dataset: --img2dataset PYTHON."


def img2dataset_python(
    command: str | None, say: Callable[[str], None] = lambda line: None, cache: Path | None = None
) -> Path:
    """The Python to run img2dataset with.

    Args:
        command: Python of an existing environment; None for ours, which is made if it is not there.
        say: called with a line for the user when something takes long.
        cache: folder for our environments; default ``~/.cache/ssmke``.

    Raises:
        DataError: ``command`` has no img2dataset, or the environment cannot be made (no network, full disk, ...).
    """
    if command is not None:
        return _checked(command)
    folder = (cache or Path.home() / ".cache" / "ssmke") / _name()
    python = folder / "bin" / "python"
    if (folder / _WHOLE).is_file() and python.exists():
        return python
    make_folder(folder.parent)
    lock = folder.with_name(f".{folder.name}.lock")
    with contextlib.ExitStack() as held:
        # One maker at a time; the others wait and then find it made.
        if not held.enter_context(locked(lock, wait=False, needed=False)):
            say("Another process is making the environment for img2dataset; waiting for it ...")
            held.enter_context(locked(lock, needed=False))
        if not ((folder / _WHOLE).is_file() and python.exists()):
            _make(folder, python, say)
    return python


def require(python: Path, distributor: str) -> None:
    """See that the module of a distributor of img2dataset is there.

    Raises:
        DataError: it is not.
    """
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({distributor!r}) is None)"
    if subprocess.run([python, "-c", code], env=child_environment({}), check=False).returncode != 0:
        raise DataError(
            f"--distributor {distributor}: {python} has no {distributor}. Give the python of an environment that "
            f"has both it and img2dataset: --img2dataset PYTHON."
        )


def child_environment(more: dict[str, str]) -> dict[str, str]:
    """Our environment variables without those that would lead another Python to our packages, and ``more``."""
    dropped = {"PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "__PYVENV_LAUNCHER__", "VIRTUAL_ENV"}
    return {name: value for name, value in os.environ.items() if name not in dropped} | more


def _name() -> str:
    text = REQUIREMENTS.read_bytes()
    pinned = next(line for line in text.decode().splitlines() if line.startswith("img2dataset=="))
    version = pinned.partition("==")[2]
    python = f"py{sys.version_info.major}.{sys.version_info.minor}"
    return f"img2dataset-{version}-{python}-{hashlib.sha256(text).hexdigest()[:8]}"


def _make(folder: Path, python: Path, say: Callable[[str], None]) -> None:
    say(f"Making an environment for img2dataset in {folder} (about 780 MB, once) ...")
    begin = time.monotonic()
    try:
        # What a stopped run left is not worth mending.
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise write_error(folder, error) from error
    _run([sys.executable, "-m", "venv", str(folder)], "python -m venv", folder)
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    _run([*pip, "-r", str(REQUIREMENTS)], "pip install", folder)
    _run([str(python), "-c", _CHECK], "import img2dataset", folder)
    with atomic_writer(folder / _WHOLE) as file:
        file.write(b"whole\n")
    say(f"The environment for img2dataset is ready ({time.monotonic() - begin:.0f} s).")


def _run(command: list[str], what: str, folder: Path) -> None:
    # The check imports albumentations, which would ask the package index for news.
    environment = child_environment({"NO_ALBUMENTATIONS_UPDATE": "1"})
    try:
        with ProcessGroup(command, environment) as group:
            status = group.wait()
        lines = group.last_lines
    except OSError as error:
        status, lines = 1, [str(error)]
    if status != 0:
        # pip says what went wrong in lines that begin so; other programs in their last line.
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
        raise DataError(
            f"the environment for img2dataset could not be made in {folder}: {what} failed: "
            f"{' '.join(errors)[:600] or 'it said nothing'}. Mend that (is there a network, and room on the disk?) "
            f"and run the same command again, {_REMEDY}"
        )


def _checked(command: str) -> Path:
    found = shutil.which(command)
    if found is None:
        raise DataError(f"--img2dataset {command}: there is no such program. Give the path of a python.")
    try:
        answer = subprocess.run(
            [found, "-c", _CHECK],
            env=child_environment({"NO_ALBUMENTATIONS_UPDATE": "1"}),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataError(
            f"--img2dataset {command} does not run: {error}. Give the path of a python."
        ) from None
    if answer.returncode != 0:
        last = (answer.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise DataError(
            f"--img2dataset {command} has no usable img2dataset: {last[:300]}. Install img2dataset there, or "
            f"leave the flag away, and an environment is made."
        )
    return Path(found)
