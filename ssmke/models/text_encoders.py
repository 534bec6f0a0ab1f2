"""The text half of the student: embeddings and the first layers of a pretrained BERT-like model.

BERT, DistilBERT, MiniLM and RoBERTa come from transformers; the pooler and every head are left out, and the
weights are loaded by us, key by key, instead of by ``from_pretrained``, which initialises at random what a
file lacks.

- Attention is SDPA. The padding mask is handed over as bool [B, 1, 1, L], which transformers passes through
  as it is: no ``mask.all()`` on the host (a device sync per step, and a graph break), and real tokens never
  see padding.
- Packed captions (`ssmke.data.packing`) need nothing of transformers but position ids and that same mask, now
  [R, 1, W, W]: a place attends to the places of its own caption.
- Frozen lower layers take no part in the backward pass: nothing below them is trained, so it ends above them.
- All dropouts are 0: a step is a function of the weights and its batch, so runs can be compared bit by bit.
- The architecture is a dictionary that `TextEncoder.architecture` gives back, so that a saved student is
  rebuilt without a network.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from ssmke import foreign_json
from ssmke.errors import ConfigError, WeightsError
from ssmke.models import official
from ssmke.models.image_encoders import source_name, warn_untrained
from ssmke.models.weights import LoadReport, first_line, load_exactly, read_weights, resolve_path

FLAG = "--model.text"
"""Where `TextEncoderConfig` hangs in the recipe, for messages."""

_BERT_BASE = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
_BERT_LARGE = {
    **_BERT_BASE,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
KNOWN_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert-base-uncased": _BERT_BASE,
    "bge-large-en-v1.5": _BERT_LARGE,
    "distilbert-base-uncased": {
        "model_type": "distilbert",
        "vocab_size": 30522,
        "dim": 768,
        "n_layers": 6,
        "n_heads": 12,
        "hidden_dim": 3072,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
    },
}
"""Architectures that need no config.json."""

PACKABLE = ("bert", "distilbert", "roberta", "xlm-roberta", "camembert", "electra")
"""transformers' model types whose only notion of position is a table that ``position_ids`` look up."""

_FROM_PADDING = ("roberta", "xlm-roberta", "camembert")
"""Model types that count positions from behind the padding id."""

_LAYER = r"(?:encoder|transformer)\.layer\.(\d+)\."
_NOT_ARCHITECTURE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


@dataclass
class TextEncoderConfig:
    """Which pretrained text model, how much of it, its weights and its tokenizer."""

    name: str = "bert-base-uncased"
    """Model name on the hub."""
    depth: int | None = 6
    """Layers to keep, from the input on. None: all."""
    weights: str = "hub"
    """"hub" (downloaded once), a model folder or weights file, "package:<file>" that ships with ssmke, or
    "none" for random weights."""
    max_tokens: int = 64
    """Longest caption in tokens, [CLS] and [SEP] included; longer ones are cut."""
    frozen: bool = False
    """Never train it."""
    freeze_layers: int = 0
    """Never train the embeddings and the first so many layers."""
    architecture: Annotated[dict[str, Any] | None, tyro.conf.Suppress] = None
    """transformers' config.json as a dictionary with its "model_type". None: from the weights' folder, from
    the built-in table (`KNOWN_ARCHITECTURES`), or from the hub."""
    tokenizer: str | None = None
    """Hub name, folder or "package:<folder>". None: the weights' folder if it has one, else ``name``."""

    def __post_init__(self) -> None:
        if self.depth is not None and self.depth < 1:
            raise ConfigError(f"{FLAG}.depth must be at least 1 or None, got {self.depth}")
        if self.max_tokens < 3:
            raise ConfigError(
                f"{FLAG}.max-tokens must be at least 3 ([CLS], a word, [SEP]), got {self.max_tokens}"
            )
        if self.freeze_layers < 0:
            raise ConfigError(f"{FLAG}.freeze-layers must be 0 or more, got {self.freeze_layers}")


