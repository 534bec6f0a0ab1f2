"""Whether a manifest or an index file that came from elsewhere is what it should be, before it is used.

Both are input like any other: names could lead out of the folder, arrays could state any size. Checking an index
that is here costs 0.3 ms, one that just came as much as reading all of it.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssmke.data.manifest import FILE_NAME, Manifest, ShardInfo
from ssmke.data.remote.sources import shown
from ssmke.data.shards import COLUMNS, index_arrays, keys_digest
from ssmke.errors import DataError


def parse_manifest(content: bytes, url: str) -> Manifest:
    """The manifest that came from ``url``.

    Raises:
        DataError: it is damaged, or names a shard twice.
    """
    with tempfile.TemporaryDirectory(prefix="ssmke-manifest-") as folder:
        path = Path(folder) / FILE_NAME
        path.write_bytes(content)
        try:
            manifest = Manifest.load(folder)
        except DataError as error:
            raise DataError(str(error).replace(str(path), shown(url))) from None
    files = [info.file for info in all_shards(manifest)]
    if len(set(files)) < len(files):
        twice = next(file for file in files if files.count(file) > 1)
        raise DataError(f"{shown(url)} lists the shard {twice!r} more than once: make the dataset again.")
    return manifest


def all_shards(manifest: Manifest) -> list[ShardInfo]:
    """The shards of all splits."""
    return [info for split in manifest.splits.values() for info in split.shards]


def caption_counts(path: Path, info: ShardInfo) -> NDArray[np.int32] | None:
    """Captions of each image by the index file ``path``; None if it is missing, damaged, or of another tar.

    Reads only what it returns: 0.3 ms a shard.
    """
    arrays = index_arrays(path, ("captions",), info.bytes)
    if arrays is None or len(arrays[0]) != info.images or int(arrays[0].sum()) != info.captions:
        return None
    return arrays[0]


def is_index_of(content: bytes, info: ShardInfo) -> bool:
    """Whether ``content``, which just came from elsewhere, is an index file of the shard, in all its parts."""
    # Each member is read to its end, and so held against its checksum.
    arrays = index_arrays(io.BytesIO(content), ("captions", *COLUMNS, "keys"), info.bytes)
    if arrays is None:
        return False
    captions, keys = arrays[0], arrays[-1]
    try:
        digest = keys_digest(keys.tolist())
    except UnicodeError:
        return False
    return (
        len(captions) == info.images and int(captions.sum()) == info.captions and digest == info.keys_sha256
    )
