"""One remote file, read piece by piece through fsspec, with a deadline on every wait.

fsspec gives one way to all stores, but its file systems differ in what they do when a server misbehaves: some
retry, some wait for five minutes or for ever, some hand out a whole file where a range was asked for. So
nothing here relies on that: a source is asked for the next bytes, and answers within the time given, with the
bytes, with `Interrupted` (ask again), or with `Refused` (it makes no sense to ask again). HTTP has a source of
its own (`ssmke.data.remote.http`); every other store is read in ranges with ``cat_file``.

Forked workers: fsspec runs one event loop in a thread, which a child does not have. File systems are made per
process, when first used, and a child never lets go of those that it inherited: closing them would reach into
the connections of its parent.
"""

from __future__ import annotations

import dataclasses
import os
import re
import threading
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import fsspec
import fsspec.asyn
from fsspec.exceptions import FSTimeoutError

from ssmke.credentials import holds, masked
from ssmke.errors import ConfigError

RANGE_BYTES = 16 << 20
_LEAST_RANGE_BYTES = 1 << 20
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_ON_THE_WEB = re.compile(r"https?://[^\s'\"<>()\[\]]+", re.IGNORECASE)
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "hf": "huggingface_hub",
    "az": "adlfs",
    "abfs": "adlfs",
    "http": "aiohttp",
    "https": "aiohttp",
}
_BUSY = frozenset({408, 409, 416, 421, 423, 425, 429})
"""Answers of the 400s that are about the moment, not about the file."""
_VERSION_FIELDS = (
    "ETag", "etag", "md5Hash", "crc32c", "generation", "sha256", "blob_id", "oid", "checksum",
    "LastModified", "last_modified", "updated", "mtime", "created",
)  # fmt: skip


class Refused(Exception):
    """The answer will not change by asking again: the file is missing, or we may not read it."""

    def __init__(self, why: str, *, denied: bool = False, missing: bool = False) -> None:
        super().__init__(why)
        self.denied = denied
        self.missing = missing


class Interrupted(Exception):
    """Not all of a piece came; ``data`` is what did. ``late``: the deadline passed."""

    def __init__(self, why: str, data: bytes = b"", *, late: bool = False) -> None:
        super().__init__(why)
        self.data = data
        self.late = late


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a store says of a file."""

    size: int | None
    """Bytes; None if the server does not say."""
    version: str
    """Changes when the file does (an ETag, a time); empty if the store has nothing of the kind."""


class Source(Protocol):
    """A file at a store. Every method may raise `Refused` or `Interrupted`, and none takes much longer than the
    deadline."""

    def facts(self) -> Facts:
        """Size and version."""
        ...

    def read(self, start: int, want: int) -> bytes:
        """At most ``want`` bytes from ``start``; fewer only where a range is cut smaller or the file ends, none
        at its end."""
        ...

    def close(self) -> None:
        """Let go of the connection; never raises."""
        ...


def scheme_of(place: object) -> str | None:
    """``s3`` of ``s3://bucket/x``; None for a path. (A `Path` is never remote: it swallows a slash.)"""
    match = _SCHEME.match(place) if isinstance(place, str) else None
    if match is None:
        return None
    try:
        urlsplit(str(place))
    except ValueError as error:
        raise ConfigError(f"{masked(str(place))} is no address: {error}.") from None
    return match[1].lower()


def shown(url: str) -> str:
    """A URL as it may be printed: without passwords and signatures."""
    if scheme_of(url) is None:
        return masked(url)
    parts = urlsplit(url)
    if parts.scheme.lower() not in ("http", "https"):
        bare = url.replace(f"{parts.netloc.rpartition('@')[0]}@", "", 1) if "@" in parts.netloc else url
        return masked(bare)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def has_secret(url: str) -> bool:
    """Whether a URL has what may give access: a user, a password, or the query of a signed one."""
    parts = urlsplit(url)
    web = parts.scheme in ("http", "https")
    return "@" in parts.netloc or (web and bool(parts.query or parts.fragment)) or holds(url)


def without_secrets(text: str) -> str:
    """A message of a library, in which addresses may stand as they were asked for."""
    return masked(_ON_THE_WEB.sub(lambda match: _shown_or_masked(match[0]), text))


def _shown_or_masked(url: str) -> str:
    try:
        return shown(url)
    except (ConfigError, ValueError):
        return masked(url)


def open_source(url: str, size: int | None, timeout: float) -> Source:
    """The source of ``url``; nothing is asked of the store yet.

    Args:
        url: of a file.
        size: that the file must have, if it is known.
        timeout: seconds for each answer.

    Raises:
        ConfigError: the scheme is unknown, or the package for it is not installed.
    """
    scheme = scheme_of(url)
    file_system = _file_system(url, scheme or "file")
    if scheme in ("http", "https"):
        from ssmke.data.remote.http import HttpSource  # needs aiohttp, which other schemes do not

        return HttpSource(file_system, url, size, timeout)
    return _RangeSource(file_system, url, timeout)


