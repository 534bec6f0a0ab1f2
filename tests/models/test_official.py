"""Published layouts, written key by key by the fixtures, reach the encoders whole and compute what they should."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssmke.errors import WeightsError
from ssmke.models import official
from ssmke.models.image_encoders import ImageEncoderConfig, build_image_encoder
from ssmke.models.teachers import TeacherConfig, build_teacher

if TYPE_CHECKING:
    from conftest import Layouts, Size

Save = Callable[[object], str]
BEIT = "beitv2_base_patch16_224"


def reference_beit(state: dict[str, Tensor], s: Size, images: Tensor, depth: int) -> Tensor:
    """BEiT v2 with its one shared position table, from the definition, on the names of the official file."""

    def offset_row(query: int, key: int) -> int:
        # Rows of the table: every (row, column) offset, then [CLS] to patch, patch to [CLS], [CLS] to itself.
        patches = (2 * s.grid - 1) ** 2
        if query == 0 or key == 0:
            return patches + (2 if query == key else 0 if query == 0 else 1)
        (qr, qc), (kr, kc) = divmod(query - 1, s.grid), divmod(key - 1, s.grid)
        return (qr - kr + s.grid - 1) * (2 * s.grid - 1) + (qc - kc + s.grid - 1)

    n = s.grid**2 + 1
    rows = torch.tensor([[offset_row(q, k) for k in range(n)] for q in range(n)])
    bias = state["rel_pos_bias.relative_position_bias_table"][rows].permute(2, 0, 1)  # [H, N, N]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (s.dim,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    x = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=s.patch)
    x = torch.cat([state["cls_token"].expand(len(images), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    for i in range(depth):
        block = {k.removeprefix(f"blocks.{i}."): v for k, v in state.items() if k.startswith(f"blocks.{i}.")}
        qkv_bias = torch.cat([block["attn.q_bias"], torch.zeros(s.dim), block["attn.v_bias"]])
        y = F.linear(norm(x, f"blocks.{i}.norm1"), block["attn.qkv.weight"], qkv_bias)
        q, k, v = (part.unflatten(-1, (s.heads, -1)).transpose(1, 2) for part in y.chunk(3, dim=-1))
        weights = (q @ k.transpose(-1, -2) / (s.dim // s.heads) ** 0.5 + bias).softmax(dim=-1)
        y = (weights @ v).transpose(1, 2).flatten(2)
        x = x + block["gamma_1"] * F.linear(y, block["attn.proj.weight"], block["attn.proj.bias"])
        y = F.gelu(F.linear(norm(x, f"blocks.{i}.norm2"), block["mlp.fc1.weight"], block["mlp.fc1.bias"]))
        x = x + block["gamma_2"] * F.linear(y, block["mlp.fc2.weight"], block["mlp.fc2.bias"])
    return x


@pytest.mark.parametrize("depth", [2, None])
def test_beitv2_with_its_shared_table_expanded_computes_the_same(
    layouts: Layouts, tiny: Size, save: Save, depth: int | None
) -> None:
    state = layouts.beitv2_pretrained(tiny)
    encoder = build_image_encoder(
        ImageEncoderConfig(BEIT, depth=depth, weights=save({"model": state}), timm_kwargs=tiny.timm_kwargs)
    )
    images = torch.randn(3, 3, tiny.image, tiny.image)
    expected = reference_beit(state, tiny, images, depth or tiny.depth)
    torch.testing.assert_close(encoder(images), expected, atol=2e-5, rtol=1e-4)


def test_beitv2_teacher_target_is_the_cls_of_the_last_block_without_the_norm(
    layouts: Layouts, tiny: Size, save: Save
) -> None:
    state = layouts.beitv2_pretrained(tiny)
    teacher = build_teacher(TeacherConfig(BEIT, weights=save({"model": state}), timm_kwargs=tiny.timm_kwargs))
    images = torch.randint(0, 256, (2, 3, tiny.image, tiny.image), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (images / 255 - mean[:, None, None]) / std[:, None, None]
    expected = reference_beit(state, tiny, pixels, tiny.depth)[:, 0]
    torch.testing.assert_close(teacher(images), expected, atol=5e-5, rtol=1e-4)


def test_full_size_beitv2_is_accounted_for_to_the_last_key(layouts: Layouts, base: Size, save: Save) -> None:
    state = layouts.beitv2_pretrained(base)
    path = save({"model": state})
    encoder = build_image_encoder(ImageEncoderConfig(BEIT, depth=6, weights=path))
    report = encoder.load_report
    assert sum(p.numel() for p in encoder.parameters()) == 43_175_904
    assert report.loaded == 3 + 6 * (15 + 1)  # the table, once in the file, fills one per block
    assert report.loaded - 6 + 1 + len(report.dropped) == len(state)
    assert Counter(report.dropped.values()) == {
        "of blocks beyond the first 6": 6 * 15,
        "extra layers of [CLS] pretraining": 2 * 15,
        "prediction head of masked image modelling": 2,
        "final norm, tokens are taken before it": 2,
        "mask token, no patch is masked here": 1,
        "index recomputed from the grid": 1,
    }
    teacher = build_teacher(TeacherConfig(BEIT, weights=path))
    assert sum(p.numel() for p in teacher.parameters()) == 85_760_448
    assert (teacher.dim, teacher.image_size, teacher.mean) == (768, 224, (0.485, 0.456, 0.406))


def test_position_tables_of_a_larger_image_keep_the_bias_of_the_same_place(
    layouts: Layouts, tiny: Size, save: Save
) -> None:
    state = layouts.beitv2_pretrained(tiny)
    path = save({"model": state})
    encoder = build_image_encoder(
        ImageEncoderConfig(BEIT, 1, path, image_size=2 * tiny.image, timm_kwargs=tiny.timm_kwargs)
    )
    before = state["rel_pos_bias.relative_position_bias_table"]
    after = encoder.backbone.state_dict()["blocks.0.attn.relative_position_bias_table"]
    assert after.shape == ((4 * tiny.grid - 1) ** 2 + 3, tiny.heads)
    torch.testing.assert_close(after[-3:], before[-3:])  # to, from and at [CLS]
    centre = [(len(table) - 3) // 2 for table in (before, after)]  # a patch to itself
    torch.testing.assert_close(after[centre[1]], before[centre[0]], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("container", ["model", "module"])
def test_finetuned_beitv2_gives_features_and_logits(
    layouts: Layouts, tiny: Size, save: Save, container: str
) -> None:
    state = layouts.beitv2_finetuned(tiny, 7)
    path = save({container: state})
    name = f"{BEIT}.in1k_ft_in1k"
    kwargs = tiny.timm_kwargs
    images = torch.randint(0, 256, (2, 3, tiny.image, tiny.image), dtype=torch.uint8)
    features = build_teacher(TeacherConfig(name, weights=path, timm_kwargs=kwargs))
    scores = build_teacher(TeacherConfig(name, path, "logits", timm_kwargs={**kwargs, "num_classes": 7}))
    assert (features.dim, scores.dim) == (tiny.dim, 7)
    patches = features.network(_normalised(images))[:, 1:]
    pooled = F.layer_norm(patches.mean(1), (tiny.dim,), state["fc_norm.weight"], state["fc_norm.bias"], 1e-6)
    expected = F.linear(pooled, state["head.weight"], state["head.bias"])
    torch.testing.assert_close(scores(images), expected, atol=1e-4, rtol=1e-4)


def _normalised(images: Tensor) -> Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images / 255 - mean[:, None, None]) / std[:, None, None]


def test_tables_of_blocks_and_the_shared_table_add_up_when_a_file_has_both() -> None:
    table = torch.ones(12, 2)
    converted = official.image_weights(
        {
            "rel_pos_bias.relative_position_bias_table": table,
            "blocks.0.attn.q_bias": torch.ones(2),
            "blocks.0.attn.relative_position_bias_table": 2 * table,
            "blocks.1.attn.q_bias": torch.ones(2),
        }
    )
    assert converted.layout == "beit"
    tables = [converted.state[f"blocks.{i}.attn.relative_position_bias_table"][0, 0].item() for i in range(2)]
    assert tables == [3, 1]
    assert "rel_pos_bias.relative_position_bias_table" not in converted.state


@pytest.mark.parametrize("full", [True, False])
def test_dino_backbone_and_full_checkpoint(layouts: Layouts, tiny: Size, save: Save, full: bool) -> None:
    checkpoint = layouts.dino_checkpoint(tiny)
    teacher = checkpoint["teacher"]
    assert isinstance(teacher, dict)
    backbone = {k.removeprefix("backbone."): v for k, v in teacher.items() if k.startswith("backbone.")}
    config = ImageEncoderConfig(
        "vit_base_patch16_224.dino", 2, save(checkpoint if full else backbone), timm_kwargs=tiny.timm_kwargs
    )
    encoder = build_image_encoder(config)
    assert encoder.mean == (0.485, 0.456, 0.406)  # of the tag; the untagged name has 0.5
    loaded = encoder.backbone.state_dict()
    assert loaded
    for key, tensor in loaded.items():
        torch.testing.assert_close(tensor, backbone[key])
    reasons = Counter(encoder.load_report.dropped.values())
    assert reasons["of blocks beyond the first 2"] == 2 * 12
    assert reasons["final norm, tokens are taken before it"] == 2
    if full:
        assert reasons["projection head of DINO's pretraining"] == 6
        assert reasons["optimiser or loss state"] == 2


def test_full_size_dino_matches_timm(layouts: Layouts, base: Size, save: Save) -> None:
    encoder = build_image_encoder(
        ImageEncoderConfig("vit_base_patch16_224.dino", None, save(layouts.dino_backbone(base)))
    )
    assert sum(p.numel() for p in encoder.parameters()) == 85_798_656 - 2 * 768  # published, less its norm


def test_a_file_of_another_model_is_named_as_such(layouts: Layouts, tiny: Size, save: Save) -> None:
    path = save({"model": layouts.data2vec2_model(tiny)})
    with pytest.raises(WeightsError, match="data2vec2 layout"):
        build_image_encoder(ImageEncoderConfig(BEIT, 2, path, timm_kwargs=tiny.timm_kwargs))
    path = save({"model": layouts.beitv2_pretrained(tiny)})
    with pytest.raises(WeightsError, match="beit layout"):
        build_image_encoder(ImageEncoderConfig("data2vec2_base", 2, path, timm_kwargs=tiny.timm_kwargs))
    with pytest.raises(WeightsError, match="does not fit VisionTransformer: the file lacks pos_embed"):
        build_image_encoder(ImageEncoderConfig("vit_base_patch16_224", 2, path, timm_kwargs=tiny.timm_kwargs))


def test_a_tensor_that_nobody_expects_is_not_dropped_silently(
    layouts: Layouts, tiny: Size, save: Save
) -> None:
    state = layouts.beitv2_pretrained(tiny) | {"blocks.0.adapter.weight": torch.ones(3)}
    with pytest.raises(WeightsError, match=r"no place for blocks\.0\.adapter\.weight"):
        build_image_encoder(ImageEncoderConfig(BEIT, 2, save({"model": state}), timm_kwargs=tiny.timm_kwargs))
    del state["blocks.0.adapter.weight"], state["blocks.1.gamma_2"]
    with pytest.raises(WeightsError, match=r"lacks blocks\.1\.gamma_2"):
        build_image_encoder(ImageEncoderConfig(BEIT, 2, save({"model": state}), timm_kwargs=tiny.timm_kwargs))


def test_blocks_are_compared_as_numbers() -> None:
    state = {f"blocks.{i}.w": torch.ones(1) for i in range(12)}
    converted = official.image_weights(state, depth=2)
    assert sorted(converted.state) == ["blocks.0.w", "blocks.1.w"]
    assert len(converted.dropped) == 10


def test_the_official_file_is_taken_from_the_cache(
    layouts: Layouts, tiny: Size, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(hub))
    (hub / "checkpoints").mkdir()
    state = layouts.beitv2_pretrained(tiny)
    torch.save({"model": state}, hub / "checkpoints" / "beitv2_base_patch16_224_pt1k.pth")
    encoder = build_image_encoder(ImageEncoderConfig(BEIT, 1, "hub", timm_kwargs=tiny.timm_kwargs))
    torch.testing.assert_close(encoder.backbone.state_dict()["cls_token"], state["cls_token"])


def test_a_failed_download_says_what_to_do(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(url: str, target: str, progress: bool) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path_factory.mktemp("hub")))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(WeightsError, match=r"(?s)cannot download https://\S+pt1k\.pth.*give its path"):
        official.download(BEIT)
