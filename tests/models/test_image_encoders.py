"""Image encoders: what is cut, what is kept, and how they behave inside a training loop."""

from __future__ import annotations

import dataclasses
import json
import warnings
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from ssmke.errors import ConfigError, WeightsError
from ssmke.models.image_encoders import ImageEncoder, ImageEncoderConfig, build_image_encoder
from ssmke.models.weights import UntrainedWeightsWarning
from tests.models.partitioned import release_outside_their_owner

SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
VIT, BEIT, D2V2, CONV = "vit_tiny_patch16_224", "beitv2_base_patch16_224", "data2vec2_base", "mobilenetv2_050"


def build(name: str, depth: int | None = 2, **settings: Any) -> ImageEncoder:
    torch.manual_seed(0)
    if name == CONV:
        depth = None
        settings.setdefault("image_size", 64)
    else:
        settings["timm_kwargs"] = {**SMALL, **settings.get("timm_kwargs", {})}
    encoder = build_image_encoder(ImageEncoderConfig(name, depth, "none", **settings), quiet=True)
    with torch.no_grad():  # LayerScale starts at 1e-5 and biases at 0: give every parameter a say
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return encoder


def images(encoder: ImageEncoder, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, encoder.image_size, encoder.image_size)


@pytest.mark.parametrize("kwargs", [{}, {"pre_norm": True}, {"reg_tokens": 3}, {"no_embed_class": True}])
def test_vit_tokens_are_the_residual_stream_after_the_last_kept_block(kwargs: dict[str, Any]) -> None:
    encoder = build(VIT, 2, timm_kwargs=kwargs)
    whole = timm.create_model(VIT, **SMALL, **kwargs).eval()
    missing = whole.load_state_dict(encoder.backbone.state_dict(), strict=False).missing_keys
    assert all(key.startswith(("blocks.2.", "norm.", "head.")) for key in missing)
    x = images(encoder)
    patches, prefix = whole.forward_intermediates(
        x, indices=[1], return_prefix_tokens=True, norm=False, output_fmt="NLC", intermediates_only=True
    )[0]
    torch.testing.assert_close(encoder(x), torch.cat([prefix, patches], dim=1))
    assert prefix.shape[1] == 1 + kwargs.get("reg_tokens", 0)  # registers stay behind [CLS]


def test_a_vit_without_cls_gets_the_mean_token() -> None:
    encoder = build(VIT, timm_kwargs={"class_token": False, "global_pool": ""})
    tokens = encoder(images(encoder))
    assert tokens.shape == (2, 1 + 16, 32)
    torch.testing.assert_close(tokens[:, 0], tokens[:, 1:].mean(dim=1))


def test_a_conv_net_gives_its_map_with_the_mean_in_front() -> None:
    encoder = build(CONV)
    x = images(encoder)
    tokens, features = encoder(x), encoder.backbone(x.contiguous(memory_format=torch.channels_last))
    assert (encoder.dim, encoder.grid) == (features.shape[1], tuple(features.shape[2:])) == (1280, (2, 2))
    torch.testing.assert_close(tokens[:, 1 + 2], features[:, :, 1, 0])  # row by row
    torch.testing.assert_close(tokens[:, 0], features.mean(dim=(2, 3)))


@pytest.mark.parametrize("name", [VIT, BEIT, D2V2, CONV])
class TestInsideATrainingLoop:
    """Properties that every kind of encoder has to have."""

    def test_shape_and_determinism_in_training_mode(self, name: str) -> None:
        encoder = build(name)
        x = images(encoder)
        rows, columns = encoder.grid
        evaluated = encoder.eval()(x)
        assert evaluated.shape == (2, 1 + rows * columns, encoder.dim)
        torch.testing.assert_close(encoder.train()(x), evaluated)
        torch.testing.assert_close(encoder(x[1:]), evaluated[1:], atol=1e-3, rtol=1e-3)  # no batch statistics

    def test_every_parameter_gets_a_gradient(self, name: str) -> None:
        encoder = build(name)
        (encoder(images(encoder)) * torch.randn(encoder.dim)).sum().backward()
        assert [key for key, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []

    def test_frozen_means_no_gradient_and_no_training_mode(self, name: str) -> None:
        encoder = build(name, frozen=True)
        student = nn.Sequential(encoder).train()
        assert not any(module.training for module in encoder.modules())
        assert not any(p.requires_grad for p in encoder.parameters())
        assert not student(images(encoder).requires_grad_()).requires_grad

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_it_computes_in_the_dtype_of_its_parameters(self, name: str, dtype: torch.dtype) -> None:
        encoder = build(name).eval()
        x = images(encoder)
        exact = encoder(x).double()
        tokens = encoder.to(dtype)(x)
        assert tokens.dtype == dtype
        assert (tokens.double() - exact).norm() < (0.1 if dtype == torch.bfloat16 else 1e-4) * exact.norm()

    def test_parameters_are_read_only_while_their_owner_runs(self, name: str) -> None:
        """What ZeRO-3 demands: it gathers a module's own parameters for the time of that module's forward."""
        encoder = build(name).eval()
        x = images(encoder)
        expected = encoder(x)
        release_outside_their_owner(encoder)
        with torch.no_grad():
            torch.testing.assert_close(encoder(x), expected)

    def test_it_compiles_without_graph_breaks(self, name: str) -> None:
        encoder = build(name).eval()
        x = images(encoder)
        compiled = torch.compile(encoder, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), encoder(x))
        torch._dynamo.reset()

    def test_it_is_rebuilt_from_its_saved_config(self, name: str) -> None:
        encoder = build(name, mean=(0.1, 0.2, 0.3), std=(1, 2, 3))
        kwargs = {} if name == CONV else SMALL
        config = ImageEncoderConfig(
            name, None if name == CONV else 2, "none", image_size=64, timm_kwargs=kwargs, mean=(0.1, 0.2, 0.3)
        )
        config = ImageEncoderConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
        with warnings.catch_warnings():
            warnings.simplefilter("error", UntrainedWeightsWarning)
            rebuilt = build_image_encoder(config, quiet=True)
        resized = encoder if name == CONV else build(name, image_size=64)
        rebuilt.load_state_dict(resized.state_dict(), strict=True)
        x = images(rebuilt)
        torch.testing.assert_close(rebuilt.eval()(x), resized.eval()(x))
        assert rebuilt.mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("name", [VIT, BEIT, D2V2])
