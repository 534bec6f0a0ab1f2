"""What img2dataset stores looks as the file did: the real OpenCV of its environment, judged by pixels."""

from __future__ import annotations

import io
import json
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssmke.data.decode import decode_image
from ssmke.data.download.guard import pictures
from tests.faults.hostile_web import animated, encoded, half_transparent, on_its_side, picture, png, png16

# Decode as img2dataset does, and as it is done under the guard; store both.
SCRIPT = """
import json, os, pathlib, sys
os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = "1000000"
sys.path.insert(0, sys.argv[1])
import cv2, numpy as np, pictures
folder = pathlib.Path(sys.argv[2])
said = {}
for name, decode in (("plain", cv2.imdecode), ("guarded", pictures.decoder(cv2, cv2.imdecode))):
    encode = cv2.imencode if name == "plain" else pictures.encoder(cv2.imencode)
    for path in sorted(folder.glob("*.in")):
        try:
            image = decode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
            done, data = encode(".jpg", image, params=[int(cv2.IMWRITE_JPEG_QUALITY), 95])
            path.with_suffix("." + name).write_bytes(data.tobytes())
        except Exception as error:
            said[name + " " + path.stem] = str(error)
print(json.dumps(said))
"""


def grey16() -> bytes:
    ramp = (np.arange(64, dtype=np.uint16) * 1000).repeat(64).reshape(64, 64)
    return encoded(Image.fromarray(ramp), "PNG")


def rgba16() -> bytes:
    """Red, half transparent."""
    return png(64, 64, 16, 6, struct.pack(">HHHH", 65535, 0, 0, 32768) * 64)


def transparent(mode: str) -> bytes:
    image = picture().convert("RGBA")
    image.paste((0, 0, 255, 0), (0, 0, 100, 300))
    return encoded(image.convert(mode), "PNG")


RIGHT = {
    "jpeg": encoded(picture(), "JPEG", quality=95),
    "progressive": encoded(picture(), "JPEG", quality=95, progressive=True),
    "grey": encoded(picture().convert("L"), "JPEG", quality=95),
    "cmyk": encoded(picture().convert("CMYK"), "JPEG", quality=95),
    "exif": on_its_side(),
    "exif_webp": encoded(
        Image.open(io.BytesIO(on_its_side())), "WEBP", exif=Image.open(io.BytesIO(on_its_side())).getexif()
    ),
    "png": encoded(picture(), "PNG"),
    "png16": png16(),
    "grey16": grey16(),
    "rgba16": rgba16(),
    "palette": half_transparent(),
    "rgba": transparent("RGBA"),
    "grey_alpha": transparent("LA"),
    "webp": encoded(picture(), "WEBP", quality=95),
    "animated_webp": animated("WEBP"),
    "animated_png": encoded(picture(), "PNG", save_all=True, append_images=[Image.new("RGB", (400, 300))]),
}
WRONG = {
    "cut_jpeg": (encoded(picture(), "JPEG")[:-300], "image decoding failed"),
    "cut_png": (encoded(picture(), "PNG")[:-40], "image decoding failed"),
    "cut_webp": (encoded(picture(), "WEBP")[:-40], "image decoding failed"),
    "bomb": (png(2000, 2000, 1, 0, bytes(250)), "too many pixels"),
    "bomb_jpeg": (encoded(Image.new("L", (1500, 1500)), "JPEG"), "too many pixels"),
    "wide": (png(65_600, 2, 8, 0, bytes(65_600)), "image encoding failed"),
}


@pytest.fixture(scope="module")
def decoded(img2dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Folder of what was stored, and what was said of the rest."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, data in (*RIGHT.items(), ("gif", animated("GIF")), *((n, d) for n, (d, _) in WRONG.items())):
        (folder / f"{name}.in").write_bytes(data)
    guard = str(Path(pictures.__file__).parent)
    answer = subprocess.run(
        [img2dataset, "-c", SCRIPT, guard, folder], capture_output=True, text=True, timeout=120, check=True
    )
    return folder, json.loads(answer.stdout.splitlines()[-1])


def off(one: Image.Image, other: Image.Image) -> float:
    """Mean difference; 255 where not even the shapes are equal."""
    if one.size != other.size:
        return 255.0
    return float(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).mean())


@pytest.mark.parametrize("name", sorted(RIGHT))
def test_pictures_are_stored_as_we_would_have_decoded_them(
    name: str, decoded: tuple[Path, dict[str, str]]
) -> None:
    folder, _ = decoded
    stored = decode_image((folder / f"{name}.guarded").read_bytes())
    assert off(stored, decode_image(RIGHT[name])) < 3


def test_the_first_frame_of_a_gif(decoded: tuple[Path, dict[str, str]]) -> None:
    folder, _ = decoded
    assert off(decode_image((folder / "gif.guarded").read_bytes()), picture()) < 3


@pytest.mark.parametrize("name", ["png16", "grey16", "exif"])
def test_plain_img2dataset_would_have_spoiled_them(name: str, decoded: tuple[Path, dict[str, str]]) -> None:
    """So that the day that it no longer does, this file is looked at again."""
    folder, _ = decoded
    assert off(decode_image((folder / f"{name}.plain").read_bytes()), decode_image(RIGHT[name])) > 40


@pytest.mark.parametrize("name", sorted(WRONG))
def test_what_cannot_be_right_is_an_error(name: str, decoded: tuple[Path, dict[str, str]]) -> None:
    folder, said = decoded
    assert not (folder / f"{name}.guarded").exists()
    assert said[f"guarded {name}"] == WRONG[name][1]
