"""Fewer patches and smaller images: against timm's own paths, and against attention that is masked by hand."""

from __future__ import annotations

import copy
import math
from fractions import Fraction
from typing import Any

import pytest
import timm
import torch
from timm.models.beit import gen_relative_position_index
from torch import Tensor, nn

from ssmke.errors import ConfigError
from ssmke.models.data2vec2 import Data2Vec2Image
from ssmke.models.image_encoders import ImageEncoder, ImageEncoderConfig, build_image_encoder
from ssmke.models.patches import offset_index
from tests.models.partitioned import release_outside_their_owner

SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
VIT, BEIT, D2V2, CONV = "vit_tiny_patch16_224", "beitv2_base_patch16_224", "data2vec2_base", "mobilenetv2_050"
WHOLE = {"num_classes": 0, "global_pool": ""}
KEPT = torch.tensor([[0, 3, 5, 6, 15], [1, 2, 8, 9, 10]])


def build(name: str, **kwargs: Any) -> ImageEncoder:
    torch.manual_seed(0)
    config = (
        ImageEncoderConfig(name, None, "none", image_size=64)
        if name == CONV
        else ImageEncoderConfig(name, None, "none", timm_kwargs={**SMALL, **kwargs})
    )
    encoder = build_image_encoder(config, quiet=True)
    with torch.no_grad():  # LayerScale starts at 1e-5 and bias tables at 0: give every parameter a say
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return encoder.eval()


