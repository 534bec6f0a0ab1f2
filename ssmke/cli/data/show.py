"""`ssmke data show`: a contact sheet of random samples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from tyro.conf import Positional

from ssmke.cli.data.terminal import console, split_order
from ssmke.errors import BadSample, ConfigError

if TYPE_CHECKING:
    from PIL import Image

    from ssmke.data.dataset import ImageTextShards


def show(
    directory: Positional[str],
    out: Path = Path("sheet.png"),
    split: str = "",
    count: int = 12,
    columns: int = 4,
    seed: int = 0,
) -> int:
    """Draw a contact sheet of random samples with their captions.

    Args:
        directory: folder or address of the dataset.
        out: picture to write; .png, .jpg or .webp.
        split: to draw from; by default the first of train, val, test that is there.
        count: samples.
        columns: samples beside each other.
        seed: another seed shows other samples.
    """
    from ssmke.data.contact_sheet import check_sheet_name, contact_sheet, save_sheet
    from ssmke.data.dataset import ImageTextShards, locate
    from ssmke.data.manifest import Manifest

    for flag, value in (("--count", count), ("--columns", columns)):
        if value < 1:
            raise ConfigError(f"{flag} {value}: must be at least 1")
    if seed < 0:
        raise ConfigError(f"--seed {seed}: must be at least 0")
    if count > 1000:
        raise ConfigError(f"--count {count}: must be at most 1000")
    check_sheet_name(out, "--out")
    manifest = Manifest.load(locate(directory)[0])
    split = split or min(manifest.splits, key=split_order, default="train")
    shards = ImageTextShards.open([directory], split)
    cells = _sample_cells(shards, count, seed)
    facts = f"{len(cells)} of {shards.images:,} images with {shards.pairs:,} captions, drawn with seed {seed}"
    sheet = contact_sheet(cells, columns, f"{manifest.name}, {split}", subtitle=facts)
    high = sheet.height > sheet.width
    save_sheet(sheet, out, smaller=f", or give fewer --count or {'more' if high else 'fewer'} --columns")
    text = f"{len(cells)} samples of {split}: {escape(str(out))} ({sheet.width} x {sheet.height})"
    console().print(text, soft_wrap=True)
    return 0


def _sample_cells(shards: ImageTextShards, count: int, seed: int) -> list[tuple[Image.Image, list[str]]]:
    import numpy as np

    from ssmke.data.contact_sheet import placeholder
    from ssmke.data.decode import decode_image

    rng = np.random.default_rng(seed)
    cells: list[tuple[Image.Image, list[str]]] = []
    for image in rng.choice(shards.images, min(count, shards.images), replace=False).tolist():
        try:
            sample = shards.read(image)
        except BadSample as error:
            cells.append((placeholder(error.reason), [shards.key(image)]))
            continue
        try:
            picture = decode_image(sample.image)
        except BadSample as error:
            picture = placeholder(error.reason)
        # Not cleaned: what is stored is what is to be looked at; what cannot be drawn shows as a box.
        captions = [caption.encode("utf-8", "replace").decode() for caption in sample.captions]
        cells.append((picture, captions))
    return cells
