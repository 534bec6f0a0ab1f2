"""What can be checked of the catalogue without the network: that its facts agree with each other."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest

from ssmke.data.sources.catalogue import (
    CC3M,
    CC12M,
    COCO,
    FLICKR8K,
    FLICKR30K,
    SBU,
    Archive,
    Dataset,
    UrlList,
)

ARCHIVED, LISTED = (COCO, FLICKR30K, FLICKR8K), (CC3M, CC12M, SBU)
ARCHIVES = [a for d in ARCHIVED for a in d.archives] + [d.archive for d in LISTED]


@pytest.mark.parametrize("dataset", [*ARCHIVED, *LISTED], ids=lambda dataset: dataset.name)
def test_every_dataset_says_its_terms_and_where_it_is(dataset: Dataset | UrlList) -> None:
    assert len(dataset.terms) > 80
    for address in (dataset.home, dataset.terms_link):
        assert urlsplit(address).scheme in ("http", "https")
        assert urlsplit(address).netloc


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda archive: archive.name)
def test_digests_are_digests_and_names_are_names(archive: Archive) -> None:
    assert archive.digest is not None
    algorithm, value = archive.digest
    assert re.fullmatch("[0-9a-f]+", value)
    assert len(value) == {"sha256": 64, "md5": 32}[algorithm]
    assert "/" not in archive.name
    assert archive.size > 1_000_000


def test_what_has_an_exact_size_has_a_digest_as_strong() -> None:
    assert all(
        archive.digest is not None and archive.digest[0] == "sha256" for archive in ARCHIVES if archive.bytes
    )


def test_coco_for_evaluation_needs_a_third_of_the_download() -> None:
    assert COCO.images == 123_287
    evaluation = COCO.archives_for(["val", "test"])
    assert [archive.name for archive in evaluation] == ["caption_datasets.zip", "val2014.zip"]
    assert COCO.archives_for([]) == COCO.archives == COCO.archives_for(["test", "train"])
    assert COCO.bytes_of([]) == COCO.image_bytes
    assert COCO.bytes_of(["val", "test"]) == pytest.approx(COCO.image_bytes * 10_000 / 123_287, abs=1)
    # Its JPEGs are stored in the zips as they are, so the zips are the images, and no more is needed.
    assert COCO.image_bytes == sum(archive.size for archive in COCO.archives if "2014" in archive.name)


def test_pairs_fit_images() -> None:
    for dataset in ARCHIVED:
        assert 5 <= dataset.pairs / dataset.images < 5.01
    for listed in LISTED:
        assert listed.alive is None or 0.5 < listed.alive < 1
        assert listed.hub_pairs <= listed.pairs
