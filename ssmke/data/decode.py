"""Image bytes to RGB pixels, with every way in which they can be bad given one stable name.

- The format is told from the content, never from a file name, and only JPEG, PNG and WebP are tried: what
  shards hold, and a small surface for hostile files.
- The size is read from the header and judged before any pixel is decoded: a 30,000 x 30,000 bomb costs
  nothing.
- EXIF orientation is applied: captions were written by people who saw the picture upright. (torchvision's and
  the original's loaders ignore it.)
- Transparency is flattened on white; 16-bit grey is scaled to 8 bits (a plain conversion would clip it).
- Truncated images are refused rather than padded with grey: half a picture does not match its caption.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from ssmke.errors import BadSample

MAX_PIXELS = 89_478_485
"""PIL's own bound: a quarter of a gigabyte as RGB."""
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
    extension = image_extension(data)
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=(_PIL_FORMAT[extension],))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadSample("too many pixels", str(error)) from None
    except _DAMAGED as error:
        # The first bytes were right, so this is the beginning of an image.
        raise BadSample("truncated image", str(error)) from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadSample("too many pixels", f"{width} x {height}")
    if min(width, height) < MIN_SIDE:
        raise BadSample("too small", f"{width} x {height}")
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
    return image if method is None else image.transpose(method)
