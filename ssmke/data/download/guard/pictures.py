"""OpenCV's decoder and encoder as img2dataset should have them: pictures as people saw them, or an error.

What plain img2dataset 1.47 makes wrong, without a word: 16-bit PNGs (JPEG clips them to white), pictures that
EXIF says to turn (stored as they lie, without the EXIF), pictures too long for JPEG (an empty file is stored as
a success), and large transparent ones (laid on white in 64-bit floats: gigabytes).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def decoder(cv2: Any, decode: Callable[..., Any]) -> Callable[..., Any]:
    """``cv2.imdecode`` whose pictures are upright, of 8 bits a channel, and opaque."""
    import numpy as np

    def imdecode(buffer: Any, flags: int) -> Any:
        data = bytes(buffer)
        # IMREAD_UNCHANGED keeps transparency but ignores EXIF; the other flags turn but drop transparency,
        # which JPEG does not have. (A PNG or WebP with both is left as it lies.)
        turning = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH
        is_jpeg = data.startswith(b"\xff\xd8")
        try:
            image = decode(buffer, turning if is_jpeg else flags)
            turned = not is_jpeg and (b"eXIf" in data or b"EXIF" in data)
            if turned and image is not None and (image.ndim == 2 or image.shape[2] == 3):
                image = decode(buffer, turning)
        except cv2.error as error:
            if "MAX_IMAGE" in str(error):
                raise ValueError("too many pixels") from None
            raise ValueError("image decoding failed") from None
        if image is None:
            raise ValueError("image decoding failed")
        if image.dtype == np.uint16:
            image = (image >> 8).astype(np.uint8)
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise ValueError("unsupported format")
        if image.ndim == 3 and image.shape[2] == 4:
            return _on_white(image, np)
        return image

    return imdecode


def _on_white(image: Any, np: Any) -> Any:
    # By rows: img2dataset does this in 64-bit floats over the whole picture, gigabytes for a large one.
    flat = np.empty((*image.shape[:2], 3), np.uint8)
    for top in range(0, len(image), 256):
        rows = image[top : top + 256].astype(np.uint16)
        colour, alpha = rows[..., :3], rows[..., 3:]
        flat[top : top + 256] = (colour * alpha + 255 * (255 - alpha) + 127) // 255
    return flat


def encoder(encode: Callable[..., Any]) -> Callable[..., Any]:
    """``cv2.imencode`` that raises where it cannot: img2dataset would store an empty file as a success."""

    def imencode(*arguments: Any, **named: Any) -> Any:
        done, data = encode(*arguments, **named)
        if not done:
            raise ValueError("image encoding failed")
        return done, data

    return imencode
