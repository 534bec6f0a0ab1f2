"""Headers of tars that others wrote, before `tarfile` believes them.

`tarfile` reads an extended header of any stated size into memory, reads the same member forever where a size is
negative, and lets pass whatever its parsing of hostile headers runs into. `BoundedInfo` refuses such headers where they
are met; what is left is `DAMAGED`.
"""

from __future__ import annotations

import lzma
import struct
import tarfile
import zlib
from typing import Any

MOST_HEADER_BYTES = 1 << 20
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)

DAMAGED = (
    tarfile.TarError,
    EOFError,
    ValueError,
    LookupError,
    OverflowError,
    RecursionError,
    TypeError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
)
"""What reading a tar, compressed or not, may raise besides OSError."""


class BoundedInfo(tarfile.TarInfo):
    """To be given to `tarfile.open` as ``tarinfo``: negative sizes and huge headers are a ReadError."""

    def _proc_member(self, archive: Any) -> Any:
        # tarfile calls this for every header that it has read, before it acts on it.
        if self.size < 0:
            raise tarfile.ReadError(f"a negative size at byte {self.offset:,}")
        if self.type in _EXTENDED and self.size > MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes at byte {self.offset:,}")
        before = archive.offset
        made = super()._proc_member(archive)  # type: ignore[misc]
        if made.size < 0 or archive.offset <= before - tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"an impossible size at byte {self.offset:,}")
        return made
