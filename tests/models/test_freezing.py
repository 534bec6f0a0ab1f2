"""Frozen lower blocks: untrained, without backward pass, without optimiser state, and else the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssmke.errors import ConfigError
from ssmke.models.image_encoders import ImageEncoder, ImageEncoderConfig, build_image_encoder
from ssmke.models.shared import SharedConfig
from ssmke.models.student import SSMKE, StudentConfig
from ssmke.models.text_encoders import TextEncoder, TextEncoderConfig, build_text_encoder
from ssmke.training.optimizer import OptimConfig, parameter_groups

SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
VIT, BEIT, D2V2, CONV = "vit_tiny_patch16_224", "beitv2_base_patch16_224", "data2vec2_base", "mobilenetv2_050"
BERT = {
    "model_type": "bert",
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
}
DISTILBERT = {
    "model_type": "distilbert",
    "vocab_size": 50,
    "dim": 32,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 64,
    "max_position_embeddings": 32,
}
ALBERT = {
    "model_type": "albert",
    "vocab_size": 50,
    "embedding_size": 16,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def image_config(name: str, freeze: int, **settings: Any) -> ImageEncoderConfig:
    kwargs = {} if name == CONV else {**SMALL, **settings.pop("timm_kwargs", {})}
    size = 64 if name == CONV else None
    return ImageEncoderConfig(
        name, None, "none", freeze_blocks=freeze, timm_kwargs=kwargs, image_size=size, **settings
    )


def text_config(architecture: dict[str, Any], freeze: int) -> TextEncoderConfig:
    return TextEncoderConfig(
        "tiny", None, "none", max_tokens=16, architecture=dict(architecture), freeze_layers=freeze
    )


def image_encoder(name: str, freeze: int, **settings: Any) -> ImageEncoder:
    torch.manual_seed(0)
    return build_image_encoder(image_config(name, freeze, **settings), quiet=True)


def text_encoder(architecture: dict[str, Any], freeze: int) -> TextEncoder:
    torch.manual_seed(0)
    return build_text_encoder(text_config(architecture, freeze), quiet=True)


def frozen_names(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if not parameter.requires_grad}


def top(names: set[str], depth: int) -> set[str]:
    return {".".join(name.split(".")[:depth]) for name in names}


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        (VIT, {}, {"patch_embed", "cls_token", "pos_embed"}),
        (VIT, {"timm_kwargs": {"reg_tokens": 2, "pre_norm": True}}, {"patch_embed", "cls_token", "reg_token",
                                                                      "pos_embed", "norm_pre"}),
        (BEIT, {}, {"patch_embed", "cls_token"}),
        (D2V2, {}, {"patch_embed", "cls_token", "norm"}),
        (CONV, {}, {"conv_stem", "bn1"}),
    ],
)  # fmt: skip
def test_what_is_below_the_blocks_and_the_first_of_them_are_frozen(
    name: str, settings: dict[str, Any], expected: set[str]
) -> None:
    backbone = image_encoder(name, 2, **settings).backbone
    frozen = frozen_names(backbone)
    assert top(frozen, 1) == {*expected, "blocks"}
    assert top({n for n in frozen if n.startswith("blocks")}, 2) == {"blocks.0", "blocks.1"}
    assert not any(parameter.requires_grad for parameter in backbone.blocks[:2].parameters())
    assert all(parameter.requires_grad for parameter in backbone.blocks[2:].parameters())


@pytest.mark.parametrize("architecture", [BERT, DISTILBERT])
def test_embeddings_and_first_layers_are_frozen(architecture: dict[str, Any]) -> None:
    backbone = text_encoder(architecture, 2).backbone
    stack = "encoder" if architecture is BERT else "transformer"
    frozen = frozen_names(backbone)
    assert top(frozen, 3) - {f"{stack}.layer.0", f"{stack}.layer.1"} == top(
        {n for n, _ in backbone.named_parameters() if n.startswith("embeddings")}, 3
    )
    assert all(n in frozen for n, _ in backbone.named_parameters() if f"{stack}.layer.1." in n)
    assert not any(f"{stack}.layer.2." in n for n in frozen)


def test_nothing_is_frozen_by_default() -> None:
    for name in (VIT, BEIT, D2V2, CONV):
        assert not frozen_names(image_encoder(name, 0))
    assert not frozen_names(text_encoder(BERT, 0))


@pytest.mark.parametrize("name", [VIT, BEIT, D2V2, CONV])
def test_frozen_blocks_keep_nothing_for_a_backward_pass(name: str) -> None:
    encoder = image_encoder(name, 2).train()
    seen: list[bool] = []
    for number, block in enumerate(encoder.backbone.blocks):
        block.register_forward_hook(lambda _, __, out, n=number: seen.append(out.requires_grad))
    x = torch.randn(2, 3, encoder.image_size, encoder.image_size)
    tokens = encoder(x)
    assert seen[:3] == [False, False, True]
    tokens.square().sum().backward()
    assert {n for n, p in encoder.named_parameters() if p.grad is None} == frozen_names(encoder)
    assert torch.equal(tokens, image_encoder(name, 0).train()(x))  # the forward pass is the same


@pytest.mark.parametrize("architecture", [BERT, DISTILBERT])
def test_frozen_layers_keep_nothing_for_a_backward_pass(architecture: dict[str, Any]) -> None:
    encoder = text_encoder(architecture, 3)
    ids = torch.randint(1, 50, (2, 7))
    mask = torch.ones_like(ids, dtype=torch.bool)
    assert not encoder(ids, mask).requires_grad
    encoder = text_encoder(architecture, 1)
    tokens = encoder(ids, mask)
    tokens.square().sum().backward()
    assert {n for n, p in encoder.named_parameters() if p.grad is None} == frozen_names(encoder)
    assert torch.equal(tokens, text_encoder(architecture, 0)(ids, mask))


def student(freeze_blocks: int, freeze_layers: int, tokenizer: str) -> SSMKE:
    torch.manual_seed(0)
    text = text_config(BERT, freeze_layers)
    text.tokenizer = tokenizer
    return SSMKE(
        StudentConfig(
            image=image_config(VIT, freeze_blocks),
            text=text,
            shared=SharedConfig(dim=32, heads=4),
            prediction_dim=8,
        ),
        quiet=True,
    )


def test_a_saved_student_keeps_what_is_frozen(model_dir: Path, tmp_path: Path) -> None:
    made = student(2, 1, str(model_dir.parent / "tokenizer"))
    made.save_pretrained(tmp_path / "model")
    loaded = SSMKE.from_pretrained(tmp_path / "model")
    assert (loaded.config.image.freeze_blocks, loaded.config.text.freeze_layers) == (2, 1)
    assert frozen_names(loaded) == frozen_names(made) != set()
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_a_student_saved_before_there_was_freezing_is_all_trained(model_dir: Path) -> None:
    assert '"freeze_blocks"' not in (model_dir / "config.json").read_text() or not frozen_names(
        SSMKE.from_pretrained(model_dir)
    )


def test_a_step_leaves_frozen_parameters_without_state_and_as_they_were(model_dir: Path) -> None:
    made = student(1, 2, str(model_dir.parent / "tokenizer"))
    groups = parameter_groups(made, OptimConfig(lr=0.1))
    held = {id(p) for group in groups for p in group["params"]}
    assert held == {id(p) for p in made.parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    before = {name: p.detach().clone() for name, p in made.named_parameters()}
    outputs: dict[str, Tensor] = made(
        torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8),
        torch.randint(1, 50, (2, 5)),
        torch.ones(2, 5, dtype=torch.bool),
    )
    sum(value.square().sum() for value in outputs.values()).backward()  # type: ignore[union-attr]
    optimizer.step()
    assert set(map(id, optimizer.state)) == held
    changed = {name for name, p in made.named_parameters() if not torch.equal(p, before[name])}
    assert not changed & frozen_names(made)
    assert {n for n, _ in made.named_parameters() if "blocks.1.mlp" in n} <= changed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": VIT, "freeze": 4}, r"--model\.image\.freeze-blocks 4: .* has only 3 blocks here"),
        ({"name": VIT, "freeze": -1}, r"--model\.image\.freeze-blocks must be 0 or more"),
        ({"name": CONV, "freeze": 8}, r"--model\.image\.freeze-blocks 8: .* has only 7 blocks here"),
    ],
)
def test_impossible_numbers_of_blocks_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        image_encoder(**settings)


def test_a_network_without_a_sequence_of_blocks_is_refused() -> None:
    config = ImageEncoderConfig("resnet18", None, "none", freeze_blocks=1, image_size=64)
    with pytest.raises(ConfigError, match=r"freeze-blocks 1: resnet18 .*--model\.image\.frozen"):
        build_image_encoder(config, quiet=True)


@pytest.mark.parametrize(
    ("architecture", "freeze", "message"),
    [
        (BERT, 4, r"--model\.text\.freeze-layers 4: tiny has only 3 layers here"),
        (BERT, -1, r"--model\.text\.freeze-layers must be 0 or more"),
        (ALBERT, 1, r"--model\.text\.freeze-layers 1: tiny is no sequence of layers"),
    ],
)
def test_impossible_numbers_of_layers_are_refused(
    architecture: dict[str, Any], freeze: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        text_encoder(architecture, freeze)