class TextEncoder(nn.Module):
    """Token ids [B, L] and their mask -> tokens [B, L, dim], [CLS] first."""

    def __init__(
        self, backbone: nn.Module, config: PreTrainedConfig, max_tokens: int, load_report: LoadReport
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.dim: int = config.hidden_size
        """Width of a token."""
        self.vocab_size: int = config.vocab_size
        """Rows of the word embedding; a tokenizer with more words does not fit."""
        self.max_tokens = max_tokens
        """Longest sequence that is to be fed."""
        self.load_report = load_report
        self.packs: bool = config.model_type in PACKABLE
        """Whether captions can be given in packed rows."""
        self._config = config

    def forward(self, ids: Tensor, mask: Tensor, packing: Tensor | None = None) -> Tensor:
        """Encode: tokens [B, L, dim].

        Args:
            ids: [B, L] int64, padded with the tokenizer's padding id.
            mask: [B, L] bool, true where a token is real. Outputs at padding are meaningless.
            packing: [R, W] int64 of `ssmke.data.packing.pack`: compute in these rows. Same result.
        """
        if packing is not None:
            return self._packed(ids, packing)
        attend = mask.to(torch.bool)[:, None, None, :]  # [B, 1, 1, L]
        tokens: Tensor = self.backbone(input_ids=ids, attention_mask=attend).last_hidden_state
        return tokens

    def _packed(self, ids: Tensor, packing: Tensor) -> Tensor:
        batch, length = ids.shape
        filled, place = packing >= 0, packing.clamp(min=0)
        owner = torch.where(filled, place // length, -1)  # [R, W]: number of the caption
        # Empty places attend to each other: a row without anything to attend to would be NaN.
        attend = (owner[:, :, None] == owner[:, None, :])[:, None]  # [R, 1, W, W]
        hidden = self.backbone(
            input_ids=ids.flatten()[place],
            attention_mask=attend,
            position_ids=place % length + self._first_position,
        ).last_hidden_state  # [R, W, D]
        # Empty places go to one row too many, which is cut off: no count is needed on the host.
        target = torch.where(filled, packing, batch * length).flatten()
        tokens = hidden.new_zeros(batch * length + 1, self.dim).index_copy(0, target, hidden.flatten(0, 1))
        return tokens[:-1].view(batch, length, self.dim)

    @property
    def _first_position(self) -> int:
        if self._config.model_type not in _FROM_PADDING:
            return 0
        return int(self._config.pad_token_id) + 1

    def architecture(self) -> dict[str, Any]:
        """JSON-able dictionary from which `build_text_encoder` rebuilds the encoder, cut as it is."""
        full: dict[str, Any] = json.loads(self._config.to_json_string(use_diff=True))
        kept = {key: value for key, value in full.items() if key not in _NOT_ARCHITECTURE}
        return {"model_type": self._config.model_type, **kept}


def build_text_encoder(config: TextEncoderConfig, *, quiet: bool = False) -> TextEncoder:
    """Build the encoder and load its weights.

    Args:
        config: what to build.
        quiet: do not warn about random weights, for a caller that loads a state dict next.

    Raises:
        ConfigError: unknown architecture, too few layers or positions.
        WeightsError: the weights are missing or do not fit, tensor for tensor.
    """
    architecture = _architecture(config)
    for dropout in ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"):
        if hasattr(architecture, dropout):
            setattr(architecture, dropout, 0.0)
    if config.depth is not None:
        if config.depth > architecture.num_hidden_layers:
            raise ConfigError(
                f"{FLAG}.depth {config.depth}: {config.name} has only {architecture.num_hidden_layers} layers"
            )
        architecture.num_hidden_layers = config.depth
    backbone: nn.Module = AutoModel.from_config(architecture, attn_implementation="sdpa", dtype=torch.float32)
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None  # type: ignore[assignment]
    _check_positions(backbone, architecture, config)
    _freeze_lower(backbone, config)
    if config.frozen:
        backbone.requires_grad_(False)
    return TextEncoder(
        backbone, architecture, config.max_tokens, _load(backbone, architecture, config, quiet)
    )


def text_layers(backbone: nn.Module) -> list[nn.Module]:
    """The layers of a BERT-like model in order; none of an architecture that is built in another way."""
    for name in ("encoder", "transformer"):
        layers = getattr(getattr(backbone, name, None), "layer", None)
        if isinstance(layers, nn.ModuleList):
            return list(layers)
    return []


def _freeze_lower(backbone: nn.Module, config: TextEncoderConfig) -> None:
    """Takes the embeddings and the first layers out of training."""
    count, layers = config.freeze_layers, text_layers(backbone)
    if not count:
        return
    if not layers:
        raise ConfigError(
            f"{FLAG}.freeze-layers {count}: {config.name} is no sequence of layers as BERT is; leave the flag out"
        )
    if count > len(layers):
        raise ConfigError(f"{FLAG}.freeze-layers {count}: {config.name} has only {len(layers)} layers here")
    above = {id(parameter) for layer in layers[count:] for parameter in layer.parameters()}
    for parameter in backbone.parameters():
        if id(parameter) not in above:
            parameter.requires_grad_(False)


def load_tokenizer(config: TextEncoderConfig, vocab_size: int | None = None) -> PreTrainedTokenizerBase:
    """The fast tokenizer that goes with the encoder; its ``model_max_length`` is ``config.max_tokens``.

    Args:
        config: where to find it.
        vocab_size: `TextEncoder.vocab_size`, to check that every id has an embedding.

    Raises:
        ConfigError: there is none, it has no padding token, or it does not fit the encoder.
    """
    source = _tokenizer_source(config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True, trust_remote_code=False)
    except Exception as error:  # transformers and its download back end raise what they like
        raise ConfigError(
            f"{FLAG}.tokenizer: no tokenizer at {source!r} ({first_line(error)}); give a folder with "
            "tokenizer.json and tokenizer_config.json, or a hub name when there is a network"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or not tokenizer.is_fast:
        raise ConfigError(f"{FLAG}.tokenizer: {source!r} has no fast tokenizer (tokenizer.json)")
    if tokenizer.pad_token_id is None:
        raise ConfigError(f"{FLAG}.tokenizer: {source!r} has no padding token")
    if vocab_size is not None and len(tokenizer) > vocab_size:
        raise ConfigError(
            f"{FLAG}.tokenizer: {source!r} has {len(tokenizer)} words, {config.name} embeds only {vocab_size}"
        )
    tokenizer.model_max_length = config.max_tokens
    return tokenizer


def _tokenizer_source(config: TextEncoderConfig) -> str:
    if config.tokenizer is not None:
        if config.tokenizer.startswith("package:"):
            return str(resolve_path(config.tokenizer))
        return config.tokenizer
    if config.weights not in ("hub", "none"):
        folder = resolve_path(config.weights)
        folder = folder if folder.is_dir() else folder.parent
        if (folder / "tokenizer.json").is_file() or (folder / "vocab.txt").is_file():
            return str(folder)
    return config.name


def _architecture(config: TextEncoderConfig) -> PreTrainedConfig:
    if config.architecture is not None:
        return _from_dict(config.architecture, f"{FLAG}.architecture")
    if config.weights not in ("hub", "none"):
        path = resolve_path(config.weights)
        file = (path if path.is_dir() else path.parent) / "config.json"
        if file.is_file():
            return _from_file(file)
    known = KNOWN_ARCHITECTURES.get(config.name.split("/")[-1])
    if known is not None:
        return _from_dict(known, config.name)
    try:
        found = AutoConfig.from_pretrained(config.name, trust_remote_code=False)
    except Exception as error:  # as in load_tokenizer
        raise WeightsError(
            f"{config.name}: no architecture for it on this machine and none from the hub "
            f"({first_line(error)}); give a model folder with config.json as {FLAG}.weights, or use a name "
            f"that needs none: {', '.join(KNOWN_ARCHITECTURES)}"
        ) from error
    assert isinstance(found, PreTrainedConfig)
    return found


def _from_file(file: Path) -> PreTrainedConfig:
    try:
        values = foreign_json.loads(file.read_bytes())
        if not isinstance(values, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file}: not JSON ({error}); copy the model folder again") from error
    return _from_dict(values, str(file))


def _from_dict(values: dict[str, Any], source: str) -> PreTrainedConfig:
    # What else a config may name, code of its own and kernels of the hub, is not part of an architecture.
    values = {
        key: value for key, value in values.items() if key != "auto_map" and "implementation" not in key
    }
    model_type = values.pop("model_type", None)
    if not isinstance(model_type, str):
        raise ConfigError(f'{source}: the architecture has no "model_type" (bert, distilbert, roberta)')
    try:
        built = AutoConfig.for_model(model_type, **values)
    except Exception as error:  # its own kinds of error, or what a value of another kind runs into
        raise ConfigError(
            f"{source}: transformers cannot build a {model_type} from it ({first_line(error)})"
        ) from error
    assert isinstance(built, PreTrainedConfig)
    return built


def _check_positions(backbone: nn.Module, architecture: PreTrainedConfig, config: TextEncoderConfig) -> None:
    limit = int(architecture.max_position_embeddings)
    if architecture.model_type in _FROM_PADDING:
        limit -= int(architecture.pad_token_id) + 1
    if config.max_tokens > limit:
        raise ConfigError(f"{FLAG}.max-tokens {config.max_tokens}: {config.name} has only {limit} positions")


def _load(
    backbone: nn.Module, architecture: PreTrainedConfig, config: TextEncoderConfig, quiet: bool
) -> LoadReport:
    if config.weights == "none":
        if not quiet:
            warn_untrained(config.name, FLAG)
        return LoadReport("none", 0)
    file = hub_weights(config.name) if config.weights == "hub" else resolve_path(config.weights)
    given = official.text_weights(read_weights(file), str(getattr(backbone, "base_model_prefix", "bert")))
    beyond = official.blocks_beyond(given.state, architecture.num_hidden_layers, _LAYER)
    kept = official.drop(given, beyond)
    return load_exactly(
        backbone, kept.state, source=source_name(config.name, config.weights), dropped=kept.dropped
    )


def hub_weights(name: str) -> Path:
    """The weights file of a model on the hub, downloaded once. Raises `WeightsError`."""
    cause: Exception | None = None
    for candidate in ("model.safetensors", "pytorch_model.bin"):
        try:
            return Path(hf_hub_download(name, candidate))
        except Exception as error:  # whatever the HTTP back end raises
            cause = error
            answered = isinstance(error, EntryNotFoundError) and not isinstance(
                error, LocalEntryNotFoundError
            )
            if not answered:
                break
    assert cause is not None
    raise WeightsError(
        f"{name}: cannot fetch its weights ({first_line(cause)}); give the path of a downloaded model "
        f"folder as {FLAG}.weights, or 'none' for random ones"
    ) from cause
