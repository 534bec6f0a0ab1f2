from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageFont

from ssmke.data.contact_sheet import RIGHT, WRONG, _wrap, contact_sheet, placeholder, save_sheet
from ssmke.errors import ConfigError


def cells(count: int, lines: int = 1) -> list[tuple[Image.Image, list[str]]]:
    return [(Image.new("RGB", (60, 40), "navy"), ["a caption of some words"] * lines) for _ in range(count)]


def colours(sheet: Image.Image) -> set[tuple[int, ...]]:
    return {colour for _, colour in sheet.getcolors(1 << 24) or []}  # type: ignore[misc]


def test_the_sheet_grows_with_rows_columns_and_text() -> None:
    one, wide, high = contact_sheet(cells(1)), contact_sheet(cells(4)), contact_sheet(cells(4), columns=1)
    assert wide.width > 3 * one.width - 400
    assert wide.height == one.height
    assert high.width == one.width
    assert high.height > 3 * one.height
    assert contact_sheet(cells(1, lines=5)).height > one.height + 4 * 15
    assert contact_sheet(cells(1), title="A heading").height > one.height
    assert contact_sheet(cells(2), columns=9).width < wide.width


def test_images_are_shown_and_borders_mark_right_and_wrong() -> None:
    plain = contact_sheet(cells(3))
    assert (0, 0, 128) in colours(plain)
    green, red = (0x2F, 0x9E, 0x62), (0xD6, 0x45, 0x45)
    assert not {green, red} & colours(plain)
    assert {green, red} <= colours(contact_sheet(cells(3), borders=[RIGHT, None, WRONG]))
    with pytest.raises(ValueError, match="1 borders for 3 cells"):
        contact_sheet(cells(3), borders=[RIGHT])
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])


def test_extreme_images_fit() -> None:
    tall = [
        (Image.new("RGB", (1, 5000)), ["x"]),
        (Image.new("L", (5000, 1)), []),
        (placeholder("broken"), ["y"]),
    ]
    assert contact_sheet(tall).width < 1200


@pytest.mark.parametrize(
    "text",
    [
        "",
        "word",
        "many words " * 200,
        "x" * 5000,
        "short " + "y" * 300 + " short",
        "犬が走る" * 50,
        "a . b , c !",
    ],
)
def test_wrapped_lines_fit_and_are_bounded(text: str) -> None:
    font = ImageFont.load_default(15)
    lines = _wrap(text, font, 200, 4)
    assert 1 <= len(lines) <= 4
    assert all(font.getlength(line) <= 200 for line in lines)
    kept = "".join(lines).replace(" ", "").rstrip("…")
    assert text.replace(" ", "").startswith(kept)
    assert ("…" in lines[-1]) == (kept != text.replace(" ", ""))


def test_a_lone_full_stop_stays_on_its_line() -> None:
    font = ImageFont.load_default(15)
    for width in range(80, 200):
        lines = _wrap("Two dogs are running through snow , away from the camera .", font, width, 20)
        assert not any(line.startswith((".", ",")) for line in lines)


@pytest.mark.parametrize(
    ("name", "kind"), [("a.png", "PNG"), ("a.JPG", "JPEG"), ("a.jpeg", "JPEG"), ("a.webp", "WEBP")]
)
def test_sheets_are_saved_by_the_ending_of_their_name(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / "new folder" / name
    save_sheet(contact_sheet(cells(1)), path)
    with Image.open(path) as saved:
        assert saved.format == kind


def test_another_ending_is_refused_by_the_name_of_its_flag(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--sheet .*a\.gif: the name must end in one of \.png, \.jpg"):
        save_sheet(contact_sheet(cells(1)), tmp_path / "a.gif", "--sheet")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "longest"), [("a.webp", 16_383), ("a.jpg", 65_500)])
def test_a_sheet_too_large_for_its_kind_of_file_is_refused_by_the_name_of_its_flag(
    tmp_path: Path, name: str, longest: int
) -> None:
    save_sheet(Image.new("RGB", (4, longest)), tmp_path / name)
    with Image.open(tmp_path / name) as saved:
        assert saved.height == longest
    for size in ((4, longest + 1), (longest + 1, 4)):
        with pytest.raises(
            ConfigError, match=rf"--sheet .*{longest:,} a side: .*\.png, or give fewer --count$"
        ):
            save_sheet(Image.new("RGB", size), tmp_path / f"b{name}", "--sheet", ", or give fewer --count")
    assert [child.name for child in tmp_path.iterdir()] == [name]
    save_sheet(Image.new("RGB", (4, longest + 1)), tmp_path / "a.png")
