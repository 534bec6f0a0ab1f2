"""Tokenizer and BERT-like text encoder of the embedded default, pretrained on captions alone.

The vocabulary is the grammar's word list, plus single letters and digits as WordPiece fallback, so that any English
text has tokens. The encoder is a 4-layer BERT trained by masked language modelling on captions of train-split scenes
of another seed than the dataset's; it never sees an image. The student keeps its first layers.

Cost: about 4 minutes on one core.
"""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from ssmke.data.sources.scene_captions import caption_words, write_captions
from ssmke.data.sources.scene_plan import plan_scenes
from ssmke.data.tokens import tokenize

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_TOKENS = 64
ARCHITECTURE = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": MAX_TOKENS,
    "type_vocab_size": 1,
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer for scene captions."""
    letters = string.ascii_lowercase + string.digits
    pieces = [
        *SPECIAL,
        *caption_words(),
        *letters,
        *(f"##{letter}" for letter in letters),
        *string.punctuation,
    ]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=60))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_TOKENS,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def unlabelled_captions(seed: int, scenes: int) -> list[str]:
    """Captions of train-split scenes, without their images."""
    return [caption for scene in plan_scenes(seed, "train", scenes) for caption in write_captions(scene, 5)]


def mask_words(
    ids: Tensor, real: Tensor, tokenizer: PreTrainedTokenizerFast, rate: float
) -> tuple[Tensor, Tensor]:
    """BERT's corruption of ids [B, L]: 80 % [MASK], 10 % a random piece, 10 % kept. Returns inputs and labels."""
    assert isinstance(tokenizer.mask_token_id, int)
    ordinary = real & (ids != tokenizer.cls_token_id) & (ids != tokenizer.sep_token_id)
    chosen = ordinary & (torch.rand(ids.shape) < rate)
    dice = torch.rand(ids.shape)
    noise = torch.randint(len(SPECIAL), len(tokenizer), ids.shape)
    inputs = torch.where(chosen & (dice < 0.8), tokenizer.mask_token_id, ids)
    inputs = torch.where(chosen & (dice >= 0.9), noise, inputs)
    return inputs, torch.where(chosen, ids, -100)


def pretrain_text_encoder(
    captions: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    steps: int,
    batch: int = 128,
    lr: float = 2e-3,
) -> BertForMaskedLM:
    """Masked language modelling with AdamW and a one-cycle schedule; deterministic for a seeded torch."""
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **ARCHITECTURE
    )
    model = BertForMaskedLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        rows = torch.randint(len(captions), (batch,)).tolist()
        ids, real = tokenize(tokenizer, [captions[row] for row in rows], MAX_TOKENS)
        inputs, labels = mask_words(ids, real, tokenizer, 0.25)
        loss = model(input_ids=inputs, attention_mask=real.long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"text encoder: step {step + 1} of {steps}, masked-word loss {loss.item():.3f}", flush=True)
    return model


def save_text_encoder(folder: Path, model: BertForMaskedLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """A transformers model folder: config.json, model.safetensors (no MLM head), tokenizer.json."""
    model.bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = folder / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
