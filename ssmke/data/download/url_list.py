"""What a URL list's download is asked to do, and the list in the parts that img2dataset reads.

img2dataset reads a whole file at once, so the usable rows (`ssmke.data.download.list_rows`) are written as parquet
files of about a million each: twelve million rows then never lie in memory together. This is done once; a later
run of the same list finds the parts made, and another list is refused rather than mixed in.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from ssmke import foreign_json
from ssmke.data.atomic import make_folder, write_json
from ssmke.data.download.list_rows import kind_of, read_pairs, write_url_list
from ssmke.data.shards import file_sha256
from ssmke.differences import differences
from ssmke.errors import ConfigError, DataError

URLS_FOLDER = "urls"
"""Below the folder of the tars; img2dataset takes any json directly in that folder for its own."""
PART_SHARDS = 100
"""Shards whose rows make one parquet file: about a million rows."""

_FORMAT = "ssmke-urls/1"


@dataclasses.dataclass(frozen=True)
class UrlListConfig:
    """A list of URLs with captions, and how to download it."""

    urls: Path
    """csv, tsv (both also .gz) or parquet file with a column of URLs and one of captions."""
    out: Path
    """Folder for img2dataset's tars."""
    url_column: str = "url"
    """Name of the column of URLs; its number, from 0, where the file has no header."""
    caption_column: str = "caption"
    """Name of the column of captions; its number, from 0, where the file has no header."""
    image_size: int = 256
    """Images are scaled down so that their short side has this many pixels, and keep their shape."""
    shard_urls: int = 10_000
    """URLs of one tar."""
    processes: int = 1
    """Processes; each downloads, decodes and encodes one tar at a time."""
    threads: int = 32
    """Downloads at a time of one process. Each holds up to --max-image-bytes, twice (one waits for decoding)."""
    timeout_seconds: float = 10.0
    """A server that sends nothing for so long is given up."""
    retries: int = 1
    """Further attempts at a URL that failed for a reason that may pass."""
    max_image_bytes: int = 32 << 20
    """A longer file is given up."""
    seconds_per_image: float = 30.0
    """A transfer that is not whole by then is given up, however slowly it drips."""
    private_hosts: tuple[str, ...] = ()
    """Hosts on a private network (NAME or NAME:PORT) that may be asked; others there are refused."""
    distributor: Literal["multiprocessing", "pyspark", "ray"] = "multiprocessing"
    """What img2dataset spreads its work with; for the other two see `ssmke.data.download.img2dataset`."""
    command: str | None = None
    """Python of an environment with img2dataset (--img2dataset); by default one is made."""

    def __post_init__(self) -> None:
        kind_of(self.urls)
        if self.url_column == self.caption_column:
            raise ConfigError(f"--url-column and --caption-column are both {self.url_column!r}: must differ")
        if self.url_column.isdecimal() != self.caption_column.isdecimal():
            raise ConfigError(
                f"--url-column {self.url_column} and --caption-column {self.caption_column}: give both as "
                f"numbers (no header) or both as names"
            )
        if not 32 <= self.image_size <= 4096:
            raise ConfigError(f"--image-size {self.image_size}: must be 32 to 4096")
        if not 1 <= self.shard_urls <= 100_000:
            raise ConfigError(f"--shard-urls {self.shard_urls}: must be 1 to 100,000")
        for flag, count in (("--processes", self.processes), ("--threads", self.threads)):
            if not 1 <= count <= 1024:
                raise ConfigError(f"{flag} {count}: must be 1 to 1,024")
        if not 0 <= self.retries <= 10:
            raise ConfigError(f"--retries {self.retries}: must be 0 to 10")
        if self.max_image_bytes < 1024:
            raise ConfigError(f"--max-image-bytes {self.max_image_bytes}: must be at least 1,024")
        for flag, seconds in (
            ("--timeout-seconds", self.timeout_seconds),
            ("--seconds-per-image", self.seconds_per_image),
        ):
            if not 0.1 <= seconds <= 3600:
                raise ConfigError(f"{flag} {seconds}: must be 0.1 to 3,600")


