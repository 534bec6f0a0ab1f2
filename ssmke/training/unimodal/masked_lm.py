"""Masked language models: an encoder of `ssmke.models.text_encoders` with the head that predicts masked words.

The encoder is loaded as pretraining loads it, tensor for tensor; the head comes from the same file, where it has one
(bert-base-uncased has, an encoder that was saved without it has not). Of tied weights (the word embeddings serve as the
head's output matrix) there is one tensor.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM

from ssmke.errors import ConfigError, WeightsError
from ssmke.models.image_encoders import source_name
from ssmke.models.text_encoders import TextEncoderConfig, build_text_encoder, hub_weights, text_layers
from ssmke.models.weights import LoadReport, read_weights, resolve_path
from ssmke.training.unimodal.layers import chosen_layers, with_layers
from ssmke.training.unimodal.recipes import SoftTargetConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FLAG = "--model.text"
FAMILIES = ("bert", "distilbert", "roberta", "xlm-roberta", "camembert")
_LAYER = r"(?:encoder|transformer)\.layer\.(\d+)\."


class MaskedLM(nn.Module):
    """Token ids [B, L] -> last hidden states [B, L, D]; `logits` gives words for any of them."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        """transformers' masked language model."""

    @property
    def encoder(self) -> nn.Module:
        """The network without its head."""
        encoder: nn.Module = getattr(self.network, self.network.base_model_prefix)
        return encoder

    @property
    def vocabulary(self) -> int:
        """Words that logits are given for."""
        return int(self.network.config.vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        """Every token attends to every other: rows have no padding."""
        hidden: Tensor = self.encoder(input_ids=ids).last_hidden_state
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [..., V] of hidden states [..., D]."""
        network = self.network
        if network.config.model_type == "bert":
            scores: Tensor = network.cls(hidden)
        elif network.config.model_type == "distilbert":
            hidden = network.vocab_layer_norm(network.activation(network.vocab_transform(hidden)))
            scores = network.vocab_projector(hidden)
        else:
            scores = network.lm_head(hidden)
        return scores

    def head_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters that only the head has, by their names in the network."""
        prefix = f"{self.network.base_model_prefix}."
        return {name: value for name, value in self.network.named_parameters() if not name.startswith(prefix)}


def build_teacher(config: TextEncoderConfig) -> tuple[MaskedLM, LoadReport, bool]:
    """The whole model of ``config``, in evaluation mode and frozen; the encoder's report; whether its head was loaded.

    Raises:
        ConfigError: a model of another kind than BERT, DistilBERT and RoBERTa.
        WeightsError: the weights are missing or do not fit, or the file holds a part of the head only.
    """
    encoder = build_text_encoder(dataclasses.replace(config, depth=None, freeze_layers=0))
    model = _new(encoder.architecture())
    model.encoder.load_state_dict(encoder.backbone.state_dict())
    headed = config.weights != "none" and _load_head(model, config)
    model.requires_grad_(False)
    return model.eval(), encoder.load_report, headed


def build_student(teacher: MaskedLM, depth: int, distil: SoftTargetConfig) -> MaskedLM:
    """A model of ``depth`` of the teacher's layers, with its embeddings and head.

    Raises:
        ConfigError: the teacher has not more layers than that, or none that could be told apart.
    """
    layers = len(text_layers(teacher.encoder))
    if depth >= layers:
        raise ConfigError(f"{FLAG}.depth {depth}: the teacher has {layers} layers, the student needs fewer")
    student = _new(teacher.network.config.to_dict(), depth)
    taken = chosen_layers(layers, depth, distil.init)
    student.network.load_state_dict(with_layers(teacher.network.state_dict(), _LAYER, taken))
    return student


def save_student(
    folder: Path, student: MaskedLM, state: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Writes a transformers folder: config.json, model.safetensors (fp32, head included), tokenizer.

    ``state``: the weights of ``student``, under its names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = {name for name, _ in student.network.named_parameters()}  # a tied tensor has one name here
    tensors = {
        name.removeprefix("network."): value.contiguous()
        for name, value in state.items()
        if name.removeprefix("network.") in own
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = student.network.config
    config.architectures = [type(student.network).__name__]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))


def _new(architecture: dict[str, Any], depth: int | None = None) -> MaskedLM:
    values = dict(architecture)
    model_type = values.pop("model_type")
    if model_type not in FAMILIES:
        raise ConfigError(
            f"{FLAG}.name: a {model_type} cannot be distilled here; models of {', '.join(FAMILIES)} can"
        )
    config: Any = AutoConfig.for_model(model_type, **values)
    if depth is not None:
        config.num_hidden_layers = depth
    for dropout in ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"):
        if hasattr(config, dropout):
            setattr(config, dropout, 0.0)
    return MaskedLM(AutoModelForMaskedLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32))


def _load_head(model: MaskedLM, config: TextEncoderConfig) -> bool:
    file = hub_weights(config.name) if config.weights == "hub" else resolve_path(config.weights)
    given = {_renamed(name): tensor for name, tensor in read_weights(file).items()}
    wanted = model.head_parameters()
    tied_bias = {
        "cls.predictions.decoder.bias": "cls.predictions.bias",
        "lm_head.decoder.bias": "lm_head.bias",
    }
    found = {name: given.get(name, given.get(_other(name, tied_bias))) for name in wanted}
    missing = [name for name, tensor in found.items() if tensor is None]
    if len(missing) == len(wanted):
        return False
    source = source_name(config.name, config.weights)
    if missing:
        raise WeightsError(
            f"{source} holds a part of the head of masked words only: it lacks {', '.join(missing)}"
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            tensor = found[name]
            assert tensor is not None
            if tensor.shape != parameter.shape or not bool(torch.isfinite(tensor).all()):
                raise WeightsError(
                    f"{source}: {name} is {tuple(tensor.shape)}, the head needs finite {tuple(parameter.shape)}"
                )
            parameter.copy_(tensor)
    return True


def _other(name: str, pairs: dict[str, str]) -> str:
    """The other name of a tensor that has two."""
    return pairs.get(name) or next((key for key, value in pairs.items() if value == name), name)


def _renamed(name: str) -> str:
    """BERT's files from before 2019 name LayerNorm's parameters gamma and beta."""
    name = re.sub(r"(LayerNorm|layer_norm)\.gamma$", r"\1.weight", name)
    return re.sub(r"(LayerNorm|layer_norm)\.beta$", r"\1.bias", name)
