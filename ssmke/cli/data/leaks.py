"""`ssmke data leaks`: evaluation images among training images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table
from tyro.conf import OmitArgPrefixes, Positional

from ssmke.cli.data.outputs import check_outputs
from ssmke.cli.data.terminal import CORES, console, print_next, progress
from ssmke.data.quality.leaks import KINDS, LeakConfig
from ssmke.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from ssmke.data.quality.leaks import Leak, LeakReport, Place

SHOWN = 24
_MEANING = {
    "exact": "the same bytes",
    "near": "the same picture, changed",
    "mirrored": "the same picture, mirrored",
}


def leaks(
    train: Positional[tuple[str, ...]],
    against: tuple[str, ...],
    split: str = "train",
    against_splits: str = "val,test",
    out: Path = Path("leaks.jsonl"),
    sheet: Path | None = None,
    config: OmitArgPrefixes[LeakConfig] = LeakConfig(),  # noqa: B008 - it is frozen
    workers: int = CORES,
) -> int:
    """Find evaluation images among training images: copies, changed copies, mirrored ones; exit code 1 if any.

    A folder may be on both sides, to check its train split against its own val and test.

    Args:
        train: folders of the datasets to train on.
        against: folders of the datasets to evaluate on.
        split: of the datasets to train on.
        against_splits: of the datasets to evaluate on; splits that one lacks are passed over.
        out: file to list the leaks in, one JSON object a line: what `ssmke data reshard --drop` reads.
        sheet: picture to draw leaks on, side by side; the least certain first.
        config: what counts as a copy.
        workers: processes.
    """
    from ssmke.data.atomic import make_folder
    from ssmke.data.contact_sheet import check_sheet_name
    from ssmke.data.quality.inputs import local_folders
    from ssmke.data.quality.leaks import find_leaks, write_leaks

    if not train:
        raise ConfigError("TRAIN is missing: give the folders of the datasets to train on, then --against")
    if not against:
        raise ConfigError("--against is empty: give the folders of the datasets to evaluate on")
    splits = tuple(name.strip() for name in against_splits.split(",") if name.strip())
    if not splits:
        raise ConfigError(f"--against-splits {against_splits!r}: must name a split, or several with commas")
    if sheet is not None:
        check_sheet_name(sheet, "--sheet")
    check_outputs({"--out": out, "--sheet": sheet}, [*train, *against])
    folders, evaluation = local_folders(train, "TRAIN"), local_folders(against, "--against")
    with progress("fingerprinting") as (on_total, on_items):
        report = find_leaks(folders, evaluation, config, split, splits, workers, on_total, on_items)
    make_folder(out.parent)
    write_leaks(out, report.leaks)
    _print_report(report, split, splits)
    if not report.leaks:
        return 0
    say = console().print
    say(f"All of them, line by line: {escape(str(out))}", soft_wrap=True)
    if sheet is not None:
        say(f"{_draw(report.leaks, sheet)}: {escape(str(sheet))}", soft_wrap=True)
    first = folders[0].resolve()  # "." and ".." have no name of their own
    clean = first.parent / f"{first.name}-clean"
    print_next("ssmke", "data", "reshard", *train, "--out", clean, "--drop", out)
    return 1


def _print_report(report: LeakReport, split: str, splits: Sequence[str]) -> None:
    from ssmke.words import counted

    title = f"{report.train_images:,} images of {split} against {report.against_images:,} of {' and '.join(splits)}"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("copies")
    for name in ("pairs", "training images", "evaluation images"):
        table.add_column(name, justify="right")
    rows = [(_MEANING[kind], [leak for leak in report.leaks if leak.kind == kind]) for kind in KINDS]
    for name, found in [*rows, ("all", list(report.leaks))]:
        sides = len({leak.train for leak in found}), len({leak.against for leak in found})
        table.add_row(name, f"{len(found):,}", *(f"{count:,}" for count in sides))
    out = console()
    out.print(table)
    for reason, count in sorted(report.unreadable.items()):
        out.print(f"[yellow]{count:,} could only be compared by their bytes: {escape(reason)}[/]")
    leaking = counted(report.images, "training image")
    result = f"[red]leaks: {leaking}[/]" if report.leaks else "[green]no leaks[/]"
    looked = counted(report.candidates, "near pair")
    out.print(f"{result}; {looked} looked at; {report.seconds:.1f} s.")


def _draw(leaks: Sequence[Leak], path: Path) -> str:
    """Write the contact sheet; says what is on it."""
    from ssmke.data.contact_sheet import WRONG, contact_sheet, placeholder, save_sheet

    shown = sorted(leaks, key=lambda leak: (leak.correlation, -leak.distance))[:SHOWN]
    found = _read({place for leak in shown for place in (leak.train, leak.against)})
    cells: list[tuple[Image.Image, list[str]]] = []
    for leak in shown:
        how = "same bytes" if leak.kind == "exact" else f"{leak.kind}: {leak.correlation:.3f}"
        for place, what in ((leak.train, ""), (leak.against, f"{how}, {leak.distance} bits apart")):
            picture, caption = found.get(place) or (placeholder("not there any more"), "")
            cells.append((picture, [f"{Path(place.dir).name}, {place.split}: {place.key}", what or caption]))
    facts = f"{len(shown)} of {len(leaks):,} pairs, the least certain first: training in red, evaluation beside it"
    columns, borders = 4 if len(shown) > 1 else 2, [WRONG, None] * len(shown)
    sheet = contact_sheet(cells, columns, "Leaks", subtitle=facts, borders=borders, max_lines=2)
    save_sheet(sheet, path, "--sheet")
    return f"{len(shown)} of {len(leaks):,} pairs shown"


def _read(places: set[Place]) -> dict[Place, tuple[Image.Image, str]]:
    """Picture and first caption of images; goes through their shards once."""
    from ssmke.data.contact_sheet import placeholder
    from ssmke.data.decode import decode_image
    from ssmke.data.quality.inputs import input_shards
    from ssmke.data.quality.leaks import Place
    from ssmke.errors import BadSample

    found: dict[Place, tuple[Image.Image, str]] = {}
    for folder, split in sorted({(place.dir, place.split) for place in places}):
        for shard in input_shards([Path(folder)], [split]):
            index = shard.open()
            for number, key in enumerate(index.keys.tolist()):
                place = Place(folder, split, key)
                if place not in places:
                    continue
                try:
                    sample = index.read(number)
                    caption = sample.captions[0] if sample.captions else ""
                    found[place] = decode_image(sample.image), caption.encode("utf-8", "replace").decode()
                except BadSample as error:
                    found[place] = placeholder(error.reason), ""
    return found