def test_another_image_size_keeps_what_does_not_depend_on_it(name: str) -> None:
    small, large = build(name), build(name, image_size=64)
    assert (large.image_size, large.grid) == (64, (8, 8))
    assert large(images(large)).shape == (2, 65, 32)
    changed = {k for k, v in small.state_dict().items() if v.shape != large.state_dict()[k].shape}
    assert changed
    assert all("position" in key or "pos_embed" in key for key in changed)


def test_weights_of_the_hub_are_cut_and_accounted_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained = timm.create_model(VIT, **SMALL)
    real = timm.create_model

    def create(name: str, pretrained_: nn.Module = pretrained, **kwargs: Any) -> nn.Module:
        return pretrained_ if kwargs.get("pretrained") else real(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", create)
    encoder = build_image_encoder(ImageEncoderConfig(VIT, 2, "hub", timm_kwargs=SMALL))
    for key, tensor in encoder.backbone.state_dict().items():
        torch.testing.assert_close(tensor, pretrained.state_dict()[key])
    assert len(encoder.load_report.dropped) == 12 + 2 + 2  # a block, the norm, the head
    assert str(encoder.load_report).startswith(f"{VIT} from the hub: 28 tensors loaded, 16 dropped")


def test_a_hub_that_does_not_answer_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    real = timm.create_model

    def create(name: str, **kwargs: Any) -> nn.Module:
        if kwargs.get("pretrained"):
            raise ConnectionError("no route to host")
        return real(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(WeightsError, match=r"no route to host.*give the path .*--model\.image\.weights"):
        build_image_encoder(ImageEncoderConfig(VIT, 2, "hub", timm_kwargs=SMALL))


def test_pixels_that_nobody_normalised_are_refused() -> None:
    with pytest.raises(TypeError, match="normalised"):
        build(VIT)(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_random_weights_are_said_loudly_unless_asked_not_to() -> None:
    config = ImageEncoderConfig(VIT, 1, "none", timm_kwargs=SMALL)
    with pytest.warns(UntrainedWeightsWarning, match=r"RANDOM weights \(--model\.image\.weights none\)"):
        encoder = build_image_encoder(config)
    assert "every parameter is random" in str(encoder.load_report)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "vit_nothing"}, "neither timm nor ssmke has a model 'vit_nothing'"),
        ({"name": VIT, "depth": 4, "timm_kwargs": SMALL}, r"--model\.image\.depth 4: .* has only 3 blocks"),
        ({"name": VIT, "depth": 0}, r"--model\.image\.depth must be at least 1"),
        ({"name": CONV}, r"used whole: --model\.image\.depth None"),
        (
            {"name": VIT, "image_size": 60, "timm_kwargs": SMALL},
            r"image-size 60 is not a multiple of the patch size 8",
        ),
        ({"name": VIT, "timm_kwargs": {"no_such": 1}}, r"timm-kwargs \{'no_such': 1\}"),
        ({"name": D2V2, "timm_kwargs": {"no_such": 1}}, "timm-kwargs do not fit"),
        ({"name": "deit_tiny_distilled_patch16_224"}, "cannot be built.*distill"),
        ({"name": VIT, "mean": (0.5, 0.5)}, r"--model\.image\.mean takes three numbers"),
        ({"name": VIT, "std": (0.5, 0.5, 0.0)}, r"--model\.image\.std must be positive"),
        ({"name": "eva02_tiny_patch14_224", "depth": None}, "instead of a spatial map"),
    ],
)
def test_mistakes_are_named_with_their_flag(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_image_encoder(ImageEncoderConfig(**{"depth": 2, "weights": "none", **settings}), quiet=True)


def test_the_base_half_has_the_published_size() -> None:
    encoder = build_image_encoder(ImageEncoderConfig(weights="none"), quiet=True)
    assert sum(p.numel() for p in encoder.parameters()) == 43_175_904
