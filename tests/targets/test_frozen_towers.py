"""Both towers cached: rows are what the towers say, batches are those that reading images and captions would give."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from ssmke.data.augmentation import AugmentationConfig
from ssmke.data.captions import clean_caption
from ssmke.data.dataset import ImageTextShards
from ssmke.data.features import FeatureBatches
from ssmke.data.order import EpochOrder
from ssmke.data.stream import PairBatches, StreamPlan
from ssmke.errors import BadSample, ConfigError, DataError, TargetCacheError
from ssmke.models.student import SSMKE
from ssmke.recipes import parse_recipe
from ssmke.targets.build import BuildReport, build_targets
from ssmke.targets.cache import CacheIdentity, TargetCache, TargetsConfig
from ssmke.targets.caption_rows import CaptionRows
from ssmke.targets.frozen import FrozenText, FrozenTokens
from ssmke.targets.image_rows import ImageRows
from ssmke.targets.verify import verify_targets
from ssmke.training.prepare import build_module

CONFIG = TargetsConfig(batch_size=4)
AUGMENTATION = AugmentationConfig()
CANNOT_BE_DECODED = (3, 11, 12)


@pytest.fixture
def shards(shards_dir: Path, tmp_path: Path) -> ImageTextShards:
    for path in shards_dir.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return ImageTextShards.open([tmp_path], "test")


@pytest.fixture
def student(model: SSMKE) -> SSMKE:
    torch.manual_seed(2)
    return SSMKE(dataclasses.replace(model.config, pool="cls+mean"), quiet=True).eval()


def build_text(shards: ImageTextShards, student: SSMKE) -> tuple[TargetCache, BuildReport]:
    rows = CaptionRows(FrozenText(student), 4)
    report = build_targets(shards, rows, CONFIG)
    return TargetCache.open(shards, rows.identity, CONFIG), report


def build_images(shards: ImageTextShards, student: SSMKE) -> TargetCache:
    tokens = FrozenTokens(student)
    identity = CacheIdentity.of(tokens.describe(), tokens.image_size, 1, AUGMENTATION)
    build_targets(shards, ImageRows(tokens, identity, AUGMENTATION, 4), CONFIG)
    return TargetCache.open(shards, identity, CONFIG)


def plan_of(shards: ImageTextShards, batch: int, rank: int = 0, ranks: int = 1) -> StreamPlan:
    return StreamPlan(EpochOrder.once(shards.pairs, 3), batch, 2, rank, ranks)


def test_a_row_is_what_the_encoder_says_of_that_caption(shards: ImageTextShards, student: SSMKE) -> None:
    cache, report = build_text(shards, student)
    assert (report.images, report.bad) == (23, 1)
    for pair in range(shards.pairs):
        image, caption = shards.pair(pair)
        row = cache.row(pair, 0)
        try:
            text = clean_caption(shards.read(image).captions[caption])
        except BadSample:
            assert np.isnan(row).all()
            continue
        alone = student.text_tokens(*student.processor().texts([text]))[0, 0]
        np.testing.assert_allclose(row, alone.detach().numpy(), rtol=2e-3, atol=2e-3)


def test_many_rows_at_once_are_the_single_ones(shards: ImageTextShards, student: SSMKE) -> None:
    cache, _ = build_text(shards, student)
    numbers = np.random.default_rng(0).integers(0, shards.pairs, 50)
    expected = np.stack([cache.row(int(number), 0) for number in numbers])
    np.testing.assert_array_equal(cache.rows(numbers), expected)


def test_a_second_build_computes_nothing_and_another_encoder_is_refused(
    shards: ImageTextShards, student: SSMKE
) -> None:
    build_text(shards, student)
    _, again = build_text(shards, student)
    assert (again.images, again.reused) == (0, 23)
    with torch.no_grad():
        next(student.text_encoder.parameters()).add_(1)
    with pytest.raises(TargetCacheError, match=r"teacher\.digest: the cache has"):
        build_text(shards, student)


@pytest.mark.parametrize("shorter", [8, 16])
def test_where_captions_are_cut_is_part_of_the_identity(student: SSMKE, shorter: int) -> None:
    before = FrozenText(student).describe()
    student.config.text.max_tokens = shorter
    assert (FrozenText(student).describe() == before) == (shorter == 16)


def test_verify_computes_captions_again(shards: ImageTextShards, student: SSMKE) -> None:
    build_text(shards, student)
    rows = CaptionRows(FrozenText(student), 4)
    report = verify_targets(shards, rows, CONFIG, recompute=60)
    assert (report.problems, report.recomputed) == ([], shards.pairs)
    with torch.no_grad():
        student.text_encoder.backbone.embeddings.word_embeddings.weight.normal_()  # type: ignore[union-attr]
    assert all(
        "away from the model's" in problem for problem in verify_targets(shards, rows, CONFIG).problems
    )
    assert verify_targets(shards, rows, CONFIG).problems


def test_batches_are_those_of_the_stream_that_reads_everything(
    shards: ImageTextShards, student: SSMKE
) -> None:
    images = build_images(shards, student)
    texts, _ = build_text(shards, student)
    for rank in range(2):
        plan = plan_of(shards, 10, rank, 2)
        whole = PairBatches(shards, plan, student.tokenizer(), 16, 32, AUGMENTATION, None, images)
        cached = FeatureBatches(shards, plan, images, texts)
        assert len(cached) == len(whole) > 4
        for step in range(len(whole)):
            read, rows = whole[step], cached[step]
            assert rows.keys == read.keys
            assert torch.equal(rows.image_ids, read.image_ids)
            assert torch.equal(rows.images, read.images)
            expected = student.text_tokens(read.ids, read.mask)[:, 0]
            torch.testing.assert_close(rows.ids.float(), expected, rtol=2e-3, atol=2e-3)
            assert {key for key, _ in rows.skipped} == {key for key, _ in read.skipped}
    shown = {int(image) for step in range(len(cached)) for image in cached[step].image_ids}
    assert not shown & set(CANNOT_BE_DECODED)


def test_a_cache_without_rows_is_broken_data(shards: ImageTextShards, student: SSMKE) -> None:
    texts, _ = build_text(shards, student)

    class Nothing:
        def rows(self, numbers: np.ndarray, view: int = 0) -> np.ndarray:
            return np.full((len(numbers), 4), np.nan, np.float16)

    batches = FeatureBatches(shards, plan_of(shards, 10), Nothing(), texts)
    with pytest.raises(DataError, match=r"32 pairs in a row .*ssmke data verify"):
        batches[0]


def test_what_leaves_no_trace_in_the_weights_is_part_of_the_identity(student: SSMKE) -> None:
    before = FrozenText(student).describe()
    student.text_encoder._config.num_attention_heads = 4
    other = FrozenText(student).describe()
    assert other["digest"] == before["digest"]
    assert other != before


def test_a_caption_that_the_index_promises_and_the_shard_lacks_is_listed_and_skipped(
    shards: ImageTextShards, student: SSMKE
) -> None:
    index = shards.open_shard(0)
    index.captions = index.captions.copy()
    index.captions[0] += 1
    rows, bad = CaptionRows(FrozenText(student), 4), {}  # type: ignore[var-annotated]
    [(numbers, _, images)] = rows.batches(index, bad)
    assert images == len(index)
    missing = int(index.captions[0]) - 1
    assert missing not in numbers
    assert bad == {str(index.keys[0]): "not as indexed", "s1-005#1": "empty caption"}
    with pytest.raises(BadSample):
        rows.row(index, missing)


def test_a_student_of_which_nothing_would_learn_is_refused() -> None:
    frozen = ["--model.image.frozen", "--model.text.frozen", "--model.shared.kind", "none"]
    frozen += ["--loss.distillation", "none", "--loss.bank", "none"]
    recipe = parse_recipe(["--recipe", "scenes-tiny", *frozen], "test")
    with pytest.raises(ConfigError, match=r"nothing that embeds .*--model\.pool cls\+mean"):
        build_module(recipe, None, 10, torch.device("cpu"), lambda line: None)


FROZEN = [
    "--model.image.frozen",
    "--targets.frozen-tokens",
    "--model.text.frozen",
    "--model.pool",
    "cls+mean",
]


@pytest.mark.parametrize(
    ("left_out", "remedy"),
    [
        ("--model.text.frozen", r"--model\.text\.frozen"),
        ("--targets.frozen-tokens", r"--targets\.frozen-tokens"),
        ("--model.pool", r"--model\.pool cls\+mean"),
    ],
)
def test_what_cached_captions_need_is_named(left_out: str, remedy: str) -> None:
    flags = [
        flag for flag in FROZEN if flag not in (left_out, "cls+mean" if left_out == "--model.pool" else "")
    ]
    with pytest.raises(ConfigError, match=rf"--targets\.frozen-text .*{remedy}"):
        parse_recipe(["--recipe", "scenes-tiny", *flags, "--targets.frozen-text"], "test")
