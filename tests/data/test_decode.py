from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from ssmke.data.decode import MIN_SIDE, EncodedImage, decode_image, image_extension
from ssmke.errors import BadSample


def reason(data: bytes) -> str:
    with pytest.raises(BadSample) as error:
        decode_image(data)
    return error.value.reason


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that states a size and has next to no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def jpeg_of_size(data: bytes, width: int, height: int) -> bytes:
    """The JPEG ``data`` with another size in its frame header."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


@pytest.mark.parametrize(("format", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_format_is_told_from_the_content(encode: Callable[..., bytes], format: str, extension: str) -> None:
    data = encode(40, 24, format)
    assert image_extension(data) == extension
    image = decode_image(data)
    assert (image.mode, image.size) == ("RGB", (40, 24))


def test_what_is_no_image(encode: Callable[..., bytes]) -> None:
    assert reason(b"") == "empty file"
    assert reason(b"<!DOCTYPE html><html>404</html>") == "not an image"
    assert reason(encode(format="GIF")) == "unsupported format"
    assert reason(encode(format="BMP")) == "unsupported format"


def test_a_1x1_image_is_too_small(encode: Callable[..., bytes]) -> None:
    assert reason(encode(1, 1, "PNG")) == "too small"
    assert reason(encode(MIN_SIDE - 1, 500)) == "too small"
    assert decode_image(encode(MIN_SIDE, MIN_SIDE)).size == (MIN_SIDE, MIN_SIDE)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_bomb_is_refused_by_its_header(
    encode: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    bomb = png_header(30_000, 30_000) if format == "PNG" else jpeg_of_size(encode(), 30_000, 30_000)
    # Pixels are allocated by load(), which this must never get to.
    monkeypatch.setattr(
        ImageFile.ImageFile, "load", lambda image: pytest.fail(f"{image.size} is being decoded")
    )
    assert reason(bomb) == "too many pixels"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_size_that_pil_would_only_warn_of_is_refused() -> None:
    assert reason(png_header(12_000, 10_000)) == "too many pixels"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated(encode: Callable[..., bytes], format: str, share: float) -> None:
    data = encode(256, 256, format)
    assert reason(data[: int(len(data) * share)]) == "truncated image"


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_damage_is_never_anything_but_a_bad_sample(encode: Callable[..., bytes], data: st.DataObject) -> None:
    whole = bytearray(encode(64, 64, data.draw(st.sampled_from(["JPEG", "PNG", "WEBP"]))))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    del whole[data.draw(st.integers(0, len(whole))) :]
    with contextlib.suppress(BadSample):
        assert decode_image(bytes(whole)).mode == "RGB"


def test_transparency_is_flattened_on_white() -> None:
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    assert decode_image(saved(clear, "PNG")).getpixel((5, 5)) == (255, 255, 255)
    half = Image.new("RGBA", (20, 20), (0, 0, 0, 128))
    assert decode_image(saved(half, "WEBP", lossless=True)).getpixel((5, 5)) == pytest.approx(
        (127,) * 3, abs=1
    )
    palette = Image.new("P", (20, 20), 0)
    palette.putpalette([200, 0, 0])
    assert decode_image(saved(palette, "PNG", transparency=0)).getpixel((5, 5)) == (255, 255, 255)


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    decoded = np.asarray(decode_image(saved(Image.fromarray(ramp), "PNG")))
    np.testing.assert_array_equal(decoded[..., 0], ramp >> 8)


@pytest.mark.parametrize(
    ("mode", "format"), [("L", "JPEG"), ("CMYK", "JPEG"), ("1", "PNG"), ("LA", "PNG"), ("P", "PNG")]
)
def test_other_modes_become_rgb(mode: str, format: str) -> None:
    image = decode_image(saved(Image.new("RGB", (20, 20), "white").convert(mode), format))
    assert image.mode == "RGB"
    assert min(image.getpixel((5, 5))) > 250  # type: ignore[arg-type,type-var]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_exif_orientation_is_applied_and_broken_exif_is_not_minded() -> None:
    wide = Image.new("RGB", (40, 20), "red")
    wide.paste("blue", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees to be upright
    upright = decode_image(saved(wide, "PNG", exif=exif.tobytes()))
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5)) == (0, 0, 255)
    assert decode_image(saved(wide, "JPEG", exif=b"Exif\0\0II*\0garbage")).size == (40, 20)


def outcome(decode: Callable[[], object]) -> object:
    """Pixels, or why there are none."""
    try:
        return np.asarray(decode()).tolist()
    except BadSample as error:
        return error.reason


def late_exif(whole: bytes, exif: bytes) -> bytes:
    """The JPEG with a segment of 60 KB, then EXIF, then 60 KB again, before its first one."""

    def segment(marker: bytes, content: bytes) -> bytes:
        return b"\xff" + marker + struct.pack(">H", len(content) + 2) + content

    filler = segment(b"\xe2", bytes(60_000))
    return whole[:2] + filler + filler + segment(b"\xe1", exif) + filler + whole[2:]


def exotic() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (6, 9, 3), np.uint8)).resize((90, 60))
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = saved(image, "JPEG")
    return {
        "plain": whole,
        "444": saved(image, "JPEG", subsampling=0),
        "progressive": saved(image, "JPEG", progressive=True),
        "grey": saved(image.convert("L"), "JPEG"),
        "CMYK": saved(image.convert("CMYK"), "JPEG"),
        "turned": saved(image, "JPEG", exif=exif.tobytes()),
        "turned, late": late_exif(whole, exif.tobytes()),
        "odd size": saved(image.resize((91, 61)), "JPEG"),
        "PNG": saved(image, "PNG"),
        "PNG, 16 bits": saved(
            Image.fromarray((np.arange(3600, dtype=np.uint16) * 18).reshape(60, 60)), "PNG"
        ),
        "transparent": saved(image.convert("RGBA"), "WEBP", lossless=True),
        "junk behind": whole + b"junk",
        "truncated": whole[: len(whole) // 2],
        "header only": whole[:40],
        "too small": saved(image.resize((15, 60)), "JPEG"),
        "too large": jpeg_of_size(whole, 30_000, 30_000),
        "nothing": b"",
        "text": b"<html>",
    }


PLAIN = exotic()["plain"]


@pytest.mark.parametrize("kind", list(exotic()))
def test_the_fast_way_gives_what_the_thorough_one_gives(kind: str) -> None:
    data = exotic()[kind]
    expected = outcome(lambda: decode_image(data))
    assert outcome(lambda: EncodedImage(data).pixels()) == expected
    if not isinstance(expected, str):
        assert EncodedImage(data).size == decode_image(data).size


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 3000), st.binary(min_size=1, max_size=4))
def test_damage_is_found_alike_by_both_ways(at: int, junk: bytes) -> None:
    whole = PLAIN
    data = whole[:at] + junk + whole[at + len(junk) :]
    thorough, fast = outcome(lambda: decode_image(data)), outcome(lambda: EncodedImage(data).pixels())
    assert isinstance(thorough, str) == isinstance(fast, str)
    if isinstance(thorough, str):
        assert thorough == fast


def test_a_jpeg_is_decoded_no_smaller_than_asked() -> None:
    image = EncodedImage(PLAIN)
    assert [image.pixels(shrink).shape[:2] for shrink in (1.0, 0.6, 0.5, 0.3, 0.25, 0.01)] == [
        (60, 90), (60, 90), (30, 45), (30, 45), (15, 23), (8, 12)
    ]  # fmt: skip
    assert image.pixels(0.5) is image.pixels(0.45)
    assert EncodedImage(exotic()["PNG"]).pixels(0.1).shape == (60, 90, 3)