@dataclasses.dataclass(frozen=True)
class ListParts:
    """A list as img2dataset gets it."""

    folder: Path
    """Parquet files with the columns url and caption, each of whole shards (but for the last)."""
    rows: int
    """Usable rows of all parts."""
    shard_urls: int
    """URLs of one shard; fewer than configured where not every process would get a shard."""
    bad: dict[str, int]
    """Rows that were left out, by reason."""

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard_urls)

    def shard_rows(self, number: int) -> int:
        """Rows of the shard ``number``."""
        return min(self.shard_urls, self.rows - number * self.shard_urls)


def prepare_parts(config: UrlListConfig) -> ListParts:
    """The list of ``config`` in parts below its ``out``; made once, and then found again.

    Raises:
        DataError: the list cannot be read or has no usable row, or ``out`` holds another download.
    """
    folder = config.out / URLS_FOLDER
    state = folder / "list.json"
    if not config.urls.is_file():
        raise DataError(f"--urls {config.urls}: there is no such file.")
    identity = {
        "--urls": f"{config.urls.name} (sha256 {file_sha256(config.urls)})",
        "--url-column": config.url_column,
        "--caption-column": config.caption_column,
        "--image-size": config.image_size,
        "--shard-urls": config.shard_urls,
    }
    before = _load(state)
    if before is not None:
        _refuse_other(config.out, before["identity"], identity)
        return ListParts(folder / "parts", before["rows"], before["shard_urls"], before["bad"])
    others = sorted(child.name for child in config.out.iterdir() if child.name != URLS_FOLDER)
    if others:
        raise DataError(
            f"--downloads: {config.out} is not empty (it holds {others[0]!r}) and no download of ssmke: choose another "
            f"folder."
        )
    # Without list.json, what lies here was cut off.
    shutil.rmtree(folder, ignore_errors=True)
    bad: Counter[str] = Counter()
    try:
        rows = _write_parts(config, folder / "parts", bad)
    except DataError:
        shutil.rmtree(folder, ignore_errors=True)  # of no use: the next run reads the list from its beginning
        raise
    shard_urls = config.shard_urls
    if rows < shard_urls * min(config.processes, PART_SHARDS):
        # All in one file, so that any size of shard fits it.
        shard_urls = max(1, -(-rows // config.processes))
    write_json(
        state,
        {"format": _FORMAT, "identity": identity, "rows": rows, "shard_urls": shard_urls, "bad": dict(bad)},
    )
    return ListParts(folder / "parts", rows, shard_urls, dict(bad))


def _write_parts(config: UrlListConfig, folder: Path, bad: Counter[str]) -> int:
    """Write the usable rows of the list, count the others in ``bad``; gives the number of rows written."""
    make_folder(folder)
    pairs = read_pairs(config.urls, config.url_column, config.caption_column, bad)
    rows = 0
    for number in itertools.count():
        part = itertools.islice(pairs, PART_SHARDS * config.shard_urls)
        first = next(part, None)
        if first is None:
            break
        rows += write_url_list(folder / f"{number:05d}.parquet", itertools.chain([first], part))
    if rows == 0:
        losses = ", ".join(f"{reason} {count:,}" for reason, count in sorted(bad.items()))
        raise DataError(f"--urls {config.urls} has no usable row ({losses or 'it is empty'}).")
    return rows


def _load(state: Path) -> dict[str, Any] | None:
    try:
        values = foreign_json.loads(state.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{state} cannot be read: {error}. Delete the folder {state.parent}.") from None
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        raise DataError(f"{state} is of another version of ssmke: choose other --downloads.")
    kinds = {"identity": dict[str, Any], "rows": int, "shard_urls": int, "bad": dict[str, int]}
    wrong = [name for name, kind in kinds.items() if not foreign_json.fits(values.get(name), kind)]
    if wrong or values["shard_urls"] < 1:
        raise DataError(
            f"{state} is damaged ({', '.join(wrong) or 'shard_urls'}). Delete the folder {state.parent}."
        )
    return values


def _refuse_other(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [f"{flag} was {there}, now {here}" for flag, there, here in differences(before, now)]
    if changed:
        raise DataError(
            f"--downloads: {out} holds another download: {'; '.join(changed)}. Choose another folder, or delete that "
            f"one."
        )
