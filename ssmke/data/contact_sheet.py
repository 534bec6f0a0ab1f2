"""Contact sheets: thumbnails with wrapped text beneath, on one image that is pleasant to look at.

For `ssmke data show` (samples with their captions) and for retrieval results (``borders`` mark right and
wrong). Drawn with PIL alone and its bundled font, so it looks the same on every machine; that font has Latin,
Greek and Cyrillic letters only, others show as boxes. About 10 ms a cell.
"""

from __future__ import annotations

import bisect
import io
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ssmke.data.atomic import atomic_writer, make_folder
from ssmke.errors import ConfigError

RIGHT = "#2f9e62"
WRONG = "#d64545"

_PAPER = "#f4f2ee"
_CARD = "#ffffff"
_EDGE = "#e2ded6"
_INK = "#2b2926"
_FAINT = "#857f76"

_MARGIN = 36
_GAP = 20
_PADDING = 16
_CORNER = 12
_TEXT_SIZE = 15
_LEADING = 20
_BETWEEN = 7  # between one caption and the next
_BULLET = 13
_BORDER = 6

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}

_LONGEST_SIDE = {"JPEG": 65_500, "WEBP": 16_383}
"""In pixels; what their encoders can write."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(
    rows: Sequence[tuple[Image.Image, Sequence[str]]],
    columns: int = 4,
    title: str = "",
    *,
    subtitle: str = "",
    borders: Sequence[str | None] | None = None,
    thumbnail: int = 256,
    max_lines: int = 4,
) -> Image.Image:
    """Draw cells from left to right, top to bottom; a row of cells is as high as its highest.

    Args:
        rows: an image and its texts for each cell. A text is wrapped to at most ``max_lines`` lines; where a
            cell has several, each gets a bullet.
        columns: cells beside each other.
        title: a heading.
        subtitle: a smaller line under it.
        borders: a colour (such as `RIGHT`, `WRONG`) to frame the image of each cell with, or None.
        thumbnail: width and height that images are fitted into, in pixels.
        max_lines: of one text; what does not fit ends in an ellipsis.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one cell")
    if borders is not None and len(borders) != len(rows):
        raise ValueError(f"{len(borders)} borders for {len(rows)} cells")
    columns = max(1, min(columns, len(rows)))
    font, bold = ImageFont.load_default(_TEXT_SIZE), ImageFont.load_default(30)
    texts = [_wrap_all(lines, font, thumbnail, max_lines) for _, lines in rows]
    heights = [thumbnail + 2 * _PADDING + _text_height(text) for text in texts]
    bands = [max(heights[i : i + columns]) for i in range(0, len(rows), columns)]

    width_of_cell = thumbnail + 2 * _PADDING
    width = 2 * _MARGIN + columns * width_of_cell + (columns - 1) * _GAP
    heading = _wrap(title, bold, width - 2 * _MARGIN, 2) if title else []
    below = _wrap(subtitle, font, width - 2 * _MARGIN, 2) if subtitle else []
    top = _MARGIN + 40 * len(heading) + (_LEADING + 4) * len(below) + (14 if heading or below else 0)
    height = top + sum(bands) + _GAP * (len(bands) - 1) + _MARGIN

    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    y = _MARGIN - 8
    for line in heading:
        draw.text((_MARGIN, y), line, font=bold, fill=_INK)
        y += 40
    for line in below:
        draw.text((_MARGIN, y + 2), line, font=font, fill=_FAINT)
        y += _LEADING + 4

    y = top
    for band, high in enumerate(bands):
        for column in range(columns):
            number = band * columns + column
            if number == len(rows):
                break
            x = _MARGIN + column * (width_of_cell + _GAP)
            card = (x, y, x + width_of_cell - 1, y + high - 1)
            draw.rounded_rectangle(card, _CORNER, fill=_CARD, outline=_EDGE)
            border = borders[number] if borders is not None else None
            _paste(sheet, rows[number][0], (x + _PADDING, y + _PADDING), thumbnail, border)
            _write(draw, texts[number], (x + _PADDING, y + _PADDING + thumbnail + 12), font)
        y += high + _GAP
    return sheet


def placeholder(reason: str, side: int = 256) -> Image.Image:
    """A quiet tile in place of an image that cannot be shown."""
    tile = Image.new("RGB", (side, side), "#ece8e1")
    draw = ImageDraw.Draw(tile)
    draw.text((side / 2, side / 2), reason, font=ImageFont.load_default(18), fill=WRONG, anchor="mm")
    return tile


