"""Image bytes to RGB pixels, with every way in which they can be bad given one stable name.

- The format is told from the content, never from a file name, and only JPEG, PNG and WebP are tried: what
  shards hold, and a small surface for hostile files.
- The size is read from the header and judged before any pixel is decoded: a 30,000 x 30,000 bomb costs
  nothing.
- EXIF orientation is applied: captions were written by people who saw the picture upright. (torchvision's and
  the original's loaders ignore it.)
- Transparency is flattened on white; 16-bit grey is scaled to 8 bits (a plain conversion would clip it).
- Truncated images are refused rather than padded with grey: half a picture does not match its caption.

`decode_image` gives all of that for any file. `EncodedImage` gives the same pixels as an array, faster for what
shards mostly hold: an upright JPEG goes through libjpeg-turbo directly (a quarter less time than through PIL) and
is decoded at a half, quarter or eighth of its size where that is all that is shown. Anything else goes through PIL.
"""

from __future__ import annotations

import functools
import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from ssmke.errors import BadSample

MAX_PIXELS = 89_478_485
"""PIL's own bound: a quarter of a gigabyte as RGB."""
_MAX_SCANNED = 16 * MAX_PIXELS
"""Pixels times scans of a JPEG; progressive ones have about ten."""
MIN_SIDE = 16
"""Below one ViT patch there is nothing to see (tracking pixels, spacers)."""

_ORIENTATION_TAG = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PIL_FORMAT = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
_GREY16 = ("I", "I;16", "I;16B", "I;16L", "I;16N")
# What PIL's readers are known to raise on damaged content. MemoryError is not among them: it is ours to see.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    AssertionError,
    AttributeError,
    RuntimeError,
    struct.error,
    zlib.error,
)


def image_extension(data: bytes) -> str:
    """``"jpg"``, ``"png"`` or ``"webp"``, told from the first bytes.

    Raises:
        BadSample: "empty file", "unsupported format" (GIF, BMP, TIFF), or "not an image".
    """
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if not data:
        raise BadSample("empty file")
    if data.startswith((b"GIF8", b"BM", b"II*\0", b"MM\0*")):
        raise BadSample("unsupported format", "only JPEG, PNG and WebP are read")
    raise BadSample("not an image")


def decode_image(data: bytes) -> Image.Image:
    """Decode to an upright RGB image; animations give their first frame.

    Raises:
        BadSample: "empty file", "not an image", "unsupported format", "unsupported mode", "too many pixels",
            "too small" or "truncated image".
    """
    return upright_rgb(_open(data))


class EncodedImage:
    """An image of which only the header was read; its size is known and in bounds.

    Raises:
        BadSample: as `decode_image`, as far as the header tells.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._plain = _plain_jpeg_size(data)
        self._decoded: dict[int, npt.NDArray[np.uint8]] = {}  # by denominator: views of one image share them
        if self._plain is None:
            self.size = self._pil.size
        else:
            _check_size(*self._plain)
            _check_scans(data, *self._plain)
            self.size = self._plain
        """Width and height, upright."""

    @functools.cached_property
    def _pil(self) -> Image.Image:
        return decode_image(self._data)

    def pixels(self, shrink: float = 1.0) -> npt.NDArray[np.uint8]:
        """RGB pixels, uint8 [H, W, 3]; a plain JPEG is decoded at the smallest of 1, 1/2, 1/4, 1/8 of its size that
        is at least ``shrink`` of it. Not to be changed: asked again, it is the same array.

        Raises:
            BadSample: "truncated image".
        """
        denominator = 1
        if self._plain is not None:
            denominator = next(d for d in (8, 4, 2, 1) if d == 1 or 1 / d >= shrink)
        if denominator not in self._decoded:
            self._decoded[denominator] = self._decode(denominator)
        return self._decoded[denominator]

    def _decode(self, denominator: int) -> npt.NDArray[np.uint8]:
        if self._plain is not None:
            least = [-(-side // denominator) for side in self._plain]
            try:
                pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
                    self._data, min_width=least[0], min_height=least[1]
                )
                return pixels
            except ValueError:
                pass  # also raised for what PIL and every browser take, such as bytes after a segment's end
        return np.array(self._pil)  # a copy, because torch wants memory that could be written to


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG that is grey or YCbCr and not turned by EXIF; None for anything else."""
    # Images that have EXIF and stand upright all the same only lose the short cut.
    if not data.startswith(b"\xff\xd8\xff") or _has_exif(data):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (width, height) if colours in ("YCbCr", "Gray") else None


def _has_exif(data: bytes) -> bool:
    """Whether one of a JPEG's segments before its pixels is EXIF."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":
        if data[at + 1 : at + 2] == b"\xe1" and data[at + 4 : at + 10] == b"Exif\0\0":
            return True
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _open(data: bytes) -> Image.Image:
    extension = image_extension(data)
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=(_PIL_FORMAT[extension],))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadSample("too many pixels", str(error)) from None
    except _DAMAGED as error:
        # The first bytes were right, so this is the beginning of an image.
        raise BadSample("truncated image", str(error)) from None
    _check_size(*image.size)
    if extension == "jpg":
        _check_scans(data, *image.size)
    return image


def _check_scans(data: bytes, width: int, height: int) -> None:
    """A progressive JPEG is gone through once for each scan, and a scan may be told in 12 bytes."""
    if b"\xff\xc2" not in data:  # no frame of it is progressive
        return
    # Within a scan no byte that is 0xFF goes unmarked. After the image there may be others, and whole films.
    scans = data.count(b"\xff\xda", 0, _end_of_image(data))
    if scans * width * height > _MAX_SCANNED:
        raise BadSample("too many pixels", f"{width} x {height} in {scans} scans")


def _end_of_image(data: bytes) -> int:
    """Where the first image after the headers ends; those may hold thumbnails, which have ends of their own."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in (b"\xda", b"\xff", b""):
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    end = data.find(b"\xff\xd9", at)
    return len(data) if end < 0 else end


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadSample("too many pixels", f"{width} x {height}")
    if min(width, height) < MIN_SIDE:
        raise BadSample("too small", f"{width} x {height}")


def upright_rgb(image: Image.Image) -> Image.Image:
    """``image`` as RGB, transparent parts white, turned as its EXIF says.

    Raises:
        BadSample: its pixels cannot be read, or are of a kind that has no colours.
    """
    try:
        image.load()
        return _upright(_to_rgb(image), image)
    except _DAMAGED as error:
        raise BadSample("truncated image", str(error)) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _GREY16:
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BadSample("unsupported mode", image.mode)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image, original: Image.Image) -> Image.Image:
    if "exif" not in original.info:
        return image
    try:
        orientation = original.getexif().get(_ORIENTATION_TAG, 1)
    except _DAMAGED:
        return image  # a damaged EXIF block says nothing about the pixels
    method = _TRANSPOSE.get(orientation)
    if method is None:
        return image
    turned = image.transpose(method)
    turned.info.pop("exif", None)  # or whoever opens it again turns it a second time
    return turned
