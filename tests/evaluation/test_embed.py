"""Embedding a split: same as one at a time, in order, with bad samples counted, on any number of ranks."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ssmke.data.captions import clean_caption
from ssmke.data.dataset import ImageTextShards
from ssmke.data.decode import decode_image
from ssmke.errors import DataError
from ssmke.evaluation.embed import SplitEmbeddings, embed_images, embed_split, embed_texts
from ssmke.evaluation.retrieval import EvaluationError
from ssmke.models.student import SSMKE

BAD_IMAGES = (3, 11, 12)


def one_at_a_time(model: SSMKE, shards: ImageTextShards) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    image, text, owner = [], [], []
    for i in sorted(set(range(shards.images)) - set(BAD_IMAGES)):
        sample = shards.read(i)
        image.append(model.encode_image([decode_image(sample.image)]))
        for caption in filter(str.strip, sample.captions):
            text.append(model.encode_text([clean_caption(caption)]))
            owner.append(len(image) - 1)
    return torch.cat(image), torch.cat(text), owner


def test_a_split_is_embedded_as_one_by_one_and_in_order(model: SSMKE, shards: ImageTextShards) -> None:
    image, text, owner = one_at_a_time(model, shards)
    found = embed_split(model, shards, batch_size=4, text_batch_size=3)
    torch.testing.assert_close(found.image, image, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.text, text, atol=1e-5, rtol=0)
    assert found.text_image.tolist() == owner
    assert found.image_index == [i for i in range(23) if i not in BAD_IMAGES]
    assert found.keys == [shards.key(i) for i in found.image_index]
    assert (image @ image.T - torch.eye(20)).abs().max() < 0.999, "the model must tell images apart"


def test_bad_images_and_captions_are_skipped_and_counted(model: SSMKE, shards: ImageTextShards) -> None:
    found = embed_split(model, shards)
    assert found.skipped == {"truncated image": 3, "empty caption": 1}
    assert len(found.captions) == len(found.text) == len(found.text_image)
    assert [
        c for c, i in zip(found.captions, found.text_image, strict=True) if found.image_index[i] == 5
    ] == [
        "a red dog",
        "two cats",
    ]


def test_equal_captions_have_equal_embeddings(model: SSMKE, shards: ImageTextShards) -> None:
    found = embed_split(model, shards, text_batch_size=2)
    same = found.text[[i for i, caption in enumerate(found.captions) if caption == "a dog"]]
    assert len(same) > 3
    assert torch.equal(same, same[:1].expand_as(same))


def test_a_subset_in_any_order(model: SSMKE, shards: ImageTextShards) -> None:
    found = embed_split(model, shards, images=[20, 3, 0])
    everything = embed_split(model, shards)
    assert found.image_index == [20, 0]
    assert found.captions == [*shards.read(20).captions, *shards.read(0).captions]
    torch.testing.assert_close(found.image[1], everything.image[0], atol=1e-5, rtol=0)


def test_captions_longer_than_the_model_reads_are_cut(model: SSMKE) -> None:
    long = " ".join(["red"] * 500)
    cut = " ".join(["red"] * 14)  # [CLS] and [SEP] make it 16
    torch.testing.assert_close(*embed_texts(model, [long, cut]).split(1))


def test_padding_is_that_of_the_batch_not_of_the_split(model: SSMKE, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[tuple[int, int]] = []
    encode = model.encode_text

    def spy(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        widths.append((ids.shape[1], int(mask.sum(1).max())))
        return encode(ids, mask)

    monkeypatch.setattr(model, "encode_text", spy)
    embed_texts(model, ["a dog", " ".join(["red"] * 12), "a cat", "two"], batch_size=2)
    assert widths == [(4, 4), (14, 14)]


def test_the_mode_of_the_model_is_put_back(model: SSMKE, shards: ImageTextShards) -> None:
    model.train()
    embed_split(model, shards, images=range(3))
    assert model.training
    assert model.image_encoder.training


def test_progress_counts_what_was_skipped_too(
    model: SSMKE, shards: ImageTextShards, capsys: pytest.CaptureFixture[str]
) -> None:
    embed_split(model, shards, progress=True)
    assert "23/23" in capsys.readouterr().out


def test_nothing_usable_says_why(model: SSMKE, shards: ImageTextShards) -> None:
    with pytest.raises(EvaluationError, match="not one of 3 images is usable \\(truncated image 3\\)"):
        embed_split(model, shards, images=BAD_IMAGES)


class CutShards(ImageTextShards):
    """Shards whose image 21 lies beyond what is left of the file."""

    def read(self, image: int):  # type: ignore[no-untyped-def]
        if image == 21:
            raise DataError("test-00001.tar was cut")
        return super().read(image)


def cut(shards: ImageTextShards) -> ImageTextShards:
    damaged = CutShards.__new__(CutShards)
    damaged.__setstate__(shards.__getstate__())
    return damaged


def test_a_damaged_shard_is_an_error(model: SSMKE, shards: ImageTextShards) -> None:
    with pytest.raises(DataError, match="was cut"):
        embed_images(model, cut(shards))


def embed_on_rank(rank: int, world: int, out: Path, model_dir: Path, shards_dir: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out / 'store'}", rank=rank, world_size=world)
    model = SSMKE.from_pretrained(model_dir)
    calls = {"image": 0, "text": 0}
    model.image_encoder.register_forward_pre_hook(lambda *_: calls.update(image=calls["image"] + 1))
    model.text_encoder.register_forward_pre_hook(lambda *_: calls.update(text=calls["text"] + 1))
    shards = ImageTextShards.open([shards_dir], "test")
    found = embed_split(model, shards, batch_size=11, text_batch_size=4, threads=1)  # 11 and 12 images
    try:
        embed_split(model, cut(shards), batch_size=2, threads=1)
        error = ""
    except DataError as raised:
        error = str(raised)
    few = embed_split(model, shards, images=[0], threads=1)  # one rank has nothing to do
    (out / f"{rank}.pickle").write_bytes(pickle.dumps((found, calls, error, few)))
    dist.destroy_process_group()


def test_two_ranks_get_what_one_gets(
    tmp_path: Path, model: SSMKE, shards: ImageTextShards, model_dir: Path, shards_dir: Path
) -> None:
    """With equal numbers of forward passes, as ZeRO-3 needs them, and with one rank's error raised on all."""
    mp.spawn(embed_on_rank, (2, tmp_path, model_dir, shards_dir), nprocs=2)
    alone = embed_split(model, shards)
    results = [pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in range(2)]
    for found, calls, error, few in results:
        assert isinstance(found, SplitEmbeddings)
        torch.testing.assert_close(found.image, alone.image, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.text, alone.text, atol=1e-5, rtol=0)
        assert torch.equal(found.text_image, alone.text_image)
        assert (found.captions, found.keys) == (alone.captions, alone.keys)
        assert (found.image_index, found.skipped) == (alone.image_index, alone.skipped)
        assert calls == results[0][1]
        assert "was cut" in error
        assert few.image_index == [0]
