"""Texts as rows of tokens, and what is masked in them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from ssmke.data.captions import clean_caption
from ssmke.data.dataset import ImageTextShards
from ssmke.errors import BadSample, ConfigError, DataError
from ssmke.models.text_encoders import TextEncoderConfig, load_tokenizer
from ssmke.training.unimodal import corpus as corpora
from ssmke.training.unimodal.corpus import Corpus, CorpusConfig, build, cache_folder, pieces_of
from ssmke.training.unimodal.text_batches import IGNORED, Masking, masked_rows
from tests.training.unimodal.conftest import LENGTH


def made(data: CorpusConfig, text: TextEncoderConfig, ranks: int = 1) -> tuple[Corpus, list[int]]:
    pieces, tokenizer = pieces_of(data), load_tokenizer(text)
    folder = cache_folder(data, pieces, tokenizer, LENGTH)
    counts = [
        build(folder, pieces, tokenizer, LENGTH, (rank, ranks), lambda line: None, lambda: None)
        for rank in range(ranks)
    ]
    return Corpus(folder, len(pieces)), counts


def expected(documents: list[str], text: TextEncoderConfig) -> list[list[int]]:
    tokenizer = load_tokenizer(text)
    body: list[int] = []
    for document in documents:
        body += [*tokenizer(document)["input_ids"][1:-1], tokenizer.sep_token_id]
    step = LENGTH - 2
    return [
        [tokenizer.cls_token_id, *body[start : start + step], tokenizer.sep_token_id]
        for start in range(0, len(body) - step + 1, step)
    ]


def test_rows_hold_all_files_in_order(texts: Path, text: TextEncoderConfig, tmp_path: Path) -> None:
    import json

    documents = json.loads((texts / "all.json").read_text())
    data = CorpusConfig(files=(str(texts),), cache=str(tmp_path))
    corpus, counts = made(data, text)
    assert corpus.documents == 160
    assert [corpus.row(number).tolist() for number in range(corpus.rows)] == expected(documents, text)
    assert (counts, made(data, text)[1]) == ([1], [0])  # one piece, and it is kept
    again = pickle.loads(pickle.dumps(corpus))
    assert again.row(corpus.rows - 1).tolist() == corpus.row(corpus.rows - 1).tolist()


def test_pieces_are_shared_out_and_a_change_is_noticed(
    texts: Path, text: TextEncoderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "PIECE_BYTES", 1)
    files = tuple(str(texts / name) for name in ("a.txt", "b.txt.gz", "c.jsonl"))
    data = CorpusConfig(files=files, cache=str(tmp_path / "cache"))
    corpus, counts = made(data, text, ranks=2)
    assert counts == [2, 1]
    assert corpus.piece_of(corpus.rows - 1).endswith("00002.npy")
    copy = tmp_path / "a.txt"
    copy.write_text((texts / "a.txt").read_text() + "\n\na red dog runs near two children on grass\n" * 9)
    other, _ = made(CorpusConfig(files=(str(copy), *files[1:]), cache=str(tmp_path / "cache")), text)
    assert other.digest != corpus.digest


def test_captions_of_shards_are_documents(shards_dir: Path, text: TextEncoderConfig, tmp_path: Path) -> None:
    data = CorpusConfig(shards=(str(shards_dir),), split="test", cache=str(tmp_path))
    corpus, _ = made(data, text)
    rows: list[list[int]] = []
    shards = ImageTextShards.open([shards_dir], "test")
    for number in range(len(shards.shards)):
        index, documents = shards.open_shard(number), []
        for position in range(len(index)):
            for caption in index.read(position).captions:
                try:
                    documents.append(clean_caption(caption))
                except BadSample:
                    continue
        rows += expected(documents, text)
    assert [corpus.row(number).tolist() for number in range(corpus.rows)] == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"text": "a dog"}\n{"txt": 1}\n', "x.jsonl, line 2"),
        ("x.txt.gz", b"\x1f\x8b no gzip", "x.txt.gz cannot be read"),
        ("x.csv", b"a,b", "unknown kind of file"),
    ],
)
def test_bad_texts_are_named(
    name: str, content: bytes, message: str, text: TextEncoderConfig, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        made(CorpusConfig(files=(str(tmp_path / name),), cache=str(tmp_path / "cache")), text)


def test_a_corpus_is_files_or_shards_and_something_is_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--data.files or as --data.shards"):
        CorpusConfig(files=("a",), shards=("b",))
    with pytest.raises(DataError, match="there is no file of"):
        pieces_of(CorpusConfig(files=(str(tmp_path / "*.txt"),)))


def test_masking_is_berts_and_a_function_of_seed_epoch_and_row() -> None:
    masking = Masking(seed=7, share=0.15, special=(0, 2, 3, 4), mask_id=4, vocabulary=1000)
    row = np.random.default_rng(0).integers(5, 1000, 400)
    row[0], row[-1], row[50] = 2, 3, 3
    ids, labels = masking(row, 9, 1)
    chosen = labels != IGNORED
    assert chosen.sum() == 60
    assert (labels[chosen] == row[chosen]).all()
    assert (ids[~chosen] == row[~chosen]).all()
    assert not chosen[[0, 50, 399]].any()
    assert all((a == b).all() for a, b in zip(masking(row, 9, 1), (ids, labels), strict=True))
    others = (masking(row, 9, 2), masking(row, 10, 1), Masking(8, 0.15, (0, 2, 3, 4), 4, 1000)(row, 9, 1))
    assert all((other[1] != labels).any() for other in others)
    drawn = [masking(row, number, 0) for number in range(200)]  # 12,000 choices
    masked = np.mean([(ids[labels != IGNORED] == 4).mean() for ids, labels in drawn])
    kept = np.mean([(ids == labels)[labels != IGNORED].mean() for ids, labels in drawn])
    assert masked == pytest.approx(0.8, abs=0.02)  # five standard deviations
    assert kept == pytest.approx(0.1, abs=0.015)


def test_a_row_of_separators_cannot_be_masked() -> None:
    masking = Masking(0, 0.4, (3,), 4, 10)
    with pytest.raises(DataError, match=r"lower --distil.masked"):
        masking(np.array([3] * 9 + [5]), 0, 0)


def test_a_batch_has_the_rows_keys(texts: Path, text: TextEncoderConfig, tmp_path: Path) -> None:
    corpus, _ = made(CorpusConfig(files=(str(texts),), cache=str(tmp_path)), text)
    batch = masked_rows(corpus, Masking(0, 0.15, (0, 2, 3, 4), 4, 18), [4, 1], epoch=3)
    assert batch.keys == ("row-4", "row-1")
    assert batch.labels is not None
    assert (batch.labels != IGNORED).sum(1).tolist() == [4, 4]
    assert batch.real_tokens == batch.computed_tokens == 2 * LENGTH
