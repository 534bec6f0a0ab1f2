"""Rows of URL lists: read from csv, tsv or parquet whatever is in them, and written as parquet.

Real lists are dirty: rows without a URL or a caption, rows of the wrong width, bytes that are no UTF-8. Each is
left out and counted by reason; only a file that has no such columns at all is an error. Rows are streamed, about
4 us each.

csv is read as Python's `csv` does, strictly. A quotation mark that is opened and not closed swallows lines: these are
counted, and told from a quoted caption of several lines by the rows that are among them. In tsv a quotation mark is
an ordinary character, as in the lists of CC3M and CC12M, whose captions hold single ones; a field that is quoted as a
whole is unquoted. A file has a header if the columns are given by name; columns given by number (from 0) mean that it
has none.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ssmke.data.atomic import atomic_writer
from ssmke.errors import ConfigError, DataError

Pair = tuple[str, str]
"""URL and caption."""

_KINDS = {".csv": "csv", ".tsv": "tsv", ".txt": "tsv", ".parquet": "parquet"}
_SCHEMES = ("http://", "https://")
_BATCH = 20_000


def kind_of(urls: Path) -> str:
    """``"csv"``, ``"tsv"`` or ``"parquet"``, by the name.

    Raises:
        ConfigError: another ending.
    """
    name = urls.name.lower()
    kind = _KINDS.get(Path(name.removesuffix(".gz")).suffix, "")
    if not kind or (kind == "parquet" and name.endswith(".gz")):
        raise ConfigError(f"--urls {urls}: must end in .csv, .tsv, .csv.gz, .tsv.gz or .parquet")
    return kind


def read_pairs(urls: Path, url_column: str, caption_column: str, bad: Counter[str]) -> Iterator[Pair]:
    """The usable rows of a list, one after the other; the others are counted in ``bad``.

    Raises:
        DataError: the file is missing or damaged, or has no such columns.
    """
    kind = kind_of(urls)
    try:
        if kind == "parquet":
            raw = _parquet_rows(urls, url_column, caption_column)
        else:
            raw = _text_rows(urls, kind, url_column, caption_column, bad)
        for url, caption in raw:
            pair = _usable(url, caption, bad)
            if pair is not None:
                yield pair
    except FileNotFoundError:
        raise DataError(f"--urls {urls}: there is no such file.") from None
    except (OSError, EOFError, ValueError, zlib.error, pa.ArrowException) as error:
        raise DataError(f"--urls {urls} cannot be read: {error}. Fetch the file again.") from None


def _usable(url: Any, caption: Any, bad: Counter[str]) -> Pair | None:
    texts = []
    for value, reason in ((url, "no URL"), (caption, "no caption")):
        try:
            # Bytes that are no UTF-8 are lone surrogates by now, which have no encoding.
            text = (value.decode() if isinstance(value, bytes) else value or "").strip()
            text.encode()
        except UnicodeError:
            bad["not UTF-8"] += 1
            return None
        if not text:
            bad[reason] += 1
            return None
        texts.append(text)
    if not texts[0].lower().startswith(_SCHEMES):
        bad["unsupported URL"] += 1
        return None
    return texts[0], texts[1]


def _text_rows(
    urls: Path, kind: str, url_column: str, caption_column: str, bad: Counter[str]
) -> Iterator[tuple[str, str]]:
    opener: Any = gzip.open if urls.name.lower().endswith(".gz") else open
    with (
        opener(urls, "rb") as binary,
        io.TextIOWrapper(binary, "utf-8-sig", errors="surrogateescape", newline="") as text,
    ):
        if kind == "csv":
            rows = _csv_rows(text, bad)
        else:
            rows = (_tsv_row(line) for line in text)
        if url_column.isdecimal():
            columns = [int(url_column), int(caption_column)]
            width = None
            first = next(rows, None)
            if first is None:
                return
            if max(columns) >= len(first):
                raise DataError(
                    f"--urls {urls} has {len(first)} columns, so --url-column {url_column} and "
                    f"--caption-column {caption_column} cannot be right: columns count from 0."
                )
            rows = itertools.chain([first], rows)
        else:
            header = next(rows, [])
            columns = [_position(urls, header, name) for name in (url_column, caption_column)]
            width = len(header)
        for row in rows:
            if not row or row == [""]:
                continue  # a blank line is no row
            width = width or len(row)
            if len(row) != width:
                bad["wrong columns"] += 1
                continue
            yield row[columns[0]], row[columns[1]]


def _position(urls: Path, header: list[str], name: str) -> int:
    if name not in header:
        raise DataError(
            f"--urls {urls} has no column {name!r}; its first line has {', '.join(map(repr, header[:8]))}. Name "
            f"the columns with --url-column and --caption-column, or number them from 0 if there is no header."
        )
    return header.index(name)


def _csv_rows(text: Iterable[str], bad: Counter[str]) -> Iterator[list[str]]:
    """Rows of a csv file; what a stray quotation mark swallowed is counted by its lines."""
    lines: list[str] = []  # of the row that is being read

    def remembered() -> Iterator[str]:
        for line in text:
            lines.append(line)
            # Before Python 3.11 a zero byte ends the reading with an error; it is worth nothing in a list.
            yield line.replace("\0", "")

    # Strict, because else a mark that is never closed makes one row of all that follows.
    reader = csv.reader(remembered(), strict=True)
    while True:
        lines.clear()
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            long = "field larger" in str(error) and not any(map(_looks_like_row, lines[1:]))
            bad["field too long" if long else "stray quotation mark"] += _count(lines)
            continue
        if len(lines) > 1 and any(map(_looks_like_row, _lines_within(row))):
            bad["stray quotation mark"] += _count(lines)
            continue
        yield row


def _count(lines: list[str]) -> int:
    """Rows that these lines may have been; a blank one is none."""
    return sum(not line.isspace() for line in lines)


def _lines_within(row: list[str]) -> Iterator[str]:
    """Lines of the fields that have several."""
    for field in row:
        if len(lines := field.splitlines()) > 1:
            yield from lines


def _looks_like_row(line: str) -> bool:
    """Whether a line within a quoted field is a row of its own: a URL among other columns."""
    parts = line.split(",")
    return len(parts) > 1 and any(part.strip().lower().startswith(_SCHEMES) for part in parts)


def _tsv_row(line: str) -> list[str]:
    return [
        field[1:-1].replace('""', '"') if len(field) > 1 and field[0] == field[-1] == '"' else field
        for field in line.rstrip("\r\n").split("\t")
    ]


def _parquet_rows(urls: Path, url_column: str, caption_column: str) -> Iterator[tuple[Any, Any]]:
    file = pq.ParquetFile(urls)
    names = file.schema_arrow.names
    columns = [
        names[int(column)] if column.isdecimal() and int(column) < len(names) else column
        for column in (url_column, caption_column)
    ]
    for column in columns:
        field = file.schema_arrow.field(_position(urls, names, column))
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if not _is_text(kind):
            raise DataError(
                f"--urls {urls}: the column {column!r} holds {field.type}, not text. Name another with "
                f"--url-column or --caption-column."
            )
    for batch in file.iter_batches(_BATCH, columns=columns):
        url, caption = (_plain(batch.column(batch.schema.names.index(column))) for column in columns)
        yield from zip(url, caption, strict=True)


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests)


def _plain(column: pa.Array) -> list[Any]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    # As bytes: a "string" column of a careless writer may hold anything, and would then fail as a whole.
    binary = pa.large_binary() if "large" in str(column.type) else pa.binary()
    return column.cast(binary).to_pylist()


class _Sink(io.RawIOBase):
    """What parquet writes to: a file of ours."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return int(self._file.write(bytes(data)))

    def tell(self) -> int:
        return int(self._file.tell())


def write_url_list(path: Path, pairs: Iterable[Pair]) -> int:
    """Write a parquet file with the columns url and caption; gives the number of rows. Streams; atomic.

    Raises:
        DataError: it cannot be written.
    """
    schema = pa.schema([("url", pa.string()), ("caption", pa.string())])
    rows, iterator = 0, iter(pairs)
    with atomic_writer(path) as file, pq.ParquetWriter(_Sink(file), schema, compression="zstd") as writer:
        while batch := list(itertools.islice(iterator, _BATCH)):
            urls, captions = zip(*batch, strict=True)
            writer.write_table(pa.table([list(urls), list(captions)], schema=schema))
            rows += len(batch)
    return rows
