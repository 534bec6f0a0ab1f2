"""Lists as they are found: read row by row, whatever is in them."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssmke.data.download.list_rows import kind_of, read_pairs, write_url_list
from ssmke.errors import ConfigError, DataError

A, B = "http://a.org/1.jpg", "https://b.org/2.jpg"


def read(
    path: Path, url: str = "url", caption: str = "caption"
) -> tuple[list[tuple[str, str]], dict[str, int]]:
    bad: Counter[str] = Counter()
    return list(read_pairs(path, url, caption, bad)), dict(bad)


def test_csv_with_header_quotes_and_more_columns(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text(
        f'id,caption,url\n1,"a dog, ""big""\nand brown",{A}\n\n2,a cat,{B}\n', encoding="utf-8-sig"
    )
    assert read(path) == ([(A, 'a dog, "big"\nand brown'), (B, "a cat")], {})


def test_tsv_of_cc3m_has_captions_first_no_header_and_single_quotation_marks(tmp_path: Path) -> None:
    path = tmp_path / "Train_GCC-training.tsv"
    path.write_text(f'" my heart\t{A}\na sign that reads "stop"\t{B}\n"a ""quoted"" field"\t{A}\n')
    pairs, bad = read(path, "1", "0")
    assert [caption for _, caption in pairs] == ['" my heart', 'a sign that reads "stop"', 'a "quoted" field']
    assert [url for url, _ in pairs] == [A, B, A]
    assert bad == {}


def test_tsv_of_cc12m_gzipped(tmp_path: Path) -> None:
    path = tmp_path / "cc12m.tsv.gz"
    path.write_bytes(gzip.compress(f"{A}\tein Hündchen 🐶\r\n{B}\tb".encode()))
    assert read(path, "0", "1") == ([(A, "ein Hündchen 🐶"), (B, "b")], {})


def test_bad_rows_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "list.tsv"
    lines = [
        b"url\tcaption",
        f"{A}\tfine".encode(),
        b"\tno url",
        f"{A}\t  ".encode(),
        f"{A}\tone\ttoo many".encode(),
        A.encode(),
        f"{A}\t".encode() + b"caf\xe9",
        b"ftp://a.org/1.jpg\tother scheme",
        b"",
        f"{B}\talso fine".encode(),
    ]
    path.write_bytes(b"\n".join(lines))
    assert read(path) == (
        [(A, "fine"), (B, "also fine")],
        {"no URL": 1, "no caption": 1, "wrong columns": 2, "not UTF-8": 1, "unsupported URL": 1},
    )


def test_a_stray_quotation_mark_in_csv_costs_the_lines_it_swallows_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    swallowed = [f'{A},"it began here'] + [f"{A},{'x' * 100}" for _ in range(3000)]
    path.write_text("\n".join(["url,caption", f"{A},before", *swallowed, ""]))
    pairs, bad = read(path)
    assert pairs[0] == (A, "before")
    # The field ends at csv's limit of 128 KB, and reading goes on behind it.
    assert 1000 < bad["stray quotation mark"] < 1200
    assert len(pairs) + sum(bad.values()) == 3002


STRAY = "stray quotation mark"


@pytest.mark.parametrize(
    ("rows", "captions", "bad"),
    [
        ([f'{A},"unclosed', f"{A},two", f"{A},three"], [], {STRAY: 3}),
        # The mark that ends it is the next one: one that opens, one within a caption, one at its end.
        ([f'{A},"unclosed', f"{A},two", f'{A},"three, 3"', f"{A},four"], ["four"], {STRAY: 3}),
        ([f'{A},"unclosed', f'{A},the "second" one', f"{A},three"], ["three"], {STRAY: 2}),
        ([f'{A},"unclosed', f"{A},two", f'{A},six 6"', f"{A},four"], ["four"], {STRAY: 3}),
        ([f'{A},"unclosed', "", f'{A},six 6"', "", f"{A},four"], ["four"], {STRAY: 2}),
        # Line breaks in quotes are no fault, also beside a URL.
        (
            [f'{A},"a dog', "", 'and, ""perhaps"",', 'a cat"', f"{A},two"],
            'a dog\n\nand, "perhaps",\na cat',
            {},
        ),
        ([f'{A},"see', 'http://a.org/ here"', f"{A},two"], "see\nhttp://a.org/ here", {}),
        # One line costs only itself.
        ([f'{A},"a "dog" runs"', f"{A},two"], ["two"], {STRAY: 1}),
    ],
)
@pytest.mark.parametrize("header", [True, False])
def test_rows_that_a_quotation_mark_swallows_are_counted(
    tmp_path: Path, rows: list[str], captions: list[str] | str, bad: dict[str, int], header: bool
) -> None:
    path = tmp_path / "list.csv"
    first = "url,caption" if header else f"{B},first"
    path.write_text("\n".join([first, *rows, ""]))
    pairs, counted = read(path) if header else read(path, "0", "1")
    expected = [captions, "two"] if isinstance(captions, str) else captions
    assert [caption for _, caption in pairs] == (expected if header else ["first", *expected])
    assert counted == bad


def test_swallowed_rows_are_told_also_where_the_url_is_the_last_column(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text(f'caption,url\n"one,{A}\ntwo,{A}\nthree",{A}\n"fo\nur",{A}\n')
    assert read(path) == ([(A, "fo\nur")], {STRAY: 3})


def test_a_field_that_is_too_long_is_not_taken_for_a_quotation_mark(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    long = "x" * 2_000_000
    path.write_text(f'url,caption\n{A},{long}\n{A},"{long}, and more"\n{A},fine\n')
    assert read(path) == ([(A, "fine")], {"field too long": 2})


def test_zero_bytes_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text(f"url,caption\n{A},a\0b\n")
    assert read(path) == ([(A, "ab")], {})


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_with_nulls_and_bytes_that_are_no_utf8(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "list.parquet"
    url = pa.array([A, B, None, A]).cast(kind)
    caption = pa.array([b"one", b"two", b"three", b"caf\xe9"], pa.binary())
    pq.write_table(pa.table({"TEXT": caption, "other": [1, 2, 3, 4], "URL": url}), path)
    assert read(path, "URL", "TEXT") == ([(A, "one"), (B, "two")], {"no URL": 1, "not UTF-8": 1})


@pytest.mark.parametrize(
    ("name", "text", "url", "message"),
    [
        ("l.csv", "link,caption\nx,y\n", "url", "has no column 'url'; its first line has 'link', 'caption'"),
        ("l.tsv", "http://a\n", "1", "has 1 columns"),
        ("l.csv", "", "url", "has no column 'url'"),
    ],
)
def test_a_file_without_such_columns_is_an_error(
    tmp_path: Path, name: str, text: str, url: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name, url, "0" if url.isdecimal() else "caption")


def test_parquet_columns_that_are_missing_or_no_text(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"url": [A], "caption": [7]}), path)
    with pytest.raises(DataError, match="column 'caption' holds int64, not text"):
        read(path)
    with pytest.raises(DataError, match="no column 'text'"):
        read(path, caption="text")


def test_damaged_and_missing_files_and_odd_names(tmp_path: Path) -> None:
    whole = gzip.compress(f"url\tcaption\n{A}\tone\n".encode() * 1000)
    (tmp_path / "cut.tsv.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "no.parquet").write_bytes(b"PAR1 not really")
    for name in ("cut.tsv.gz", "no.parquet"):
        with pytest.raises(DataError, match=r"cannot be read.*Fetch the file again"):
            read(tmp_path / name)
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "absent.csv")
    for name in ("list.json", "list.parquet.gz", "list"):
        with pytest.raises(ConfigError, match="--urls"):
            kind_of(Path(name))


def test_written_lists_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "sbu.parquet"
    pairs = [(f"http://a.org/{i}", f"caption {i}\twith\n\"oddities'") for i in range(45_000)]
    assert write_url_list(path, iter(pairs)) == 45_000
    assert read(path) == (pairs, {})
    assert [child.name for child in tmp_path.iterdir()] == ["sbu.parquet"]
