"""`ssmke data get`: a public dataset from its host to shards, in one command that may be stopped and repeated.

Terms, files, disk and time are printed first, and the user is asked. Archives (COCO, Flickr) are fetched, checked
and imported; of lists of links (CC3M, CC12M, SBU, any other) the images are fetched by img2dataset, then imported.
Downloads lie in ``OUT.downloads`` beside the dataset and are deleted at the end; what was fetched, from where, with
which digests and with which losses stays in ``OUT/downloads.json``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import OmitArgPrefixes
from tyro.extras import SubcommandApp

from ssmke.cli.data.get.archived import get_archived
from ssmke.cli.data.get.config import Flat, WebConfig
from ssmke.cli.data.get.listed import get_links, get_listed
from ssmke.data.sources import catalogue

Web = OmitArgPrefixes[WebConfig]
WEB = WebConfig()


def register(app: SubcommandApp) -> None:
    """Add the commands of `ssmke data get`."""
    app.command(name="coco-captions")(get_coco_captions)
    app.command(name="flickr30k")(get_flickr30k)
    app.command(name="flickr8k")(get_flickr8k)
    app.command(name="cc3m")(get_cc3m)
    app.command(name="cc12m")(get_cc12m)
    app.command(name="sbu")(get_sbu)
    app.command(name="urls")(get_urls)


def get_coco_captions(config: Flat, splits: tuple[str, ...] = ()) -> int:
    """Fetch and import COCO captions, on Karpathy's splits: 123,287 images, 20 GB.

    Args:
        config: where to, and how.
        splits: only these; val and test alone need a third of the download.
    """
    return get_archived(catalogue.COCO, config, splits)


def get_flickr30k(config: Flat, splits: tuple[str, ...] = ()) -> int:
    """Fetch and import Flickr30k, on Karpathy's splits: 31,014 images, 4.4 GB.

    Args:
        config: where to, and how.
        splits: only these.
    """
    return get_archived(catalogue.FLICKR30K, config, splits)


def get_flickr8k(config: Flat, splits: tuple[str, ...] = ()) -> int:
    """Fetch and import Flickr8k, on Karpathy's splits: 8,000 images, 1.2 GB.

    Args:
        config: where to, and how.
        splits: only these.
    """
    return get_archived(catalogue.FLICKR8K, config, splits)


def get_cc3m(
    config: Flat,
    web: Web = WEB,
    urls: Path | None = None,
    source: Literal["links", "hub"] = "links",
) -> int:
    """Fetch and import Conceptual Captions 3M from its 3.3 million links, or from the hub's copy.

    Args:
        config: where to, and how.
        web: how links are fetched.
        urls: the list, if you have it (Train_GCC-training.tsv); by default it is fetched.
        source: links: ask every host; hub: take the tars that pixparse/cc3m-wds has of 2.9 million of them.
    """
    return get_listed(catalogue.CC3M, config, web, urls, source)


def get_cc12m(
    config: Flat,
    web: Web = WEB,
    urls: Path | None = None,
    source: Literal["links", "hub"] = "links",
) -> int:
    """Fetch and import Conceptual 12M from its 12.4 million links, or from the hub's copy.

    Args:
        config: where to, and how.
        web: how links are fetched.
        urls: the list, if you have it (cc12m.tsv); by default it is fetched.
        source: links: ask every host; hub: take the tars that pixparse/cc12m-wds has of 11 million of them.
    """
    return get_listed(catalogue.CC12M, config, web, urls, source)


def get_sbu(
    config: Flat,
    web: Web = WEB,
    urls: Path | None = None,
) -> int:
    """Fetch and import SBU's million captioned photos from their links.

    Args:
        config: where to, and how.
        web: how links are fetched.
        urls: the list, if you have it: sbu-captions-all.tar.gz or .json, or the folder of the two text files of the
            older form; by default it is fetched.
    """
    return get_listed(catalogue.SBU, config, web, urls)


def get_urls(
    urls: Path,
    config: Flat,
    web: Web = WEB,
    url_column: str = "url",
    caption_column: str = "caption",
    name: str = "",
) -> int:
    """Fetch and import the images of any list of links with captions.

    Args:
        urls: csv, tsv (both also .gz) or parquet file.
        config: where to, and how.
        web: how links are fetched.
        url_column: name of the column of links; its number, from 0, where the file has no header.
        caption_column: name of the column of captions; its number, from 0, where the file has no header.
        name: of the dataset; by default the file's.
    """
    return get_links(name or urls.name.partition(".")[0], urls, url_column, caption_column, config, web)
