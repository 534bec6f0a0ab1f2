"""`ssmke data reshard`: datasets into new shards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction

from ssmke.cli.data.terminal import CORES, console, print_dataset, print_next, progress
from ssmke.data.importing import StorageConfig
from ssmke.data.quality.cleaning import CleaningConfig

if TYPE_CHECKING:
    from ssmke.data.reshard import ReshardReport


def reshard(
    inputs: Positional[tuple[str, ...]],
    out: Path,
    name: str = "",
    storage: OmitArgPrefixes[StorageConfig] = StorageConfig(),  # noqa: B008 - it is frozen
    short_side: int = 0,
    sources: str = "",
    drop: UseAppendAction[tuple[Path, ...]] = (),
    drop_duplicates: bool = False,
    clean: CleaningConfig = CleaningConfig(),  # noqa: B008 - it is frozen
    clean_splits: str = "train",
    workers: int = CORES,
) -> int:
    """Merge datasets into new shards: other sizes, smaller images, cleaned, without copies or leaks.

    The inputs are only read. Stopped, the same command goes on.

    Args:
        inputs: folders of the datasets, in the order in which their images are wanted.
        out: folder to write the new dataset to.
        name: of the new dataset; by default the names of the inputs, joined by +.
        storage: how images are stored.
        short_side: scale images with a shorter side above this down to it, as JPEG; 0 does not.
        sources: keep only images of these sources, with commas; by default of all.
        drop: a file that `ssmke data leaks` wrote, to leave out the training images that it names; repeatable.
        drop_duplicates: leave out images of the same bytes as one before, joining their captions onto it.
        clean: what else is left out.
        clean_splits: splits that --clean and --drop-duplicates are for, with commas; others stay comparable.
        workers: processes.
    """
    from ssmke.data.importing import SKIPPED_NAME
    from ssmke.data.quality.inputs import local_folders
    from ssmke.data.reshard import ReshardConfig
    from ssmke.data.reshard import reshard as run

    config = ReshardConfig(
        inputs=local_folders(inputs, "IN"),
        out=out,
        name=name,
        storage=storage,
        short_side=short_side,
        sources=_names(sources),
        drop=drop,
        drop_duplicates=drop_duplicates,
        clean=clean,
        clean_splits=_names(clean_splits),
    )
    with progress("resharding") as (on_total, on_items):
        report = run(config, workers, on_total, on_items)
    print_dataset(out, report.result.manifest)
    _print_report(report)
    if report.result.manifest.skipped:
        console().print(f"What was skipped, line by line: {escape(str(out / SKIPPED_NAME))}", soft_wrap=True)
    print_next("ssmke", "data", "verify", out)
    return 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _print_report(report: ReshardReport) -> None:
    from ssmke.words import counted

    out, result = console(), report.result
    if report.joined:
        captions = counted(report.joined, "caption")
        out.print(
            f"{captions} of duplicates went to the images kept; those that these had are skipped as repeated."
        )
    if report.renamed:
        out.print(f"{counted(report.renamed, 'image')} got a new key: one before had the same.")
    for folder, skipped in report.before.items():
        for reason, count in sorted(skipped.items()):
            out.print(
                f"[dim]left out before, in {escape(folder)}: {count:,} {escape(reason)}[/]", soft_wrap=True
            )
    kept = f", {result.reused:,} kept from before" if result.reused else ""
    out.print(
        f"{counted(report.images, 'image')} in, {result.manifest.images:,} out; "
        f"{counted(result.written, 'shard')} written{kept}; {result.seconds:.1f} s."
    )
