"""`ssmke data make`: datasets that are computed."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import OmitArgPrefixes

from ssmke.cli.data.terminal import CORES, print_dataset, print_next, progress
from ssmke.data.sources.scenes import ScenesConfig


def make_scenes(
    out: Path,
    config: OmitArgPrefixes[ScenesConfig] = ScenesConfig(),  # noqa: B008 - it is frozen
    workers: int = CORES,
) -> int:
    """Render captioned scenes of shapes: the dataset that the demo trains on.

    Args:
        out: folder to write the dataset to.
        config: size and seed.
        workers: processes.
    """
    from ssmke.data.sources.scenes import write_scenes

    with progress("drawing") as (on_total, on_items):
        manifest = write_scenes(out, config, workers, on_total, on_items)
    print_dataset(out, manifest)
    print_next("ssmke", "data", "show", out, "--out", "scenes.png")
    return 0
