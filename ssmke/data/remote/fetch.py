"""Fetch one remote file so that it is whole, or that there is one message which says why not.

Bytes are appended to a hidden partial file beside the final name as they come, and hashed on the way. A piece
that does not come in time is asked for again, after a pause that grows; only pieces in a row that fail count,
so a long file over a bad line gets through, and a dead server is given up after ``retries``. What had arrived
stays, through kills as well: the next run asks for the rest. Before the file gets its name, size and digest
are checked, and if the digest is wrong it is fetched again, until the same wrong bytes came twice: then it is
not the line, but another file. Costs some 2 CPU seconds a gigabyte, hashing included, and one fsync.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from ssmke.data.atomic import TEMPORARY_SUFFIX, make_folder, write_error
from ssmke.data.locks import locked
from ssmke.data.remote.sources import (
    RANGE_BYTES,
    Facts,
    Interrupted,
    Refused,
    Source,
    open_source,
    scheme_of,
    shown,
    without_secrets,
)
from ssmke.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 30.0  # seconds
# Not the global generator: that one belongs to the training's seeds.
_jitter = random.SystemRandom()


@dataclasses.dataclass(frozen=True)
class RemoteConfig:
    """How remote datasets are fetched and kept."""

    cache_dir: str | None = None
    """Folder of the local copies; default ~/.cache/ssmke/shards."""
    cache_gigabytes: float = 50.0
    """Space for the shards of each remote dataset; the least recently used make room for others."""
    retries: int = 8
    """How often in a row a piece of a file may fail before the file is given up."""
    timeout_seconds: float = 60.0
    """A piece that has not come by then is asked for again."""

    def __post_init__(self) -> None:
        if not 0 < self.cache_gigabytes <= 1e9:
            raise ConfigError(
                f"--data.remote.cache-gigabytes must be above 0, and at most 1e9, not {self.cache_gigabytes}."
            )
        try:
            _ = self.cache_folder
        except RuntimeError as error:
            raise ConfigError(f"--data.remote.cache-dir {self.cache_dir}: {error}") from None
        if self.retries < 0:
            raise ConfigError(f"--data.remote.retries must be 0 or more, not {self.retries}.")
        if not self.timeout_seconds > 0:
            raise ConfigError(f"--data.remote.timeout-seconds must be above 0, not {self.timeout_seconds}.")

    @property
    def cache_folder(self) -> Path:
        """Where the local copies are."""
        if self.cache_dir is not None:
            return Path(self.cache_dir).expanduser()
        return Path.home() / ".cache" / "ssmke" / "shards"


class RefusedError(DataError):
    """The store says that a file is not there, or that we may not read it."""


def is_remote(place: str | Path) -> bool:
    """Whether ``place`` is a URL (``s3://``, ``gs://``, ``hf://``, ``https://``, ``file://``, ...), not a path."""
    return scheme_of(place) is not None


def fetch_file(
    url: str,
    path: Path,
    config: RemoteConfig,
    *,
    size: int | None = None,
    digest: tuple[str, str] | None = None,
    on_bytes: Callable[[int], None] = lambda count: None,
    naming: contextlib.AbstractContextManager[object] | None = None,
    limit: int | None = None,
) -> None:
    """Fetch ``url`` to ``path``; what an earlier call had fetched is taken up.

    Args:
        url: of the file.
        path: where it shall be; an existing file is replaced. Folders above it are made.
        config: retries and deadline.
        size: bytes that it must have; default: what the server says.
        digest: ("sha256" or "md5", hexadecimal) that it must have. Without one, and without any version from
            the server, an earlier partial file is not taken up, since it may be of another file.
        on_bytes: called with the number of bytes that have been added, those of an earlier call first; negative
            when they have to be fetched again.
        naming: entered while the partial file gets its final name.
        limit: bytes that it may have at most, for files whose size nobody published: a server could send for ever.

    Raises:
        RefusedError: it is not there, or access is denied.
        DataError: it did not come, is not the file that was expected, or cannot be written; names the URL, the
            cause and what to do.
        ConfigError: the scheme is unknown, or needs a package that is not installed.
    """
    make_folder(path.parent)
    with contextlib.closing(open_source(url, size, config.timeout_seconds)) as source:
        version = digest[1] if digest else ""
        if size is None or digest is None:
            facts = _facts(source, url, config)
            if None not in (size, facts.size) and size != facts.size:
                raise DataError(_other_file(url, f"has {facts.size:,} bytes where {size:,} were expected"))
            size, version = size if size is not None else facts.size, version or facts.version
        if limit is not None and (size or 0) > limit:
            raise DataError(_other_file(url, f"has {size:,} bytes, more than {limit:,}"))
        partial = partial_path(path, size, version)
        _remove_others(path, partial)
        with locked(partial, wait=False) as ours:
            if not ours:
                raise DataError(f"{path} is being fetched by another process: wait for it, or end it.")
            try:
                with partial.open("r+b", buffering=0) as file:
                    # A shared name is safe only if the name says which version of the file it is.
                    if not version or size is None:
                        file.truncate(0)
                    _fill(file, source, url, config, size, digest, on_bytes, limit)
                    os.fsync(file.fileno())
                with naming or contextlib.nullcontext():
                    partial.replace(path)
            except OSError as error:
                raise write_error(path, error) from error
            finally:
                _remove_if_empty(partial)


def fetch_bytes(url: str, config: RemoteConfig, limit: int) -> bytes:
    """The content of a small file.

    Raises:
        RefusedError: it is not there, or access is denied.
        DataError: it did not come, or has more than ``limit`` bytes.
        ConfigError: the scheme is unknown, or needs a package that is not installed.
    """
    with contextlib.closing(open_source(url, None, config.timeout_seconds)) as source:
        size = _facts(source, url, config).size
        content = bytearray()
        if size is None or size <= limit:
            for data in _pieces(source, url, config, 0, size):
                content += data
                if len(content) > limit:
                    break
        if len(content) > limit or (size or 0) > limit:
            raise DataError(_other_file(url, f"has more than {limit:,} bytes"))
        return bytes(content)


def partial_path(path: Path, size: int | None, version: str) -> Path:
    """Where ``path`` is while it is being fetched. Tells the size that it will have, and from which file."""
    tag = hashlib.sha256(version.encode()).hexdigest()[:8]
    return path.with_name(f".{path.name}.{size or 0}.{tag}{TEMPORARY_SUFFIX}")


def partial_paths(path: Path) -> list[Path]:
    """All partial files of ``path``, of whatever version."""
    return [other for other in path.parent.glob(f".*{TEMPORARY_SUFFIX}") if _is_partial_of(path, other)]


def _is_partial_of(path: Path, other: Path) -> bool:
    head, _, _ = other.name.removesuffix(TEMPORARY_SUFFIX).rpartition(".")
    return head.rpartition(".")[0] == f".{path.name}"


def _remove_others(path: Path, partial: Path) -> None:
    """Partial files of other versions of ``path`` that nobody is writing."""
    for other in partial_paths(path):
        if other != partial:
            with locked(other, wait=False) as ours:
                if ours:
                    other.unlink(missing_ok=True)


def _fill(
    file: BinaryIO,
    source: Source,
    url: str,
    config: RemoteConfig,
    size: int | None,
    digest: tuple[str, str] | None,
    on_bytes: Callable[[int], None],
    limit: int | None,
) -> None:
    """Append what is missing until ``file`` is whole and right."""
    wrong: set[str] = set()
    while True:
        hasher = hashlib.new(digest[0] if digest else "sha256", usedforsecurity=False)
        there = 0
        if size is not None and os.fstat(file.fileno()).st_size > size:
            file.truncate(0)
        file.seek(0)
        while data := file.read(1 << 20):
            hasher.update(data)
            there += len(data)
        on_bytes(there)
        for data in _pieces(source, url, config, there, size):
            _write(file, data)
            hasher.update(data)
            there += len(data)
            on_bytes(len(data))
            if limit is not None and there > limit:
                file.truncate(0)
                raise DataError(_other_file(url, f"has more than {limit:,} bytes"))
        found = hasher.hexdigest()
        if digest is None or found == digest[1].lower():
            return
        if found in wrong or len(wrong) >= config.retries:
            file.truncate(0)
            raise DataError(_other_file(url, f"has the {digest[0]} {found} where {digest[1]} was expected"))
        wrong.add(found)
        on_bytes(-there)
        file.truncate(0)


def _write(file: BinaryIO, data: bytes) -> None:
    # An unbuffered file may take less than it is given, when a disk gets full.
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _remove_if_empty(partial: Path) -> None:
    """A partial file without a byte is of no use; one that has got its name is not there."""
    with contextlib.suppress(OSError):
        if partial.stat().st_size == 0:
            partial.unlink()


def _facts(source: Source, url: str, config: RemoteConfig) -> Facts:
    failures = 0
    while True:
        try:
            return source.facts()
        except Refused as error:
            raise _refusal(url, error) from None
        except Interrupted as error:
            failures += 1
            _pause(url, config, failures, error)


def _pieces(source: Source, url: str, config: RemoteConfig, start: int, size: int | None) -> Iterator[bytes]:
    """The bytes from ``start`` to the end, in order."""
    failures = 0
    while size is None or start < size:
        trouble: Interrupted | None = None
        try:
            data = source.read(start, RANGE_BYTES if size is None else min(RANGE_BYTES, size - start))
            if not data and size is None:
                return
            if not data:
                trouble = Interrupted(f"it ended after {start:,} of {size:,} bytes")
        except Refused as error:
            raise _refusal(url, error) from None
        except Interrupted as error:
            data, trouble = error.data, error
        if data:
            yield data
            start += len(data)
        # Some bytes are no success: a server that drips would never be given up.
        failures = 0 if trouble is None else failures + 1
        if trouble is not None and start != size:
            _pause(url, config, failures, trouble)


def _pause(url: str, config: RemoteConfig, failures: int, trouble: Interrupted) -> None:
    """Wait before the next attempt, or give up."""
    if failures > config.retries:
        times = "once" if failures == 1 else f"{failures} times"
        why = without_secrets(str(trouble))
        raise DataError(
            f"{shown(url)} could not be fetched, tried {times} in a row: {why}. Check the network and the "
            f"server, then run the same command again: what has arrived is kept."
        )
    if trouble.late or failures > 2:
        # One that is quick passes by itself; a stall costs a minute each time, and must have a name.
        logger.warning(
            "%s: %s; asked again (%d of %d)",
            shown(url), without_secrets(str(trouble)), failures, config.retries,
        )  # fmt: skip
    longest = min(_LONGEST_PAUSE, config.timeout_seconds)
    time.sleep(min(longest, _FIRST_PAUSE * 2 ** (failures - 1)) * _jitter.uniform(0.5, 1.0))


_CREDENTIALS = {
    "s3": "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "`gcloud auth application-default login`, or GOOGLE_APPLICATION_CREDENTIALS",
    "hf": "`hf auth login`, or HF_TOKEN; and the terms of a gated dataset must be accepted on its page",
}


def _refusal(url: str, error: Refused) -> DataError:
    why = without_secrets(str(error))
    if error.missing:
        remedy = "Check the address, and that the upload was complete."
    elif error.denied:
        how = _CREDENTIALS.get(scheme_of(url) or "")
        remedy = "Check the address and your rights" + (f" (credentials: {how})." if how else ".")
    else:
        return DataError(f"{shown(url)} cannot be fetched: {why}. Check the address, and what lies there.")
    return RefusedError(f"{shown(url)} cannot be fetched: {why}. {remedy}")


def _other_file(url: str, what: str) -> str:
    return (
        f"{shown(url)} is not the file that was expected: it {what}. It was replaced or damaged where it lies: "
        f"upload it again together with its manifest, or get it from another place."
    )
