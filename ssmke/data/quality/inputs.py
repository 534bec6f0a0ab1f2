"""The shards of finished datasets as inputs: listed, checked against their manifests, never written to.

`ssmke.data.shards.ShardIndex.load` mends a missing index on disk. What only reads other people's folders must
not, so here it is rebuilt in memory (60 microseconds a sample). Nor is an index trusted because it is of a tar of
the same size: it must have the keys and the number of captions that the manifest states (0.5 ms a thousand).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ssmke.data.manifest import Manifest, ShardInfo
from ssmke.data.remote.fetch import is_remote
from ssmke.data.shard_scan import scan, tar_size
from ssmke.data.shards import OpenFiles, ShardIndex, keys_digest
from ssmke.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class InputShard:
    """A shard of a dataset."""

    directory: Path
    split: str
    info: ShardInfo

    @property
    def path(self) -> Path:
        return self.directory / self.info.file

    def open(self, files: OpenFiles | None = None) -> ShardIndex:
        """Its index.

        Raises:
            DataError: it is missing, or not the shard that the manifest speaks of.
        """
        size = tar_size(self.path)
        if size != self.info.bytes:
            raise DataError(self._changed("bytes", size, self.info.bytes))
        index = ShardIndex.load_stored(self.path, files)
        if index is None or not self._is_index(index):
            index = ShardIndex.of(self.path, scan(self.path), files)
        if len(index) != self.info.images:
            raise DataError(self._changed("images", len(index), self.info.images))
        if keys_digest(index.keys) != self.info.keys_sha256:
            raise DataError(
                f"the shard {self.path} holds other samples than the manifest says. Copy both again from their "
                f"source, or delete the dataset and run the command that made it again."
            )
        return index

    def _is_index(self, index: ShardIndex) -> bool:
        """Whether an index found on disk is of this very shard: another of the same size may have lain there."""
        try:
            return (
                len(index) == len(index.keys) == self.info.images
                and int(index.captions.sum()) == self.info.captions
                and keys_digest(index.keys) == self.info.keys_sha256
            )
        except (TypeError, ValueError):  # of a damaged index: numbers for keys, text for numbers
            return False

    def _changed(self, what: str, found: int, stated: int) -> str:
        return (
            f"the shard {self.path} has {found:,} {what}, the manifest says {stated:,}. Copy it again from its "
            f"source, or delete it and run the command that made the dataset again."
        )


def local_folders(places: Sequence[str], flag: str) -> tuple[Path, ...]:
    """``places`` as folders, for what goes through whole datasets more than once.

    Raises:
        ConfigError: one is an address.
    """
    for place in places:
        if is_remote(place):
            raise ConfigError(
                f"{flag} {place}: is an address, and here datasets are read from a disk: copy that folder to one, "
                f"and give the copy"
            )
    return tuple(map(Path, places))


def input_shards(directories: Sequence[Path], splits: Sequence[str] | None = None) -> list[InputShard]:
    """The shards of ``splits`` (all, if None) of the datasets, in the order of the manifests.

    A dataset may lack some of the splits, but not all of them.

    Raises:
        DataError: no manifest, or none of the splits.
    """
    shards: list[InputShard] = []
    for directory in directories:
        there = Manifest.load(directory).splits
        taken = [split for split in there if splits is None or split in splits]
        found = [InputShard(directory, split, info) for split in taken for info in there[split].shards]
        if not found:
            wanted = "images" if splits is None else f"split {' or '.join(map(repr, splits))}"
            names = ", ".join(sorted(there)) or "none"
            raise DataError(f"{directory} has no {wanted}; its splits: {names}.")
        shards += found
    return shards
