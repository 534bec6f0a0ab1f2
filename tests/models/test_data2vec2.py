"""data2vec 2.0's image encoder against its definition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssmke.errors import ConfigError
from ssmke.models.data2vec2 import Data2Vec2Image, sincos_positions
from ssmke.models.image_encoders import ImageEncoderConfig, build_image_encoder

if TYPE_CHECKING:
    from conftest import Layouts, Size

Save = Callable[[object], str]
NAME = "data2vec2_base"


def reference(state: dict[str, Tensor], s: Size, images: Tensor, names: list[str]) -> Tensor:
    """Post-norm blocks over patches with fixed positions and an extra token without, on fairseq's names."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (s.dim,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    image = "modality_encoders.IMAGE"
    kernel, bias = (state[f"{image}.local_encoder.proj.{part}"] for part in ("weight", "bias"))
    x = F.conv2d(images, kernel, bias, stride=s.patch).flatten(2).transpose(1, 2)
    x = x + state[f"{image}.fixed_positional_encoder.positions"]
    x = torch.cat([state[f"{image}.extra_tokens"].expand(len(images), -1, -1), x], dim=1)
    x = norm(x, f"{image}.context_encoder.norm")
    for name in names:
        q, k, v = (
            part.unflatten(-1, (s.heads, -1)).transpose(1, 2)
            for part in linear(x, f"{name}.attn.qkv").chunk(3, dim=-1)
        )
        attention = (q * (s.dim // s.heads) ** -0.5 @ k.transpose(-1, -2)).softmax(dim=-1) @ v
        x = norm(x + linear(attention.transpose(1, 2).flatten(2), f"{name}.attn.proj"), f"{name}.norm1")
        x = norm(x + linear(F.gelu(linear(x, f"{name}.mlp.fc1")), f"{name}.mlp.fc2"), f"{name}.norm2")
    return x


@pytest.mark.parametrize("prenet", [0, 2])
def test_tokens_are_those_of_the_definition(layouts: Layouts, tiny: Size, save: Save, prenet: int) -> None:
    state = layouts.data2vec2_model(tiny, prenet=prenet)
    content = {"model": state, "cfg": {"model": {"depth": 4}}, "extra_state": {"epoch": 500}}
    encoder = build_image_encoder(ImageEncoderConfig(NAME, 3, save(content), timm_kwargs=tiny.timm_kwargs))
    context = [f"modality_encoders.IMAGE.context_encoder.blocks.{i}" for i in range(prenet)]
    names = (context + [f"blocks.{i}" for i in range(tiny.depth - prenet)])[:3]
    online = {key: tensor for key, tensor in state.items() if isinstance(tensor, Tensor)}
    images = torch.randn(2, 3, tiny.image, tiny.image)
    torch.testing.assert_close(encoder(images), reference(online, tiny, images, names), atol=2e-5, rtol=1e-4)
    reasons = Counter(encoder.load_report.dropped.values())
    assert reasons["decoder of pretraining"] == 14
    assert reasons["of blocks beyond the first 3"] == 12
    assert reasons["moving average of pretraining (the published results use the model itself)"] == (
        encoder.load_report.loaded + 12
    )


def test_full_size_is_accounted_for(layouts: Layouts, base: Size, save: Save) -> None:
    path = save({"model": layouts.data2vec2_model(base)})
    encoder = build_image_encoder(ImageEncoderConfig(NAME, 6, path))
    assert sum(p.numel() for p in encoder.parameters()) == 590_592 + 768 + 2 * 768 + 6 * 7_087_872
    assert encoder.load_report.loaded == 6 + 6 * 12
    assert (encoder.dim, encoder.image_size, encoder.grid) == (768, 224, (14, 14))


def test_positions_are_the_published_sine_cosine_vectors() -> None:
    dim, grid = 16, 5
    positions = sincos_positions(dim, grid)
    frequencies = [10000 ** (-i / (dim / 4)) for i in range(dim // 4)]
    for row in range(grid):
        for column in range(grid):
            expected = [
                function(coordinate * frequency)
                for coordinate in (column, row)
                for function in (np.sin, np.cos)
                for frequency in frequencies
            ]
            np.testing.assert_allclose(positions[0, row * grid + column].numpy(), expected, atol=1e-6)


def test_another_image_size_interpolates_positions_and_leaves_the_rest(tiny: Size) -> None:
    model = Data2Vec2Image(32, 8, tiny.dim, depth=1, num_heads=4)
    corner = model.positions[0, 0].clone()
    model.set_input_size(64)
    assert model.positions.shape == (1, 64, tiny.dim)
    assert (model.positions[0, 0] - corner).abs().max() < 0.2
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 65, tiny.dim)
    assert model.state_dict()["positions"].shape == (1, 64, tiny.dim)


def test_a_size_that_patches_do_not_fill_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a multiple of patch_size 16"):
        build_image_encoder(ImageEncoderConfig(NAME, 1, "none", timm_kwargs={"img_size": 40, "depth": 1}))
