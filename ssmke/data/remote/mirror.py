"""A bounded local copy of a remote dataset: manifest and indexes at once, each tar when it is needed.

Training reads single samples at random, which object stores are bad at and disks are good at; so a shard is
fetched whole, once per machine, and read from the disk like any other. The copy is an ordinary dataset folder
in which tars are missing. All processes of a machine share it: one lock a shard (so a shard is fetched once,
and the others wait for it), renames, and a bound on the tars (see `ssmke.data.remote.room`). A tar that is
here is here whole: its SHA-256 was compared with the manifest while it came, and is remembered beside its
lock, so that a dataset that was replaced at its place is noticed. Asking for a tar that is here costs a
``stat`` and the read of a line: less than 0.1 ms.

    <cache-dir>/<name>-<digest of the URL>/manifest.json, train-00000.index.npz, train-00000.tar, ...
                                           .locks/train-00000.tar.lock   "<sha256>": what that tar is
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import numpy as np
from numpy.typing import NDArray

from ssmke.data.atomic import atomic_writer, make_folder, write_error
from ssmke.data.locks import locked
from ssmke.data.manifest import FILE_NAME, Manifest, ShardInfo
from ssmke.data.remote.contents import all_shards, caption_counts, is_index_of, parse_manifest
from ssmke.data.remote.fetch import (
    RefusedError,
    RemoteConfig,
    fetch_bytes,
    fetch_file,
    partial_path,
    partial_paths,
)
from ssmke.data.remote.parallel import in_threads
from ssmke.data.remote.prefetch import Prefetcher
from ssmke.data.remote.room import LOCKS, entries, listing_lock, lock_of, make_room
from ssmke.data.remote.sources import scheme_of, shown
from ssmke.data.shards import ShardIndex, file_sha256, index_path
from ssmke.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

_MANIFEST_LIMIT = 64 << 20
"""Bytes: a quarter of a million shards. Hostile JSON of that size takes 2 GB of memory to read."""
_INDEX_LIMIT = 256 << 20
"""Bytes of an index, whatever number of images a manifest claims: half a million a shard."""
_INDEX_THREADS = 8
_POLL_SECONDS = 0.1


class Mirror:
    """The local copy of one remote dataset folder; open with `open`.

    May be pickled and forked: it holds no lock, no connection and no open file between calls.
    """

    def __init__(self, url: str, folder: Path, config: RemoteConfig) -> None:
        self.url = url
        """Of the remote folder."""
        self.folder = folder
        """The local folder: manifest, indexes, and the tars that are here now."""
        self.config = config
        self._bound = int(config.cache_gigabytes * 1e9)
        self._prefetcher = Prefetcher(self._fetch_ahead)

    @classmethod
    def open(cls, url: str, config: RemoteConfig) -> Mirror:
        """Fetch the manifest of the dataset at ``url``, and drop what is here of shards that it no longer has.

        Raises:
            DataError: there is no manifest, or it is damaged, or did not come; or the disk refuses.
            ConfigError: the scheme is unknown, or needs a package that is not installed.
        """
        mirror = cls(url, _folder_of(url, config), config)
        content = fetch_bytes(mirror._remote(FILE_NAME), config, _MANIFEST_LIMIT)
        manifest = parse_manifest(content, mirror._remote(FILE_NAME))
        make_folder(mirror.folder / LOCKS)
        with locked(lock_of(mirror.folder, FILE_NAME)):
            mirror._drop_stale(manifest)
            path = mirror.folder / FILE_NAME
            if not path.is_file() or path.read_bytes() != content:
                with atomic_writer(path) as file:
                    file.write(content)
        mirror._warn_of_small_disk(manifest)
        return mirror

    def indexes(self, infos: Sequence[ShardInfo]) -> list[NDArray[np.int32]]:
        """Make sure that the index file of every shard is here and belongs to it; several at a time.

        Where the remote has none, the tar is fetched and its index made: then every shard comes once.

        Returns:
            Captions of each image of each shard.

        Raises:
            DataError: an index or tar did not come, or disagrees with the manifest.
        """
        return in_threads(self._index, infos, _INDEX_THREADS)

    def ensure(self, info: ShardInfo) -> Path:
        """The tar of a shard, whole, on the local disk; waits until it is there.

        It may give way to others at any time afterwards: a file that has been opened can be read on, and on
        ``FileNotFoundError`` the caller asks again.

        Raises:
            DataError: it did not come, is not the one of the manifest, or the disk refuses.
            ConfigError: it is larger than the bound.
        """
        path = self.folder / info.file
        if not self._is_here(info):
            self._fetch(info)
        now = time.time_ns()  # the file system's own clock is too coarse to keep the order
        with contextlib.suppress(OSError):
            os.utime(path, ns=(now, now))
        return path

    def prefetch(self, infos: Sequence[ShardInfo]) -> None:
        """Fetch shards in the background, in this order; replaces what was asked for before.

        None of them gives way to another of them: when they fill the bound, it stops. So ``infos`` should begin
        with the shards that are being read. Errors are logged, and left to `ensure`.
        """
        self._prefetcher.want(infos)

    def __getstate__(self) -> tuple[str, Path, RemoteConfig]:
        return self.url, self.folder, self.config

    def __setstate__(self, state: tuple[str, Path, RemoteConfig]) -> None:
        Mirror.__init__(self, *state)

    def _remote(self, file: str) -> str:
        if scheme_of(self.url) not in ("http", "https"):
            return f"{self.url.rstrip('/')}/{file}"
        # Behind the path there may be a signature that gives access.
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(file)}"))

    def _is_here(self, info: ShardInfo) -> bool:
        try:
            return (self.folder / info.file).stat().st_size == info.bytes and self._known(info) == info.sha256
        except OSError:
            return False

    def _known(self, info: ShardInfo) -> str:
        """SHA-256 of the tar that is here; empty if it was not noted."""
        try:
            return lock_of(self.folder, info.file).read_text(encoding="ascii", errors="replace").strip()
        except FileNotFoundError:
            return ""

    def _fetch_ahead(self, info: ShardInfo, keep: Collection[str]) -> None:
        if not self._is_here(info):
            self._fetch(info, wait=False, keep=keep)

    def _fetch(self, info: ShardInfo, wait: bool = True, keep: Collection[str] = ()) -> None:
        """Fetch a tar that is not here; without ``wait`` only if nobody else does, and there is room for it."""
        if info.bytes > self._bound:
            raise ConfigError(
                f"the shard {info.file} of {shown(self.url)} has {info.bytes / 1e9:.3g} GB, which does not fit "
                f"into --data.remote.cache-gigabytes {self.config.cache_gigabytes:g}: give more."
            )
        path, lock = self.folder / info.file, lock_of(self.folder, info.file)
        make_folder(lock.parent)
        with locked(lock, wait=wait) as ours:
            if not ours or self._is_here(info):  # somebody else was faster
                return
            try:
                if not _is_file(path, info):  # it may be: put here by hand, or by one who was killed
                    path.unlink(missing_ok=True)
                    if not self._reserve(info, wait, keep):
                        return
                    fetch_file(
                        self._remote(info.file),
                        path,
                        self.config,
                        size=info.bytes,
                        digest=("sha256", info.sha256),
                        naming=listing_lock(self.folder),
                    )
                lock.write_text(info.sha256, encoding="ascii")
            except OSError as error:
                raise _with_flags(write_error(path, error), error) from error
            except DataError as error:
                raise _with_flags(error, error.__cause__) from error.__cause__

    def _reserve(self, info: ShardInfo, wait: bool, keep: Collection[str]) -> bool:
        """Room for a tar whose lock we hold; False if there is none, and we may not ``wait`` for it."""
        path = self.folder / info.file
        partial = partial_path(path, info.bytes, info.sha256)
        for other in partial_paths(path):
            if other != partial:
                other.unlink(missing_ok=True)
        while not make_room(partial, info.bytes, self._bound, keep):
            if not wait:
                return False
            # Whoever waits for room must not take any, or two could wait for each other.
            partial.unlink(missing_ok=True)
            time.sleep(_POLL_SECONDS)
        return True

    def _index(self, info: ShardInfo) -> NDArray[np.int32]:
        path = index_path(self.folder / info.file)
        counts = caption_counts(path, info)
        if counts is not None:
            return counts
        make_folder(self.folder / LOCKS)
        with locked(lock_of(self.folder, path.name)):
            counts = caption_counts(path, info)  # another process may have been faster
            if counts is None:
                counts = self._fetch_index(info, path)
            if counts is None:
                counts = self._make_index(info)
        return counts

    def _fetch_index(self, info: ShardInfo, path: Path) -> NDArray[np.int32] | None:
        """The remote's index, saved; None if it has none, or one of another tar."""
        # A key has at most 90 characters of 4 bytes, and there are six numbers a sample.
        limit = min(65_536 + info.images * 512, _INDEX_LIMIT)
        for _ in range(2):  # wrong bytes may be of the line, and a tar is a thousand times larger
            try:
                content = fetch_bytes(self._remote(path.name), self.config, limit)
            except RefusedError:
                logger.warning("%s has no %s: the shard is fetched to make it", shown(self.url), path.name)
                return None
            if is_index_of(content, info):
                with atomic_writer(path) as file:
                    file.write(content)
                return caption_counts(path, info)
        logger.warning("%s of %s is not of its shard: it is made again", path.name, shown(self.url))
        return None

    def _make_index(self, info: ShardInfo) -> NDArray[np.int32]:
        while True:
            path = self.ensure(info)
            try:
                index = ShardIndex.load(path)
                break
            except DataError as error:
                if not gave_way(error):
                    raise
        if len(index) != info.images or int(index.captions.sum()) != info.captions:
            raise DataError(
                f"the shard {info.file} of {shown(self.url)} has {len(index):,} images and "
                f"{int(index.captions.sum()):,} captions, its manifest says {info.images:,} and "
                f"{info.captions:,}: make the dataset again."
            )
        return index.captions

    def _drop_stale(self, manifest: Manifest) -> None:
        """Delete tars and indexes that the new manifest does not have."""
        new = {info.file: info for info in all_shards(manifest)}
        with contextlib.suppress(DataError):
            for old in all_shards(Manifest.load(self.folder)):
                if old.file not in new or new[old.file].sha256 != old.sha256:
                    index_path(self.folder / old.file).unlink(missing_ok=True)
        for entry in entries(self.folder):
            info = new.get(entry.tar)
            if info is not None and entry.bytes == info.bytes and self._known(info) in ("", info.sha256):
                continue
            with locked(lock_of(self.folder, entry.tar), wait=False) as ours:
                if ours:  # otherwise somebody is at work on it, and `ensure` will look at it again
                    entry.path.unlink(missing_ok=True)

    def _warn_of_small_disk(self, manifest: Manifest) -> None:
        total = sum(info.bytes for info in all_shards(manifest))
        growth = min(self._bound, total) - sum(entry.bytes for entry in entries(self.folder))
        free = shutil.disk_usage(self.folder).free
        if growth > free:
            logger.warning(
                "the local copy of %s may grow by %.3g GB, but %s has only %.3g GB free: give a smaller "
                "--data.remote.cache-gigabytes, or another --data.remote.cache-dir",
                shown(self.url), growth / 1e9, self.folder, free / 1e9,
            )  # fmt: skip


def gave_way(error: DataError) -> bool:
    """Whether ``error``, of reading a tar, is that it was gone: then `Mirror.ensure` fetches it again.

    Looking whether the tar exists would not tell: another process may have fetched it in the meantime.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, FileNotFoundError):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def _folder_of(url: str, config: RemoteConfig) -> Path:
    place = shown(url).rstrip("/")
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", place.rpartition("/")[2]).strip("._")[:64] or "dataset"
    return config.cache_folder / f"{name}-{hashlib.sha256(place.encode()).hexdigest()[:12]}"


def _is_file(path: Path, info: ShardInfo) -> bool:
    """Whether ``path`` is the tar of the manifest, by reading all of it."""
    try:
        return path.stat().st_size == info.bytes and file_sha256(path) == info.sha256
    except OSError:
        return False


def _with_flags(error: DataError, cause: BaseException | None) -> DataError:
    """The error of a full disk, with the flags that would help."""
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return DataError(
            f"{error} A smaller --data.remote.cache-gigabytes needs less; --data.remote.cache-dir moves it."
        )
    return error
