"""The bytes of an image as a shard stores them: those that came or, where asked for, a smaller JPEG.

A JPEG that is to be smaller is decoded at the smallest eighth of its size that is still twice what is wanted, so a
photo straight from a camera costs little more than a small one. One that is stored as it came is decoded at an
eighth: that reads all of its data, so damage is found as well as at full size, at less cost. Whoever makes shards
comes here, so the same image with the same options has the same bytes in all of them.
"""

from __future__ import annotations

import io

from PIL import Image

from ssmke.data.decode import EncodedImage, image_extension
from ssmke.data.quality.cleaning import CleaningConfig, check_size

JPEG_QUALITY = 92


def stored_image(
    data: bytes, clean: CleaningConfig, *, max_side: int = 0, short_side: int = 0, decodes: bool = False
) -> bytes:
    """What to store of the image file ``data``, known to decode.

    Args:
        data: JPEG, PNG or WebP.
        clean: what sizes are left out.
        max_side: scale the longer side down to this; 0 does not.
        short_side: scale the shorter side down to this; 0 does not.
        decodes: it was decoded before, so it need not be where nothing of it changes.

    Raises:
        BadSample: as `decode_image` and `check_size`.
    """
    image_extension(data)
    if decodes and not (max_side or short_side or clean.min_side or clean.max_aspect):
        return data
    image = EncodedImage(data)
    width, height = image.size
    check_size(width, height, clean)
    scale = min(
        max_side / max(width, height) if max_side else 1.0,
        short_side / min(width, height) if short_side else 1.0,
    )
    if scale >= 1:
        if not decodes:
            image.pixels(shrink=0.0)
        return data
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    pixels = Image.fromarray(image.pixels(shrink=min(1.0, 2 * scale)))
    buffer = io.BytesIO()
    pixels.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