def images(side: int = 32, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def chosen(tokens: Tensor, kept: Tensor, prefix: int) -> Tensor:
    """The prefix and the kept patches of each sample, one by one."""
    return torch.stack([
        torch.cat([row[:prefix], row[prefix:][numbers]]) for row, numbers in zip(tokens, kept, strict=True)
    ])  # fmt: skip


def twin(encoder: ImageEncoder, name: str, **kwargs: Any) -> nn.Module:
    """timm's own model with the encoder's weights."""
    model = timm.create_model(name, **{**SMALL, **WHOLE, **kwargs}).eval()
    model.norm = model.fc_norm = nn.Identity()
    model.load_state_dict(encoder.backbone.state_dict())
    for block in model.blocks if name == BEIT else ():
        block.attn.qkv_bias_separate = True
    return model


VITS: list[dict[str, Any]] = [
    {},
    {"reg_tokens": 3},
    {"pre_norm": True},
    {"no_embed_class": True, "reg_tokens": 2},
    {"class_token": False},
    {"pos_embed": "none"},
]


@pytest.mark.parametrize("kwargs", VITS)
def test_whole_images_take_timms_own_path_bit_for_bit(kwargs: dict[str, Any]) -> None:
    encoder = build(VIT, **kwargs)
    plain = twin(encoder, VIT, **kwargs)
    assert type(encoder.backbone) is not type(plain)
    assert torch.equal(encoder.backbone(images()), plain(images()))
    assert list(encoder.backbone.state_dict()) == list(plain.state_dict())


def test_whole_images_of_beit_take_timms_own_path_bit_for_bit() -> None:
    encoder = build(BEIT)
    plain = twin(encoder, BEIT)
    x, y = images().requires_grad_(), images().requires_grad_()
    ours, theirs = encoder.backbone(x), plain(y)
    assert torch.equal(ours, theirs)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for (name, a), b in zip(encoder.backbone.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    assert list(encoder.backbone.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("kwargs", VITS)
def test_a_vits_kept_patches_are_those_of_attention_masked_to_them(kwargs: dict[str, Any]) -> None:
    encoder = build(VIT, **kwargs).double()
    plain: Any = twin(encoder, VIT, **kwargs).double()
    x, prefix = images().double(), plain.num_prefix_tokens
    seen = torch.zeros(2, prefix + 16, dtype=torch.bool)
    seen[:, :prefix] = True
    for row, numbers in zip(seen, KEPT, strict=True):
        row[prefix + numbers] = True
    masked = plain.forward_features(x, attn_mask=seen[:, None, None, :])
    torch.testing.assert_close(encoder.backbone(x, KEPT), chosen(masked, KEPT, prefix))


def test_beits_kept_patches_are_those_of_attention_masked_to_them() -> None:
    encoder = build(BEIT).double()
    plain: Any = twin(encoder, BEIT).double()
    x = images().double()
    hidden = torch.full((2, 1, 1, 17), -math.inf, dtype=torch.float64)
    hidden[..., 0] = 0
    for row, numbers in zip(hidden[:, 0, 0], KEPT, strict=True):
        row[1 + numbers] = 0
    tokens = torch.cat([plain.cls_token.expand(2, -1, -1), plain.patch_embed(x)], dim=1)
    for block in plain.blocks:
        tokens = block(tokens, shared_rel_pos_bias=hidden)  # timm adds it to its own bias
    torch.testing.assert_close(encoder(x, KEPT), chosen(tokens, KEPT, 1))


def test_data2vec2s_kept_patches_are_those_of_attention_masked_to_them() -> None:
    encoder = build(D2V2).double()
    model: Any = encoder.backbone
    x = images().double()
    hidden = torch.full((2, 1, 1, 17), -math.inf, dtype=torch.float64)
    hidden[..., 0] = 0
    for row, numbers in zip(hidden[:, 0, 0], KEPT, strict=True):
        row[1 + numbers] = 0
    patches = model.patch_embed(x).flatten(2).transpose(1, 2) + model.positions
    tokens = model.norm(torch.cat([model.cls_token.expand(2, -1, -1), patches], dim=1))
    for block in model.blocks:
        q, k, v = block.attn.qkv(tokens).view(2, 17, 3, 4, 8).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-2, -1) / math.sqrt(8) + hidden).softmax(-1) @ v
        tokens = block.norm1(tokens + block.attn.proj(mixed.transpose(1, 2).reshape(2, 17, 32)))
        tokens = block.norm2(tokens + block.mlp(tokens))
    torch.testing.assert_close(encoder(x, KEPT), chosen(tokens, KEPT, 1))


@pytest.mark.parametrize("name", [VIT, BEIT, D2V2])
@pytest.mark.parametrize("side", [16, 32])
def test_all_patches_kept_in_any_order_are_the_whole_image(name: str, side: int) -> None:
    encoder = build(name)
    x, count = images(side), (side // 8) ** 2
    whole = encoder(x)
    torch.testing.assert_close(encoder(x, torch.arange(count).expand(2, -1)), whole)
    order = torch.stack([torch.randperm(count), torch.randperm(count)])
    torch.testing.assert_close(encoder(x, order), chosen(whole, order, 1))


@pytest.mark.parametrize("kwargs", VITS[:-1])
def test_a_vits_positions_at_a_smaller_size_are_timms(kwargs: dict[str, Any]) -> None:
    encoder = build(VIT, **kwargs)
    dynamic = twin(encoder, VIT, **kwargs, dynamic_img_size=True)
    for side in (16, 24):
        assert torch.equal(encoder.backbone(images(side)), dynamic(images(side)))


def test_data2vec2s_positions_at_a_smaller_size_are_those_of_a_smaller_model() -> None:
    encoder = build(D2V2)
    small = copy.deepcopy(encoder.backbone)
    assert isinstance(small, Data2Vec2Image)
    small.set_input_size(16)
    assert torch.equal(encoder(images(16)), small(images(16)))


def test_the_index_of_the_full_grid_is_timms() -> None:
    for grid in ((4, 4), (14, 14), (3, 5), (1, 1)):
        assert torch.equal(offset_index(grid, grid, "cpu"), gen_relative_position_index(grid))


@pytest.mark.parametrize(("full", "cells"), [(14, 7), (14, 10), (4, 3), (4, 2), (14, 1)])
def test_a_smaller_grid_reads_the_table_at_the_nearest_offset(full: int, cells: int) -> None:
    table = {}  # timm's row of every offset of the full grid
    own = gen_relative_position_index((full, full))
    for a in range(full * full):
        for b in range(full * full):
            offset = a // full - b // full, a % full - b % full
            table[offset] = int(own[1 + a, 1 + b])
    index = offset_index((full, full), (cells, cells), "cpu")

    def nearest(offset: int) -> int:
        exact = Fraction(abs(offset) * full, cells)
        whole = math.floor(exact + Fraction(1, 2))  # the halfway point goes outwards, on both sides of zero
        return whole if offset >= 0 else -whole

    for a in range(cells * cells):
        for b in range(cells * cells):
            offset = nearest(a // cells - b // cells), nearest(a % cells - b % cells)
            assert index[1 + a, 1 + b] == table[offset]
    assert index[0, 1] == own[0, 1]
    assert index[1, 0] == own[1, 0]
    assert index[0, 0] == own[0, 0]


def test_half_the_side_looks_like_every_second_patch() -> None:
    """A grid of half the side has the bias that every second row and column of the full grid have among them."""
    encoder = build(BEIT)
    every_second = torch.tensor([0, 2, 8, 10])
    for block in encoder.backbone.blocks:
        bias = block.attn._get_rel_pos_bias()[0]  # [H, 17, 17]
        kept = torch.cat([torch.tensor([0]), 1 + every_second])
        small = block.attn.relative_position_bias_table[offset_index((4, 4), (2, 2), "cpu")].permute(2, 0, 1)
        assert torch.equal(small, bias[:, kept][:, :, kept])


CASES = [(VIT, 16, None), (VIT, 32, KEPT), (BEIT, 16, None), (BEIT, 32, KEPT), (BEIT, 24, KEPT[:, :3] % 9)]
CASES += [(D2V2, 16, None), (D2V2, 32, KEPT), (VIT, 24, KEPT[:, :3] % 9), (CONV, 48, None)]


@pytest.mark.parametrize(("name", "side", "kept"), CASES)
class TestInsideATrainingLoop:
    """What training needs of every path."""

    def test_every_parameter_gets_a_gradient(self, name: str, side: int, kept: Tensor | None) -> None:
        encoder = build(name).train()
        (encoder(images(side), kept) * torch.randn(encoder.dim)).sum().backward()
        assert [key for key, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []

    def test_parameters_are_read_only_while_their_owner_runs(
        self, name: str, side: int, kept: Tensor | None
    ) -> None:
        """What ZeRO-3 demands, as for whole images."""
        encoder = build(name)
        x = images(side)
        expected = encoder(x, kept)
        release_outside_their_owner(encoder)
        with torch.no_grad():
            torch.testing.assert_close(encoder(x, kept), expected)

    def test_it_compiles_without_graph_breaks(self, name: str, side: int, kept: Tensor | None) -> None:
        encoder = build(name)
        compiled = torch.compile(encoder, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(images(side), kept), encoder(images(side), kept))
        torch._dynamo.reset()

    def test_it_computes_in_bf16(self, name: str, side: int, kept: Tensor | None) -> None:
        encoder = build(name)
        exact = encoder(images(side), kept)
        rounded = encoder.to(torch.bfloat16)(images(side), kept)
        assert rounded.dtype == torch.bfloat16
        assert (rounded.float() - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize(
    ("name", "side", "drop", "message"),
    [
        (CONV, 64, 0.5, r"--data\.curriculum\.patch-drop 0\.5: .* is not made of patches"),
        (VIT, 40, 0.0, r"--data\.curriculum\.image-size 40 is larger than the image encoder's 32"),
        (BEIT, 20, 0.0, r"--data\.curriculum\.image-size 20 is not a multiple of the patch size 8"),
        (
            "maxvit_pico_rw_256",
            200,
            0.0,
            r"--data\.curriculum\.image-size 200: MaxxVit takes 256 pixels only",
        ),
    ],
)
def test_views_that_an_encoder_cannot_take_are_refused(
    name: str, side: int, drop: float, message: str
) -> None:
    encoder = (
        build(name)
        if name in (VIT, BEIT, CONV)
        else build_image_encoder(ImageEncoderConfig(name, None, "none"), quiet=True)
    )
    with pytest.raises(ConfigError, match=message):
        encoder.check_views(side, drop)


@pytest.mark.parametrize(("name", "side"), [(VIT, 16), (BEIT, 24), (D2V2, 8), (CONV, 48), (CONV, 64)])
def test_views_that_an_encoder_can_take_are_taken(name: str, side: int) -> None:
    build(name).check_views(side, 0.0 if name == CONV else 0.75)