def check_sheet_name(path: Path, flag: str) -> None:
    """ConfigError if the name of the picture to write, given by ``flag``, is of no kind that `save_sheet` writes."""
    if path.suffix.lower() not in _FORMATS:
        raise ConfigError(f"{flag} {path}: the name must end in one of {', '.join(_FORMATS)}")


def save_sheet(sheet: Image.Image, path: Path, flag: str = "--out", smaller: str = "") -> None:
    """Write a sheet as PNG, JPEG or WebP by its name's ending, whole or not at all; its folder is made.

    ``smaller``, such as ", or give fewer --count", ends the error of a sheet that is too large.

    Raises:
        ConfigError: another ending, or a sheet too large for that kind of file; names ``flag``.
        DataError: it cannot be written.
    """
    check_sheet_name(path, flag)
    kind = _FORMATS[path.suffix.lower()]
    longest = _LONGEST_SIDE.get(kind)
    if longest is not None and max(sheet.size) > longest:
        raise ConfigError(
            f"{flag} {path}: a sheet of {sheet.width:,} x {sheet.height:,} pixels does not fit into a {kind} file, "
            f"which has at most {longest:,} a side: let the name end in .png{smaller}"
        )
    buffer = io.BytesIO()
    sheet.save(buffer, kind)
    make_folder(path.parent)
    with atomic_writer(path) as file:
        file.write(buffer.getvalue())


def _paste(
    sheet: Image.Image, image: Image.Image, corner: tuple[int, int], side: int, border: str | None
) -> None:
    """Fit ``image`` into a square at ``corner``, centred, with rounded corners."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Small pictures stay crisp when enlarged; photos are scaled down smoothly.
    method = Image.Resampling.LANCZOS if scale < 2 else Image.Resampling.BICUBIC
    small = image.convert("RGB").resize(size, method, reducing_gap=3.0 if scale < 1 else None)
    x, y = corner[0] + (side - size[0]) // 2, corner[1] + (side - size[1]) // 2
    mask = Image.new("L", (4 * size[0], 4 * size[1]), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, mask.width - 1, mask.height - 1), 4 * 6, fill=255)
    sheet.paste(small, (x, y), mask.resize(size, Image.Resampling.BOX))
    if border is not None:
        frame = (x - _BORDER, y - _BORDER, x + size[0] + _BORDER - 1, y + size[1] + _BORDER - 1)
        ImageDraw.Draw(sheet).rounded_rectangle(frame, 6 + _BORDER, outline=border, width=_BORDER)


def _write(
    draw: ImageDraw.ImageDraw, texts: Sequence[Sequence[str]], at: tuple[int, int], font: Font
) -> None:
    x, y = at
    for lines in texts:
        if len(texts) > 1:
            middle = y + _TEXT_SIZE * 0.62
            draw.ellipse((x + 1, middle - 2, x + 5, middle + 2), fill=_FAINT)
        for line in lines:
            draw.text((x + (_BULLET if len(texts) > 1 else 0), y), line, font=font, fill=_INK)
            y += _LEADING
        y += _BETWEEN


def _text_height(texts: Sequence[Sequence[str]]) -> int:
    if not texts:
        return 0
    return 12 + sum(len(lines) * _LEADING for lines in texts) + _BETWEEN * (len(texts) - 1)


def _wrap_all(texts: Sequence[str], font: Font, width: int, max_lines: int) -> list[list[str]]:
    room = width - (_BULLET if len(texts) > 1 else 0)
    return [_wrap(text, font, room, max_lines) for text in texts]


def _wrap(text: str, font: Font, width: int, max_lines: int) -> list[str]:
    """Break ``text`` at spaces (and words that are too long anywhere) into lines of ``width`` pixels."""
    text = text[: (max_lines + 1) * width // 2]  # more cannot be shown, and measuring it would take minutes
    lines = [""]
    # A full stop that is written as a word of its own, as many caption sets do, stays on its line.
    for word in re.findall(r"\S+(?:\s+[.,;:!?]+(?!\S))?", text):
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        while font.getlength(word) > width:
            fitting = max(1, _characters_that_fit(word, font, width))
            lines[-1], word = word[:fitting], word[fitting:].lstrip()
            lines.append("")
        lines[-1] = word
        if len(lines) > max_lines:
            break
    if len(lines) <= max_lines:
        return lines
    last = lines[max_lines - 1]
    last = last[: _characters_that_fit(last, font, int(width - font.getlength("…")))]
    return [*lines[: max_lines - 1], last.rstrip(" .,;:") + "…"]


def _characters_that_fit(word: str, font: Font, width: int) -> int:
    prefixes = range(1, len(word) + 1)
    return bisect.bisect_left(prefixes, True, key=lambda n: font.getlength(word[:n]) > width)
