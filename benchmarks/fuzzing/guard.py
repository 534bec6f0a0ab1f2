"""The property of every reader of foreign files: any bytes give a result or one of our errors, within bounds.

- an exception other than `SSMKEError` and `BadSample` is a finding, a message without words too;
- time is bounded in seconds of this process' own CPU, so that a busy machine finds nothing. A loop in C is not
  interrupted; it is judged when it returns (under coverage guidance the campaign's watchdog ends it);
- memory is bounded by the address space: what asks for more gets a ``MemoryError``, which is a finding unless the
  reader turns it into its own error;
- an audit hook refuses, and so finds, any file written or removed outside of the scratch folder, any process started,
  any address looked up and any class that ``pickle`` imports. It sees what Python does, not what C libraries do.

Costs about 30 microseconds a call.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ssmke.errors import BadSample, SSMKEError

SECONDS = 4.0
"""CPU time that a reader may take for one small file."""
GIGABYTES = 1.0
"""Address space that a reader may take for one small file."""


@dataclass(frozen=True)
class Target:
    """One reader, or a few that read the same kind of file."""

    name: str
    variants: tuple[str, ...]
    """Kinds of file; the first byte of the input chooses one where there are several."""
    prepare: Callable[[Path], None]
    """Writes what must lie beside the fuzzed file into the scratch folder, once."""
    seeds: Callable[[Path], Sequence[tuple[str, bytes]]]
    """(variant, content) of real files, to be called after `prepare`."""
    read: Callable[[str, bytes, Path], object]
    """Has the reader read content of a variant in the scratch folder."""
    modules: tuple[str, ...]
    """Beside ssmke: modules whose branches the coverage follows."""
    gigabytes: float = GIGABYTES

    def split(self, data: bytes) -> tuple[str, bytes]:
        """The variant and the content of an input."""
        if len(self.variants) == 1:
            return self.variants[0], data
        return self.variants[data[0] % len(self.variants) if data else 0], data[1:]

    def join(self, variant: str, content: bytes) -> bytes:
        """The input of a variant and a content."""
        return content if len(self.variants) == 1 else bytes([self.variants.index(variant)]) + content


class Broken(BaseException):
    """The property does not hold. No ``Exception``, so that no reader can catch it."""


@dataclass
class _Fence:
    """Where the audit hook lets files be written; nowhere special while ``folder`` is empty."""

    folder: str = ""
    hooked: bool = False


_FENCE = _Fence()
_PATHS = {
    "os.remove": 1, "os.rename": 2, "os.mkdir": 1, "os.rmdir": 1, "os.link": 2, "os.symlink": 2, "os.truncate": 1,
    "os.chmod": 1, "os.chown": 1, "os.utime": 1,
}  # fmt: skip
_NEVER = (
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "socket.connect",
    "socket.getaddrinfo", "pickle.find_class",
)  # fmt: skip


def examine(target: Target, data: bytes, folder: Path) -> bool:
    """Whether the reader gave a result (True) or refused with one of our errors.

    Raises:
        Broken: it did neither within the bounds.
        Exception: whatever else the reader raised.
    """
    variant, content = target.split(data)
    begin = time.process_time()
    try:
        with _bounded(target.gigabytes), fence(folder):
            target.read(variant, content, folder)
        result = True
    except (SSMKEError, BadSample) as error:
        if not str(error).strip():
            raise Broken("an error without words") from error
        result = False
    took = time.process_time() - begin
    if took > SECONDS:
        raise Broken(f"{took:.1f} s of CPU for {len(data):,} bytes")
    return result


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder of its own, in memory where the system has such a place; temporary files are made in it too."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="ssmke-fuzz-", dir=place) as name:
        yield Path(name)


@contextlib.contextmanager
def _bounded(gigabytes: float) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - the quickest way, before every call
        used = int(file.read().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGVTALRM, _too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (used + int(gigabytes * (1 << 30)), limits[1]))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGVTALRM, before)


def _too_long(number: int, frame: FrameType | None) -> None:
    raise Broken(f"no end after {SECONDS:g} s of CPU")


@contextlib.contextmanager
def fence(folder: Path) -> Iterator[None]:
    """Refuses writes outside of ``folder``, where temporary files go, processes and connections."""
    if not _FENCE.hooked:
        sys.addaudithook(_audit)  # stays for good, and does nothing while no fence is up
        _FENCE.hooked = True
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # of modules imported at first use
    temporary, tempfile.tempdir = tempfile.tempdir, str(folder)
    _FENCE.folder = os.path.realpath(folder)
    try:
        yield
    finally:
        _FENCE.folder = ""
        tempfile.tempdir = temporary
        sys.dont_write_bytecode = bytecode


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _FENCE.folder:
        return
    if event == "open":
        path, mode, flags = arguments
        writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else False
        if writes or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _refuse_outside(event, path)
    elif event in _PATHS:
        for path in arguments[: _PATHS[event]]:
            _refuse_outside(event, path)
    elif event in _NEVER:
        folder, _FENCE.folder = _FENCE.folder, ""
        try:
            raise Broken(f"{event} {arguments!r:.200}")
        finally:
            _FENCE.folder = folder


def _refuse_outside(event: str, path: Any) -> None:
    if isinstance(path, int):
        return  # opened before, and judged then
    # A name without a folder may be relative to an open one, as in shutil.rmtree.
    name = os.path.abspath(os.fsdecode(path)) if "/" in os.fsdecode(path) else ""  # noqa: PTH100
    if name and name not in ("/dev/null", _FENCE.folder) and not name.startswith(_FENCE.folder + os.sep):
        raise Broken(f"{event} outside of its folder: {name}")
