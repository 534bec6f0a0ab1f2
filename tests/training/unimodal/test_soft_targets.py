"""Distilled language models: DistilBERT's published formula in float64, and the folder that comes out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForMaskedLM, BertForMaskedLM

from ssmke.data.batch import Batch
from ssmke.errors import ConfigError, WeightsError
from ssmke.models.text_encoders import TextEncoderConfig, build_text_encoder, load_tokenizer
from ssmke.training.unimodal.masked_lm import build_student, build_teacher, save_student
from ssmke.training.unimodal.recipes import SoftTargetConfig
from ssmke.training.unimodal.soft_targets import SoftTargetDistillation
from ssmke.training.unimodal.text_batches import IGNORED
from tests.training.unimodal.conftest import LENGTH

MASKED = 4


def a_batch(rows: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 18, (rows, LENGTH), generator=generator)
    labels = torch.full_like(ids, IGNORED)
    for row in range(rows):
        chosen = torch.randperm(LENGTH, generator=generator)[:MASKED]
        labels[row, chosen] = ids[row, chosen]
        ids[row, chosen] = 4
    return Batch(
        torch.empty(rows, 0, dtype=torch.uint8), ids, torch.ones_like(ids, dtype=torch.bool),
        torch.arange(rows), labels=labels,
    )  # fmt: skip


def published(
    bert_dir: Path, config: SoftTargetConfig, taken: list[int], batch: Batch
) -> dict[str, torch.Tensor]:
    """The losses as huggingface's research project `distillation/distiller.py` computes them, in float64."""
    teacher = BertForMaskedLM.from_pretrained(bert_dir).double().eval()
    student = BertForMaskedLM.from_pretrained(bert_dir).double().eval()
    student.bert.encoder.layer = nn.ModuleList(student.bert.encoder.layer[number] for number in taken)
    s = student(batch.ids, output_hidden_states=True)
    t = teacher(batch.ids, output_hidden_states=True)
    where = batch.labels > -1 if config.tokens == "masked" else batch.mask
    s_logits, t_logits = s.logits[where], t.logits[where]
    heat = config.temperature
    soft = nn.KLDivLoss(reduction="batchmean")(
        nn.functional.log_softmax(s_logits / heat, dim=-1), nn.functional.softmax(t_logits / heat, dim=-1)
    ) * heat**2  # fmt: skip
    s_hidden, t_hidden = s.hidden_states[-1][batch.mask], t.hidden_states[-1][batch.mask]
    cosine = nn.CosineEmbeddingLoss(reduction="mean")(s_hidden, t_hidden, s_hidden.new_ones(len(s_hidden)))
    mlm = nn.CrossEntropyLoss(ignore_index=-100)(s.logits.flatten(0, 1), batch.labels.flatten())
    total = config.soft * soft + config.cosine * cosine + config.mlm * mlm
    return {"loss": total, "soft": soft, "cosine": cosine, "mlm": mlm}


@pytest.mark.parametrize(
    ("config", "taken"),
    [
        (SoftTargetConfig(mlm=2.0), [0, 3]),
        (SoftTargetConfig(init="first"), [0, 1]),
        (SoftTargetConfig(tokens="masked", temperature=3.0, mlm=0.5), [0, 3]),
        (SoftTargetConfig(soft=0.0, mlm=1.0), [0, 3]),
    ],
)
@pytest.mark.parametrize("scores", [1 << 26, 18 * 7])
def test_the_losses_are_distilberts(
    config: SoftTargetConfig, taken: list[int], scores: int, text: TextEncoderConfig, bert_dir: Path
) -> None:
    teacher, _, headed = build_teacher(text)
    assert headed
    module = SoftTargetDistillation(build_student(teacher, 2, config), teacher, config, MASKED, scores)
    batch = a_batch()
    losses = module(batch)
    wanted = published(bert_dir, config, taken, batch)
    for name in losses:
        assert losses[name].item() == pytest.approx(wanted[name].item(), rel=2e-5), name
    assert {"soft", "cosine", "mlm"} - losses.keys() == {
        name for name in ("soft", "cosine", "mlm") if not getattr(config, name)
    }
    # The gradient too, which chunks are computed for a second time: that of one weight below all losses.
    losses["loss"].backward()
    weight = module.student.network.bert.embeddings.word_embeddings.weight
    whole = SoftTargetDistillation(build_student(teacher, 2, config), teacher, config, MASKED)
    whole(batch)["loss"].backward()
    other = whole.student.network.bert.embeddings.word_embeddings.weight
    torch.testing.assert_close(weight.grad, other.grad, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_loss_of_a_batch_is_the_mean_of_its_micro_batches(text: TextEncoderConfig) -> None:
    config = SoftTargetConfig(tokens="masked", mlm=1.0)
    teacher, _, _ = build_teacher(text)
    module = SoftTargetDistillation(build_student(teacher, 2, config), teacher, config, MASKED)
    batch = a_batch(4)
    parts = [module(part)["loss"].item() for part in batch.split(2)]
    assert sum(parts) / 2 == pytest.approx(module(batch)["loss"].item(), rel=1e-5)


def test_the_folder_loads_in_transformers_and_as_weights_of_pretraining(
    text: TextEncoderConfig, tmp_path: Path
) -> None:
    teacher, _, _ = build_teacher(text)
    student = build_student(teacher, 2, SoftTargetConfig())
    save_student(tmp_path, student, student.state_dict(), load_tokenizer(text))
    loaded, facts = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not facts["missing_keys"]
    assert not facts["unexpected_keys"]
    ids = a_batch().ids
    torch.testing.assert_close(loaded.eval()(ids).logits, student.logits(student(ids)), rtol=1e-4, atol=1e-5)
    config = TextEncoderConfig(depth=2, weights=str(tmp_path), max_tokens=16)
    encoder = build_text_encoder(config)
    mask = torch.ones_like(ids, dtype=torch.bool)
    torch.testing.assert_close(encoder(ids, mask), student(ids), rtol=1e-4, atol=1e-5)
    assert len(load_tokenizer(config, encoder.vocab_size)) == encoder.vocab_size


def test_teachers_without_a_whole_head_are_noticed(
    text: TextEncoderConfig, bert_dir: Path, tmp_path: Path
) -> None:
    state = load_file(bert_dir / "model.safetensors")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((bert_dir / name).read_bytes())
    bare = {name: value for name, value in state.items() if not name.startswith("cls.")}
    save_file(bare, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = dataclasses.replace(text, weights=str(tmp_path))
    assert not build_teacher(config)[2]
    part = {name: value for name, value in state.items() if "transform.dense" not in name}
    save_file(part, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"part of the head .* lacks cls.predictions.transform.dense"):
        build_teacher(config)


def test_a_student_needs_fewer_layers_than_its_teacher(text: TextEncoderConfig) -> None:
    with pytest.raises(ConfigError, match=r"depth 4: the teacher has 4 layers"):
        build_student(build_teacher(text)[0], 4, SoftTargetConfig())
