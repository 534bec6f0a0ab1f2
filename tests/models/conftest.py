"""Files in the layouts in which pretrained models were published, written key by key.

Names and shapes follow the authors' code: microsoft/unilm (beit2/modeling_pretrain.py, modeling_finetune.py),
facebookresearch/fairseq (examples/data2vec/models/data2vec2.py and modalities/), facebookresearch/dino
(vision_transformer.py, main_dino.py), transformers (BertForPreTraining before 2019, DistilBertForMaskedLM). With
``tiny`` sizes every value is random, so that wrong loading changes outputs; with ``base`` sizes every tensor is one
number expanded to its full shape, so that a 400 MB layout is a file of a few kB.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class Size:
    """Sizes of a ViT, and whether its tensors hold real random numbers."""

    image: int
    patch: int
    dim: int
    depth: int
    heads: int
    vocabulary: int
    real: bool

    @property
    def grid(self) -> int:
        return self.image // self.patch

    @property
    def timm_kwargs(self) -> dict[str, int | float | bool | str]:
        if not self.real:
            return {}
        return {
            "img_size": self.image,
            "patch_size": self.patch,
            "embed_dim": self.dim,
            "depth": self.depth,
            "num_heads": self.heads,
        }

    def tensor(self, *shape: int) -> Tensor:
        if self.real:
            return 0.3 * torch.randn(shape)
        return torch.full((), 0.01).expand(shape)


TINY = Size(image=32, patch=8, dim=32, depth=4, heads=4, vocabulary=11, real=True)
BASE = Size(image=224, patch=16, dim=768, depth=12, heads=12, vocabulary=8192, real=False)


@pytest.fixture
def tiny() -> Size:
    torch.manual_seed(0)
    return TINY


@pytest.fixture
def base() -> Size:
    return BASE


def linear(s: Size, name: str, inputs: int, outputs: int, bias: bool = True) -> dict[str, Tensor]:
    layer = {f"{name}.weight": s.tensor(outputs, inputs)}
    return layer | {f"{name}.bias": s.tensor(outputs)} if bias else layer


def norm(s: Size, name: str) -> dict[str, Tensor]:
    return {f"{name}.weight": 1 + s.tensor(s.dim), f"{name}.bias": s.tensor(s.dim)}


def patch_embedding(s: Size, name: str) -> dict[str, Tensor]:
    return {f"{name}.weight": s.tensor(s.dim, 3, s.patch, s.patch), f"{name}.bias": s.tensor(s.dim)}


def mlp(s: Size, name: str) -> dict[str, Tensor]:
    return linear(s, f"{name}.fc1", s.dim, 4 * s.dim) | linear(s, f"{name}.fc2", 4 * s.dim, s.dim)


def vit_block(s: Size, name: str) -> dict[str, Tensor]:
    return (
        norm(s, f"{name}.norm1")
        | linear(s, f"{name}.attn.qkv", s.dim, 3 * s.dim)
        | linear(s, f"{name}.attn.proj", s.dim, s.dim)
        | norm(s, f"{name}.norm2")
        | mlp(s, f"{name}.mlp")
    )


def beit_block(s: Size, name: str) -> dict[str, Tensor]:
    return {
        f"{name}.gamma_1": s.tensor(s.dim),
        f"{name}.gamma_2": s.tensor(s.dim),
        **norm(s, f"{name}.norm1"),
        f"{name}.attn.q_bias": s.tensor(s.dim),
        f"{name}.attn.v_bias": s.tensor(s.dim),
        **linear(s, f"{name}.attn.qkv", s.dim, 3 * s.dim, bias=False),
        **linear(s, f"{name}.attn.proj", s.dim, s.dim),
        **norm(s, f"{name}.norm2"),
        **mlp(s, f"{name}.mlp"),
    }


def relative_table(s: Size) -> Tensor:
    return s.tensor((2 * s.grid - 1) ** 2 + 3, s.heads)


def relative_index(s: Size) -> Tensor:
    return torch.zeros(s.grid**2 + 1, s.grid**2 + 1, dtype=torch.int64)


def beitv2_pretrained(s: Size) -> dict[str, Tensor]:
    """The "model" of beitv2_base_patch16_224_pt1k.pth: one shared position table, [CLS] pretraining layers."""
    return {
        "cls_token": s.tensor(1, 1, s.dim),
        "mask_token": s.tensor(1, 1, s.dim),
        **patch_embedding(s, "patch_embed.proj"),
        "rel_pos_bias.relative_position_bias_table": relative_table(s),
        "rel_pos_bias.relative_position_index": relative_index(s),
        **{k: v for i in range(s.depth) for k, v in beit_block(s, f"blocks.{i}").items()},
        **norm(s, "norm"),
        **linear(s, "lm_head", s.dim, s.vocabulary),
        **{k: v for i in range(2) for k, v in beit_block(s, f"cls_pt_layers.{i}").items()},
    }


def beitv2_finetuned(s: Size, classes: int) -> dict[str, Tensor]:
    """A finetuned BEiT v2: a table per block, fc_norm and head."""
    state = {
        "cls_token": s.tensor(1, 1, s.dim),
        **patch_embedding(s, "patch_embed.proj"),
        **{k: v for i in range(s.depth) for k, v in beit_block(s, f"blocks.{i}").items()},
        **norm(s, "fc_norm"),
        **linear(s, "head", s.dim, classes),
    }
    for i in range(s.depth):
        state[f"blocks.{i}.attn.relative_position_bias_table"] = relative_table(s)
        state[f"blocks.{i}.attn.relative_position_index"] = relative_index(s)
    return state


def data2vec2_model(s: Size, prenet: int = 0) -> dict[str, object]:
    """The "model" of fairseq's base_imagenet.pt; ``prenet`` blocks lie in the context encoder."""
    image = "modality_encoders.IMAGE"
    online: dict[str, Tensor] = {
        f"{image}.extra_tokens": s.tensor(1, 1, s.dim),
        **patch_embedding(s, f"{image}.local_encoder.proj"),
        f"{image}.fixed_positional_encoder.positions": s.tensor(1, s.grid**2, s.dim),
        **norm(s, f"{image}.context_encoder.norm"),
        **{
            k: v
            for i in range(prenet)
            for k, v in vit_block(s, f"{image}.context_encoder.blocks.{i}").items()
        },
        **{k: v for i in range(s.depth - prenet) for k, v in vit_block(s, f"blocks.{i}").items()},
    }
    average = {key: tensor + 1 for key, tensor in online.items()}
    decoder: dict[str, Tensor] = linear(s, f"{image}.decoder.proj", s.dim, s.dim)
    for i in range(6):
        decoder[f"{image}.decoder.blocks.{i}.0.weight"] = s.tensor(s.dim, s.dim // 16, 3, 3)
        decoder[f"{image}.decoder.blocks.{i}.0.bias"] = s.tensor(s.dim)
    return {**online, **decoder, "_ema": average}


def dino_backbone(s: Size) -> dict[str, Tensor]:
    """dino_vitbase16_pretrain.pth."""
    return {
        "cls_token": s.tensor(1, 1, s.dim),
        "pos_embed": s.tensor(1, s.grid**2 + 1, s.dim),
        **patch_embedding(s, "patch_embed.proj"),
        **{k: v for i in range(s.depth) for k, v in vit_block(s, f"blocks.{i}").items()},
        **norm(s, "norm"),
    }


def dino_checkpoint(s: Size) -> dict[str, object]:
    """dino_vitbase16_pretrain_full_checkpoint.pth."""
    head = linear(s, "head.mlp.0", s.dim, 64) | linear(s, "head.mlp.2", 64, 8)
    head |= {"head.last_layer.weight_g": s.tensor(16, 1), "head.last_layer.weight_v": s.tensor(16, 8)}
    teacher = {f"backbone.{k}": v for k, v in dino_backbone(s).items()} | head
    student = {f"module.{k}": v + 1 for k, v in teacher.items()}
    return {
        "student": student,
        "teacher": teacher,
        "optimizer": {"state": {0: {"exp_avg": s.tensor(3)}}, "param_groups": [{"lr": 0.1}]},
        "epoch": 400,
        "args": argparse.Namespace(arch="vit_base", patch_size=s.patch),
        "dino_loss": {"center": s.tensor(1, 16)},
    }


def bert_pretraining(s: Size, words: int, positions: int, legacy: bool) -> dict[str, Tensor]:
    """bert-base-uncased: BertForPreTraining, with gamma and beta where ``legacy``."""
    weight, bias = ("gamma", "beta") if legacy else ("weight", "bias")

    def layer_norm(name: str) -> dict[str, Tensor]:
        return {f"{name}.{weight}": 1 + s.tensor(s.dim), f"{name}.{bias}": s.tensor(s.dim)}

    state = {
        "bert.embeddings.word_embeddings.weight": s.tensor(words, s.dim),
        "bert.embeddings.position_embeddings.weight": s.tensor(positions, s.dim),
        "bert.embeddings.token_type_embeddings.weight": s.tensor(2, s.dim),
        **layer_norm("bert.embeddings.LayerNorm"),
    }
    for i in range(s.depth):
        layer = f"bert.encoder.layer.{i}"
        state |= linear(s, f"{layer}.attention.self.query", s.dim, s.dim)
        state |= linear(s, f"{layer}.attention.self.key", s.dim, s.dim)
        state |= linear(s, f"{layer}.attention.self.value", s.dim, s.dim)
        state |= linear(s, f"{layer}.attention.output.dense", s.dim, s.dim)
        state |= layer_norm(f"{layer}.attention.output.LayerNorm")
        state |= linear(s, f"{layer}.intermediate.dense", s.dim, 4 * s.dim)
        state |= linear(s, f"{layer}.output.dense", 4 * s.dim, s.dim)
        state |= layer_norm(f"{layer}.output.LayerNorm")
    return {
        **state,
        **linear(s, "bert.pooler.dense", s.dim, s.dim),
        "cls.predictions.bias": s.tensor(words),
        **linear(s, "cls.predictions.transform.dense", s.dim, s.dim),
        **layer_norm("cls.predictions.transform.LayerNorm"),
        **linear(s, "cls.seq_relationship", s.dim, 2),
    }


def distilbert_masked_lm(s: Size, words: int, positions: int) -> dict[str, Tensor]:
    """distilbert-base-uncased: DistilBertForMaskedLM."""
    state = {
        "distilbert.embeddings.word_embeddings.weight": s.tensor(words, s.dim),
        "distilbert.embeddings.position_embeddings.weight": s.tensor(positions, s.dim),
        **norm(s, "distilbert.embeddings.LayerNorm"),
    }
    for i in range(s.depth):
        layer = f"distilbert.transformer.layer.{i}"
        for part in ("q_lin", "k_lin", "v_lin", "out_lin"):
            state |= linear(s, f"{layer}.attention.{part}", s.dim, s.dim)
        state |= norm(s, f"{layer}.sa_layer_norm")
        state |= linear(s, f"{layer}.ffn.lin1", s.dim, 4 * s.dim)
        state |= linear(s, f"{layer}.ffn.lin2", 4 * s.dim, s.dim)
        state |= norm(s, f"{layer}.output_layer_norm")
    return {
        **state,
        **linear(s, "vocab_transform", s.dim, s.dim),
        **norm(s, "vocab_layer_norm"),
        "vocab_projector.weight": state["distilbert.embeddings.word_embeddings.weight"],  # tied
        "vocab_projector.bias": s.tensor(words),
    }


@dataclass(frozen=True)
class Layouts:
    """The writers above, for tests."""

    beitv2_pretrained: Callable[[Size], dict[str, Tensor]] = beitv2_pretrained
    beitv2_finetuned: Callable[[Size, int], dict[str, Tensor]] = beitv2_finetuned
    data2vec2_model: Callable[..., dict[str, object]] = data2vec2_model
    dino_backbone: Callable[[Size], dict[str, Tensor]] = dino_backbone
    dino_checkpoint: Callable[[Size], dict[str, object]] = dino_checkpoint
    bert_pretraining: Callable[..., dict[str, Tensor]] = bert_pretraining
    distilbert_masked_lm: Callable[[Size, int, int], dict[str, Tensor]] = distilbert_masked_lm


@pytest.fixture
def layouts() -> Layouts:
    return Layouts()


@pytest.fixture
def save(tmp_path: Path) -> Callable[[object], str]:
    """Write an object as a torch file and return its path."""

    def write(content: object) -> str:
        path = tmp_path / "weights.pth"
        torch.save(content, path)
        return str(path)

    return write
