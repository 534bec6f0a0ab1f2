"""What is known of the public datasets: where they are, how large, how to check them, under which terms.

Facts only, each with where it was read; all were read on 2026-11-24 from public repositories, not from the
hosts themselves. A size or digest that nobody published is None: then the digest of the first download is
recorded and must stay the same (`ssmke.data.download.archives`). Where the facts are from:

- COCO's zips and Karpathy's splits: sizes and SHA-256 as recorded by TensorFlow Datasets, in
  tensorflow/datasets, url_checksums/coco_captions.txt. Terms: cocodataset/cocodataset.github.io,
  dataset/termsofuse.htm. Images and pairs: those of the Karpathy splits, as many papers' code states them.
- Flickr8k, Flickr30k: addresses and MD5 as checked by torchvision for R, in mlverse/torchvision,
  R/dataset-flickr.R; sizes were only found rounded ("1 GB" to "1.2 GB", "4.1 GB" to "4.4 GB": the larger counts).
  Terms: BryanPlummer/flickr30k_entities, README.
- CC3M, CC12M, SBU lists: sizes, SHA-256 and numbers of rows as recorded by Hugging Face Datasets, in
  huggingface/datasets, datasets/{conceptual_captions,conceptual_12m,sbu_captions}/dataset_infos.json. They were
  fetched there without any form, though Google's page for CC3M has one.
- Dead links: CC12M, google-research-datasets/conceptual-12m issue 9 (October 2025: 7,740,121 of 12,423,374
  came); CC3M, rom1504/img2dataset issue 391 (January 2024: 70 % is what the author expects). For SBU none found.
- The hub's copies: the numbers that mlfoundations/open_clip gives for CC3M and CC12M, and users for the copies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from types import MappingProxyType


@dataclasses.dataclass(frozen=True)
class Archive:
    """A file that a dataset is distributed in."""

    name: str
    """What it is called here."""
    url: str
    bytes: int | None
    """Size, if it was published exactly."""
    digest: tuple[str, str] | None = None
    """Algorithm and value, if one was published."""
    about: int = 0
    """Size for estimates, where only a rounded one was published."""
    images_in: str = ""
    """Folder of images that a compressed tar holds, which is unpacked since it cannot be read in place."""
    splits: tuple[str, ...] = ()
    """Splits that need it; empty: all."""

    @property
    def size(self) -> int:
        """Exact or rounded."""
        return self.about if self.bytes is None else self.bytes


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A public dataset."""

    name: str
    title: str
    home: str
    terms: str
    """Licence and terms, in plain words."""
    terms_link: str
    split_images: Mapping[str, int]
    """Images of each split."""
    pairs: int
    archives: tuple[Archive, ...]
    image_bytes: int
    """Of all images as they are stored; rounded where the archive is."""

    @property
    def images(self) -> int:
        return sum(self.split_images.values())

    def archives_for(self, splits: Collection[str]) -> tuple[Archive, ...]:
        """What is needed to import ``splits``; all if there are none."""
        return tuple(a for a in self.archives if not splits or not a.splits or set(a.splits) & set(splits))

    def bytes_of(self, splits: Collection[str]) -> int:
        """Of the images of ``splits``, about; of all if there are none."""
        share = sum(n for name, n in self.split_images.items() if not splits or name in splits) / self.images
        return round(self.image_bytes * share)


@dataclasses.dataclass(frozen=True)
class UrlList:
    """A public dataset that is a list of links with captions."""

    name: str
    title: str
    home: str
    terms: str
    terms_link: str
    pairs: int
    """Links of the list; each is one image with one caption."""
    archive: Archive
    """The list."""
    url_column: str
    caption_column: str
    alive: float | None
    """Share of links that still gave an image when somebody last counted; None: nobody says."""
    alive_source: str
    images_per_second: float
    """Of one process, measured by img2dataset's authors."""
    speed_source: str
    hub: str = ""
    """Address of a copy with images, as webdataset tars."""
    hub_pairs: int = 0
    by_hand: str = ""
    """Where to get the list with a browser, if the address does not answer."""


_FLICKR = (
    "The photos belong to the people who put them on Flickr, whose terms of use hold; they are given to "
    "researchers and teachers for non-commercial use only."
)
_GOOGLE = (
    "Google lets anybody use the list for any purpose, asks to be named as its source, and gives no warranty. The "
    "images behind the links belong to their owners: whether you may use them is for you to find out."
)
_KARPATHY = Archive(
    "caption_datasets.zip",
    "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
    36_745_453,
    ("sha256", "4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817"),
)
_CC12M_SPEED = "img2dataset's CC12M run: 630 images/s with 16 processes on 16 cores and 2 Gbit/s, 2022"

COCO = Dataset(
    name="coco-captions",
    title="COCO captions, Karpathy's splits",
    home="https://cocodataset.org",
    terms=(
        "The captions are under the Creative Commons Attribution 4.0 licence. The COCO consortium does not own "
        "the images: Flickr's terms of use hold, and whoever uses them is responsible for it."
    ),
    terms_link="https://cocodataset.org/#termsofuse",
    split_images=MappingProxyType({"train": 113_287, "val": 5_000, "test": 5_000}),
    pairs=616_767,
    archives=(
        _KARPATHY,
        Archive(
            "val2014.zip",
            "http://images.cocodataset.org/zips/val2014.zip",
            6_645_013_297,
            ("sha256", "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0"),
        ),
        Archive(
            "train2014.zip",
            "http://images.cocodataset.org/zips/train2014.zip",
            13_510_573_713,
            ("sha256", "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775"),
            splits=("train",),  # Karpathy's val and test, and a quarter of train, are of val2014
        ),
    ),
    image_bytes=20_155_587_010,  # of the two zips, which store JPEGs as they are
)