class _RangeSource:
    """A file of a store whose file system can ``cat_file`` a range: s3, gs, hf, file, memory."""

    def __init__(self, file_system: Any, url: str, timeout: float) -> None:
        self._fs, self._timeout = file_system, timeout
        self._path = file_system._strip_protocol(url)
        self._range = RANGE_BYTES

    def facts(self) -> Facts:
        info = self._call("info", self._path)
        if info.get("type") == "directory":
            raise Refused("it is a folder, not a file", missing=True)
        if info.get("size") is None:
            raise Refused("the store does not say how large it is")
        return Facts(int(info["size"]), next((str(info[f]) for f in _VERSION_FIELDS if info.get(f)), ""))

    def read(self, start: int, want: int) -> bytes:
        want = min(want, self._range)
        # "none": the usual read-ahead would fetch 5 MB behind every range, and throw them away.
        options = {} if self._is_async else {"cache_type": "none"}
        try:
            data = self._call("cat_file", self._path, start=start, end=start + want, **options)
        except _Late:
            # A line that is slow rather than dead gets through with smaller ranges.
            self._range = max(_LEAST_RANGE_BYTES, self._range // 2)
            raise
        if len(data) > want:
            raise Interrupted(f"{len(data):,} bytes came where {want:,} were asked for")
        return bytes(data)

    def close(self) -> None:
        """There is nothing to let go of: connections are the file system's."""

    @property
    def _is_async(self) -> bool:
        return bool(getattr(self._fs, "async_impl", False))

    def _call(self, name: str, *args: Any, **options: Any) -> Any:
        try:
            if self._is_async:
                method = getattr(self._fs, f"_{name}")
                return fsspec.asyn.sync(self._fs.loop, method, *args, timeout=self._timeout, **options)
            return _in_time(lambda: getattr(self._fs, name)(*args, **options), self._timeout)
        except (FSTimeoutError, TimeoutError):
            raise _Late(f"no answer within {self._timeout:g} s", late=True) from None
        except (Refused, Interrupted):
            raise
        except Exception as error:
            raise sort_out(error) from error


class _Late(Interrupted):
    """The deadline passed."""


def sort_out(error: Exception) -> Refused | Interrupted:
    """Whether it makes sense to ask again after ``error`` of a file system."""
    why = f"{error}".strip() or type(error).__name__
    status = _status(error)
    if isinstance(error, (FileNotFoundError, IsADirectoryError)) or status in (404, 410):
        return Refused("there is no such file", missing=True)
    if isinstance(error, PermissionError) or status in (401, 403):
        return Refused(f"access is denied ({why})", denied=True)
    if "Credentials" in type(error).__name__ or type(error).__name__ == "ProfileNotFound":
        return Refused(f"there are no valid credentials ({why})", denied=True)
    if status is not None and 400 <= status < 500 and status not in _BUSY:
        return Refused(why)
    if isinstance(error, (ValueError, TypeError, NotImplementedError, ImportError)):
        return Refused(f"{type(error).__name__}: {why}")
    return Interrupted(f"{type(error).__name__}: {why}")


def _status(error: Exception) -> int | None:
    for holder, name in (
        (error, "status"),
        (error, "code"),
        (getattr(error, "response", None), "status_code"),
    ):
        value = getattr(holder, name, None)
        if isinstance(value, int):
            return value
    return None


def _in_time(function: Callable[[], Any], timeout: float) -> Any:
    """The result of ``function``, run in a thread that is left behind if it takes too long."""
    done = threading.Event()
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="ssmke-range", daemon=True).start()
    if not done.wait(timeout):
        raise TimeoutError
    if errors:
        raise errors[0]
    return results[0]


# Kept for good, by process: see the top of this file.
_file_systems: dict[tuple[int, str], Any] = {}
# After a fork fsspec makes a new loop, but keeps a lock that another thread of the parent may have held.
os.register_at_fork(after_in_child=fsspec.asyn.reset_lock)


def _file_system(url: str, scheme: str) -> Any:
    key = (os.getpid(), scheme)
    if key not in _file_systems:
        try:
            # Two threads may make one each; both can be used, one is kept.
            _file_systems.setdefault(key, fsspec.filesystem(scheme, skip_instance_cache=True))
        except ImportError as error:
            package = _PACKAGES.get(scheme)
            remedy = f"pip install {package}" if package else str(error)
            raise ConfigError(f"{shown(url)} cannot be read without a further package: {remedy}") from None
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"{shown(url)} cannot be read: {error}. Places that can: a folder, s3://, gs://, hf://, https://."
            ) from None
    return _file_systems[key]
