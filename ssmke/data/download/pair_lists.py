"""Lists of links with captions, made from the forms that img2dataset cannot read, or shortened.

SBU comes as one JSON of parallel lists in a compressed tar, and in its older form as two text files of which
line n of one belongs to line n of the other. Both become a parquet file with the columns ``url`` and ``caption``.
The JSON is read whole (about 0.5 GB of memory for its million pairs), text files line by line.

What is made has the digest of its list in its name, and beside it the rows that were left out, by reason: so a later
run finds it again, never takes that of another list, and can still tell what was lost.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ssmke.data.atomic import new_folder, write_json
from ssmke.data.download.list_rows import read_pairs, write_url_list
from ssmke.data.download.packed import DAMAGED, MAX_READ, packed_members
from ssmke.data.shards import file_sha256
from ssmke.errors import DataError

SBU_JSON = "sbu-captions-all.json"
_MAX_TEXT_BYTES = 256 << 20
"""Of one file of SBU's, twice what they have: they are read whole, and hostile JSON takes 20 times its size."""
SBU_URLS, SBU_CAPTIONS = "SBU_captioned_photo_dataset_urls.txt", "SBU_captioned_photo_dataset_captions.txt"


def is_sbu_form(place: Path) -> bool:
    """Whether ``place`` is one of SBU's own forms, rather than a table of links and captions."""
    return place.is_dir() or place.name.endswith((".json", ".tar.gz", ".tgz"))


@dataclasses.dataclass(frozen=True)
class PairList:
    """A parquet file with the columns ``url`` and ``caption``, made from a list of another form, or a longer one."""

    path: Path
    bad: dict[str, int]
    """Rows of the list that were passed over on the way, by reason."""

    @property
    def note(self) -> Path:
        """File that tells of them; written last, so with it the list is whole."""
        return _note(self.path)