FLICKR30K = Dataset(
    name="flickr30k",
    title="Flickr30k, Karpathy's splits",
    home="http://shannon.cs.illinois.edu/DenotationGraph/",
    terms=f"{_FLICKR} The University of Illinois asks you to fill in the form on its page before you take them.",
    terms_link="http://shannon.cs.illinois.edu/DenotationGraph/",
    split_images=MappingProxyType({"train": 29_000, "val": 1_014, "test": 1_000}),
    pairs=155_070,
    archives=(
        _KARPATHY,
        Archive(
            "flickr30k-images.tar.gz",
            "https://uofi.app.box.com/shared/static/1cpolrtkckn4hxr1zhmfg0ln9veo6jpl.gz",
            None,
            ("md5", "985ac761bbb52ca49e0c474ae806c07c"),
            about=4_400_000_000,
            images_in="flickr30k-images",
        ),
    ),
    image_bytes=4_400_000_000,
)

FLICKR8K = Dataset(
    name="flickr8k",
    title="Flickr8k, Karpathy's splits",
    home="http://nlp.cs.illinois.edu/HockenmaierGroup/8k-pictures.html",
    terms=(
        f"{_FLICKR} The University of Illinois gave them out against a form (forms.illinois.edu/sec/1713398); "
        "this is a copy that somebody else keeps on GitHub."
    ),
    terms_link="https://github.com/jbrownlee/Datasets/releases/tag/Flickr8k",
    split_images=MappingProxyType({"train": 6_000, "val": 1_000, "test": 1_000}),
    pairs=40_000,
    archives=(
        _KARPATHY,
        Archive(
            "Flickr8k_Dataset.zip",
            "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k/Flickr8k_Dataset.zip",
            None,
            ("md5", "f18a1e2920de5bd84dae7cf08ec78978"),
            about=1_200_000_000,
        ),
    ),
    image_bytes=1_200_000_000,
)

CC3M = UrlList(
    name="cc3m",
    title="Conceptual Captions (CC3M), training list",
    home="https://github.com/google-research-datasets/conceptual-captions",
    terms=_GOOGLE,
    terms_link="https://ai.google.com/research/ConceptualCaptions/download",
    pairs=3_318_333,
    archive=Archive(
        "Train_GCC-training.tsv",
        "https://storage.googleapis.com/gcc-data/Train/GCC-training.tsv",
        564_607_502,
        ("sha256", "eab84e5ebc713a41a6b1f6ae6fa3d6617821a13b03fe24e16004cc4aac189635"),
    ),
    url_column="1",
    caption_column="0",
    alive=0.70,
    alive_source="the author of img2dataset, January 2024; fewer since",
    images_per_second=850 / 16,
    speed_source="img2dataset's CC3M run: 850 images/s with 16 processes on 16 cores and 2 Gbit/s, 2022",
    hub="hf://datasets/pixparse/cc3m-wds",
    hub_pairs=2_905_954,
    by_hand='https://ai.google.com/research/ConceptualCaptions/download ("Training split")',
)

CC12M = UrlList(
    name="cc12m",
    title="Conceptual 12M",
    home="https://github.com/google-research-datasets/conceptual-12m",
    terms=_GOOGLE,
    terms_link="https://github.com/google-research-datasets/conceptual-12m",
    pairs=12_423_374,
    archive=Archive(
        "cc12m.tsv",
        "https://storage.googleapis.com/conceptual_12m/cc12m.tsv",
        2_707_204_412,
        ("sha256", "892b549d493c7e75ade10d46c88c9ddabb097790d912b74cfc0ea4ff035ec2c3"),
    ),
    url_column="0",
    caption_column="1",
    alive=7_740_121 / 12_423_374,
    alive_source="issue 9 of google-research-datasets/conceptual-12m, October 2025",
    images_per_second=630 / 16,
    speed_source=_CC12M_SPEED,
    hub="hf://datasets/pixparse/cc12m-wds",
    hub_pairs=10_968_539,
    by_hand='https://github.com/google-research-datasets/conceptual-12m ("Click here to download")',
)

SBU = UrlList(
    name="sbu",
    title="SBU captioned photos",
    home="https://www.cs.rice.edu/~vo9/sbucaptions/",
    terms=(
        "Its authors name no licence. The photos belong to the people who put them on Flickr, whose terms of use "
        "hold; ask the authors before you use it for more than research."
    ),
    terms_link="https://www.cs.rice.edu/~vo9/sbucaptions/",
    pairs=1_000_000,
    archive=Archive(
        "sbu-captions-all.tar.gz",
        "https://www.cs.rice.edu/~vo9/sbucaptions/sbu-captions-all.tar.gz",
        49_787_719,
        ("sha256", "3d145fb58fea5bf5680e71c82e93d336c1a06d726dbea7f7702d49f5bf2ff532"),
    ),
    url_column="url",
    caption_column="caption",
    alive=None,
    alive_source="no count was found",
    images_per_second=630 / 16,
    speed_source=_CC12M_SPEED,
    by_hand="https://www.cs.rice.edu/~vo9/sbucaptions/",
)
