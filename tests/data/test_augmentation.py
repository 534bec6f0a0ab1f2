"""Views are a pure function of (key, view), and stay inside the parameters of the recipe."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ssmke.data.augmentation import AugmentationConfig, canonical_box, canonical_view, render, show, view_box
from ssmke.data.decode import EncodedImage
from ssmke.errors import ConfigError

sizes = st.integers(16, 2000)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20), st.integers(0, 20), sizes, sizes, st.floats(0.05, 1.0), st.floats(0, 1))
def test_crops_lie_inside_the_image_and_repeat(
    key: str, view: int, width: int, height: int, smallest: float, flip: float
) -> None:
    config = AugmentationConfig(flip=flip, crop_min=smallest)
    box, flipped = view_box(key, view, config, width, height)
    left, top, right, bottom = box
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert view_box(key, view, config, width, height) == (box, flipped)


def test_shares_ratios_and_flips_follow_the_recipe() -> None:
    config = AugmentationConfig(flip=0.5, crop_min=0.5, crop_max=0.8)
    views = [view_box(f"key{i}", 0, config, 640, 480) for i in range(2000)]
    shares = np.array([(r - x) * (b - t) / (640 * 480) for (x, t, r, b), _ in views])
    ratios = np.array([(r - x) / (b - t) for (x, t, r, b), _ in views])
    assert shares.min() > 0.49
    assert shares.max() < 0.81
    assert ratios.min() > 0.74
    assert ratios.max() < 1.35
    assert 0.45 < np.mean([flipped for _, flipped in views]) < 0.55


def test_views_of_one_sample_differ() -> None:
    config = AugmentationConfig(crop_min=0.5)
    assert len({view_box("photo", v, config, 640, 480) for v in range(10)}) == 10


@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 300), (224, 224)])
def test_the_canonical_view_is_the_centred_square(width: int, height: int) -> None:
    image = Image.new("RGB", (width, height), (255, 0, 0))
    image.paste((0, 0, 255), tuple(round(v) for v in canonical_box(width, height)))
    pixels = render(np.array(image), canonical_box(width, height), False, 64)
    assert pixels.shape == (3, 64, 64)
    # Bicubic filtering looks a little beyond the box; everything else is the inside of the square.
    assert pixels[2, 1:-1, 1:-1].min() > 250
    assert pixels[2].min() > 200


def test_a_flip_mirrors_left_and_right() -> None:
    image = Image.new("RGB", (64, 64), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 32, 64))
    plain = render(np.array(image), (0, 0, 64, 64), False, 64)
    assert plain[0, 0, 0] == 255
    assert np.array_equal(render(np.array(image), (0, 0, 64, 64), True, 64), plain[:, :, ::-1])


def pillow(data: bytes, box: tuple[int, ...], flip: bool, size: int) -> np.ndarray:
    """The same view by Pillow from the whole image, [3, S, S]."""
    image = Image.open(io.BytesIO(data)).convert("RGB").crop(box)
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    return pixels[:, :, ::-1] if flip else pixels


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("view", range(4))
def test_views_are_those_of_pillow(format: str, view: int, encode: Callable[..., bytes]) -> None:
    data = encode(90, 70, format, seed=view)
    choose = partial(view_box, "photo", view, AugmentationConfig(crop_min=0.6))
    expected = pillow(data, *choose(90, 70), 64).astype(int)
    shown = show(EncodedImage(data), choose, 64)
    assert shown.dtype == np.uint8
    assert np.abs(shown - expected).max() <= 2


def test_a_large_jpeg_is_decoded_small_and_shows_the_same(encode: Callable[..., bytes]) -> None:
    data = encode(640, 480, seed=3)
    image = EncodedImage(data)
    assert image.pixels(shrink=0.5).shape == (240, 320, 3)
    assert image.pixels(shrink=0.51).shape == (480, 640, 3)
    for choose in (canonical_view, partial(view_box, "photo", 1, AugmentationConfig(crop_min=0.8))):
        shown = show(image, choose, 100)
        assert np.abs(shown - pillow(data, *choose(640, 480), 100).astype(int)).mean() < 1.5


def test_a_view_is_written_where_it_belongs(encode: Callable[..., bytes]) -> None:
    import torch

    batch = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    image = EncodedImage(encode(48, 40))
    show(image, canonical_view, 32, out=batch[1])
    assert np.array_equal(batch[1].numpy(), show(image, canonical_view, 32))
    assert not batch[0].any()


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"flip": 1.5}, "flip"),
        ({"crop_min": 0.0}, "crop-min"),
        ({"crop_min": 0.9, "crop_max": 0.5}, "crop-max"),
    ],
)
def test_impossible_parameters_are_refused_by_flag(values: dict[str, float], flag: str) -> None:
    with pytest.raises(ConfigError, match=rf"--data\.augmentation\..*{flag}"):
        AugmentationConfig(**values)