def make_pairs(
    urls: Path,
    url_column: str,
    caption_column: str,
    folder: Path,
    limit: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> PairList:
    """The pairs of ``urls``, or the first ``limit`` usable ones, below ``folder``; made once, and then found again.

    Raises:
        DataError: the list cannot be read.
    """
    identity = (list_sha256(urls), *(() if is_sbu_form(urls) else (url_column, caption_column)))
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    path = folder / f"pairs-{digest}{f'-first-{limit}' if limit else ''}.parquet"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        if path.is_file():
            return PairList(path, json.loads(_note(path).read_bytes())["bad"])
    say(f"writing the pairs of {urls} to {path}")
    bad: Counter[str] = Counter()
    with new_folder(folder):
        if is_sbu_form(urls):
            rows = sbu_pairs(urls, path, limit)
        else:
            rows = first_pairs(urls, url_column, caption_column, path, limit, bad)
        if not rows:
            path.unlink(missing_ok=True)
            losses = ", ".join(f"{reason} {count:,}" for reason, count in sorted(bad.items()))
            raise DataError(f"--urls {urls} has no usable row ({losses or 'it is empty'}).")
    write_json(_note(path), {"bad": bad})
    return PairList(path, dict(bad))


def list_sha256(place: Path) -> str:
    """SHA-256 of a list, hexadecimal; of a folder, that of SBU's files in it. About a second a gigabyte.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    if place.is_dir():
        names = (SBU_JSON, SBU_URLS, SBU_CAPTIONS)
        found = [path for name in names for path in sorted(place.rglob(name))]
        return hashlib.sha256(repr([(path.name, list_sha256(path)) for path in found]).encode()).hexdigest()
    try:
        return file_sha256(place)
    except FileNotFoundError:
        raise DataError(f"--urls {place}: there is no such file.") from None
    except OSError as error:
        raise DataError(f"--urls {place} cannot be read: {error.strerror or error}.") from None


def _note(path: Path) -> Path:
    return path.with_suffix(".json")


def sbu_pairs(place: Path, out: Path, limit: int = 0) -> int:
    """Write the pairs of SBU to ``out`` (parquet); gives their number.

    Args:
        place: the tar.gz of either form, the JSON, or a folder with the JSON or the two text files.
        out: file to write.
        limit: take the first so many only; 0 takes all.

    Raises:
        DataError: ``place`` has none of the forms, is damaged, or its lists are not of one length.
    """
    with _pairs(place) as pairs:
        return write_url_list(out, itertools.islice(pairs, limit or None))


def first_pairs(
    urls: Path, url_column: str, caption_column: str, out: Path, limit: int, bad: Counter[str]
) -> int:
    """Write the first ``limit`` usable pairs of a list to ``out`` (parquet); gives their number.

    Rows that are passed over on the way are counted in ``bad``, by reason.

    Raises:
        DataError: the list cannot be read.
    """
    return write_url_list(out, itertools.islice(read_pairs(urls, url_column, caption_column, bad), limit))


def count_rows(urls: Path) -> int:
    """Rows of a list, about: for estimates. Reads a text file once (about 1 GB/s), of a parquet file its end, and
    SBU's forms as `sbu_pairs` does.

    Raises:
        DataError: the file cannot be read.
    """
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq

    if is_sbu_form(urls):
        with _pairs(urls) as pairs:
            return sum(1 for _ in pairs)
    try:
        if urls.suffix == ".parquet":
            return int(pq.read_metadata(urls).num_rows)
        with gzip.open(urls) if urls.suffix == ".gz" else urls.open("rb") as file:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    except FileNotFoundError:
        raise DataError(f"--urls {urls}: there is no such file.") from None
    except (OSError, EOFError, ValueError, zlib.error, pa.ArrowException) as error:
        raise DataError(f"--urls {urls} cannot be read: {error}. Fetch the file again.") from None


@contextlib.contextmanager
def _pairs(place: Path) -> Iterator[Iterator[tuple[str, str]]]:
    try:
        if place.is_dir():
            found = {
                name: next(iter(sorted(place.rglob(name))), None)
                for name in (SBU_JSON, SBU_URLS, SBU_CAPTIONS)
            }
            if (whole := found[SBU_JSON]) is not None:
                yield _of_json(whole, _whole(whole))
                return
            urls, captions = found[SBU_URLS], found[SBU_CAPTIONS]
            if urls is not None and captions is not None:
                with urls.open("rb") as first, captions.open("rb") as second:
                    yield _of_lines(place, first, second)
                return
        elif place.name.endswith(".json"):
            yield _of_json(place, _whole(place))
            return
        else:
            yield _of_tar(place)
            return
    except FileNotFoundError:
        raise DataError(f"--urls {place}: there is no such file.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"--urls {place} cannot be read: {error}. Fetch the file again.") from None
    raise DataError(_missing(place))


def _whole(file: Path) -> bytes:
    size = file.stat().st_size
    if size > _MAX_TEXT_BYTES:
        raise DataError(
            f"--urls {file} has {size:,} bytes: SBU's has fewer than {_MAX_TEXT_BYTES:,}. Fetch it again."
        )
    return file.read_bytes()


def _of_tar(place: Path) -> Iterator[tuple[str, str]]:
    texts: dict[str, bytes] = {}
    try:
        for member, content in packed_members(place, 2 * _MAX_TEXT_BYTES):
            name = member.name.rpartition("/")[2]
            if name in (SBU_JSON, SBU_URLS, SBU_CAPTIONS):
                pieces = iter(lambda file=content: file.read(MAX_READ), b"")  # type: ignore[misc]
                texts[name] = b"".join(pieces)
    except DAMAGED as error:
        raise DataError(f"--urls {place} cannot be read: {error}. Fetch the file again.") from None
    if SBU_JSON in texts:
        return _of_json(place, texts[SBU_JSON])
    if SBU_URLS in texts and SBU_CAPTIONS in texts:
        return _of_lines(place, io.BytesIO(texts[SBU_URLS]), io.BytesIO(texts[SBU_CAPTIONS]))
    raise DataError(_missing(place))


def _of_json(place: Path, text: bytes) -> Iterator[tuple[str, str]]:
    try:
        content: Any = json.loads(text.decode("utf-8", "surrogateescape"))
        urls, captions = content["image_urls"], content["captions"]
        if not isinstance(urls, list) or not isinstance(captions, list):
            raise TypeError("other values")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f'--urls {place}: it has no lists "image_urls" and "captions" ({error}).') from None
    if len(urls) != len(captions):
        raise DataError(_uneven(place, len(urls), len(captions)))
    return ((_line(_word(url)), _line(_word(caption))) for url, caption in zip(urls, captions, strict=True))


def _of_lines(place: Path, urls: IO[bytes], captions: IO[bytes]) -> Iterator[tuple[str, str]]:
    for number, (url, caption) in enumerate(itertools.zip_longest(urls, captions)):
        if url is None or caption is None:
            raise DataError(_uneven(place, number + (url is not None), number + (caption is not None)))
        yield _line(url.decode("utf-8", "replace")), _line(caption.decode("utf-8", "replace"))


def _word(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _line(text: str) -> str:
    return " ".join(text.encode("utf-8", "replace").decode().split())


def _missing(place: Path) -> str:
    return (
        f"--urls {place}: neither {SBU_JSON} is there, nor {SBU_URLS} with {SBU_CAPTIONS}. Give the archive that SBU's "
        f"page has, or what is in it."
    )


def _uneven(place: Path, urls: int, captions: int) -> str:
    return f"--urls {place}: {urls:,} links or more, but {captions:,} captions or more: a file was cut. Fetch it again."
