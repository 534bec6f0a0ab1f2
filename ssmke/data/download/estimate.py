"""What a download will need, said before it begins: disk at its peak and in the end, and time.

Disk is reckoned from the published sizes; time from the speed of the line, measured by fetching a few megabytes
from the host itself. Where it cannot be measured, times for lines of 100 Mbit/s and 1 Gbit/s are given. Links
of the open web are another matter: there the figures are those that the authors of img2dataset published, and
are named as such. A disk that is too small is refused here, and not after a night.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from contextlib import closing
from pathlib import Path

from ssmke.errors import DataError
from ssmke.words import duration

LINES = {"100 Mbit/s": 12_500_000, "1 Gbit/s": 125_000_000}
"""Bytes a second of the lines for which times are given where none can be measured."""
WEB_IMAGE_BYTES = 34_000
"""Of an image from the web at 256 pixels: 331 GB for the 79 % of CC12M's links that came in 2022 (the size is in
img2dataset's dataset_examples/cc12m.md, the share in its issue 242)."""
IMPORT_BYTES_PER_SECOND = 20_000_000
"""Of image files that one process imports: 1,300 photos of 224 pixels and 15 kB a second, measured with 1 process on
the 2-core machine of this project; larger photos go faster by this measure."""
HEADROOM = 200_000_000
"""Bytes that are to stay free."""

_PROBE_BYTES = 8 << 20
_PROBE_SECONDS = 4.0
_PROBE_TIMEOUT = 8.0


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes on one disk."""

    downloads: int
    """Still to be fetched."""
    shards: int
    """Still to be written."""
    other: int = 0
    """Unpacked images."""

    @property
    def peak(self) -> int:
        return self.downloads + self.shards + self.other


@dataclasses.dataclass(frozen=True)
class Speed:
    """A measured line; ``bytes_per_second`` is None if the host did not answer, and ``why`` says so."""

    bytes_per_second: float | None
    why: str = ""


def probe(url: str, timeout: float = _PROBE_TIMEOUT) -> Speed:
    """Measure the line to the host of ``url`` by fetching its first megabytes, for a few seconds."""
    from ssmke.data.remote.sources import (
        Interrupted,
        Refused,
        open_source,
    )  # fsspec, which the help does not need

    try:
        with closing(open_source(url, None, timeout)) as source:
            source.facts()
            begin, came = time.monotonic(), 0
            while came < _PROBE_BYTES and time.monotonic() - begin < _PROBE_SECONDS:
                data = source.read(came, min(1 << 20, _PROBE_BYTES - came))
                if not data:
                    break
                came += len(data)
            seconds = time.monotonic() - begin
    except (Interrupted, Refused, DataError) as error:
        return Speed(None, " ".join(str(error).split())[:160])
    if not came:
        return Speed(None, "it sent nothing")
    return Speed(came / max(seconds, 1e-6))


def free_bytes(folder: Path) -> int:
    """Free space of the disk that ``folder`` lies on, or will."""
    return shutil.disk_usage(existing(folder)).free


def check_disk(needs: dict[Path, int], flags: dict[Path, str]) -> None:
    """Refuse what does not fit; folders on one disk are summed up.

    Args:
        needs: bytes by folder.
        flags: the flag that each folder was given by.

    Raises:
        DataError: names the folder, what is needed and what is free.
    """
    disks: dict[int, list[Path]] = {}
    for folder in needs:
        disks.setdefault(existing(folder).stat().st_dev, []).append(folder)
    for folders in disks.values():
        need, free = sum(needs[folder] for folder in folders), free_bytes(folders[0])
        if need and need + HEADROOM > free:
            names = " and ".join(f"{flags[folder]} {folder}" for folder in folders)
            raise DataError(
                f"{names}: {gigabytes(need)} are needed there, {gigabytes(free)} are free. Free some space, or choose "
                f"a folder on a larger disk."
            )


def existing(folder: Path) -> Path:
    """The folder itself, or the nearest above it that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def fetch_times(count: int, speed: Speed) -> str:
    """How long ``count`` bytes take, in words."""
    if speed.bytes_per_second is not None:
        rate = speed.bytes_per_second
        return f"{duration(count / rate)} at the {rate / 1e6:,.1f} MB/s measured just now"
    return ", ".join(f"{duration(count / rate)} at {name}" for name, rate in LINES.items())


def gigabytes(count: float) -> str:
    """``20.2 GB``, ``37 MB``."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"
