from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ssmke.data.captions import MAX_CHARACTERS, clean_caption
from ssmke.errors import BadSample


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("A dog .", "A dog ."),
        ("  A\tdog\r\n\u2028runs\u00a0 fast ", "A dog runs fast"),
        ("zero\0byte\x1b[31m", "zero byte [31m"),
        ("cafe\u0301", "café"),
        ("\ufeffbyte order mark, zero\u200bwidth", "byte order mark, zero width"),
        (
            "joined \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
            "joined \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        ),
        ("ein Hündchen".encode(), "ein Hündchen"),
    ],
)
def test_cleaning(raw: str | bytes, clean: str) -> None:
    assert clean_caption(raw) == clean


@pytest.mark.parametrize("raw", ["", " \n\t ", "\0", "\u200b\ufeff", b""])
def test_empty(raw: str | bytes) -> None:
    with pytest.raises(BadSample) as error:
        clean_caption(raw)
    assert error.value.reason == "empty caption"


@pytest.mark.parametrize("raw", [b"caf\xe9", b"\xff\xfe", "caf\udce9", "half an emoji \ud83d"])
def test_not_utf8(raw: str | bytes) -> None:
    with pytest.raises(BadSample) as error:
        clean_caption(raw)
    assert error.value.reason == "caption not UTF-8"


def test_a_10000_character_caption_is_cut_at_a_word() -> None:
    words = "abcdefghi " * 1000
    clean = clean_caption(words)
    assert len(clean) == MAX_CHARACTERS - 1
    assert words.startswith(clean)
    assert clean.endswith("abcdefghi")


def test_one_endless_word_is_cut_too() -> None:
    assert clean_caption("x" * 10_000) == "x" * MAX_CHARACTERS


def test_a_long_caption_without_spaces_keeps_what_fits() -> None:
    long = "图 " + "字" * 5000
    assert clean_caption(long) == long[:MAX_CHARACTERS]
    # A word that is only begun at the cut is left out; one that no reader would miss the end of is not.
    assert clean_caption("a" * 1950 + " " + "b" * 60) == "a" * 1950
    assert clean_caption("a" * 1850 + " " + "b" * 160) == "a" * 1850 + " " + "b" * 149
    assert clean_caption("a" * 2000 + " b") == "a" * 2000


@given(st.text(min_size=1))
@example("图 " + "字" * 5000)
@example("a" * 1999 + " b" * 50)
@example("e\u0301" * 3000)
@example("x" * 1999 + "e\u0301\u0301\u0301")
def test_cleaning_twice_changes_nothing(raw: str) -> None:
    try:
        clean = clean_caption(raw)
    except BadSample:
        return
    assert clean_caption(clean) == clean
    assert 0 < len(clean) <= MAX_CHARACTERS
    assert clean == " ".join(clean.split())
