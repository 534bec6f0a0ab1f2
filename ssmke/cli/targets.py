"""`ssmke targets`: build, verify and look at the teacher-target cache.

`build` and `verify` take the flags of a training run (``--recipe NAME --targets.views 7 ...``), because the cache
is what that run needs. Training builds what is missing by itself; `build` is for doing it beforehand, on as many
processes as a launcher starts: ``torchrun --nproc-per-node 8 --no-python ssmke targets build --recipe ...``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from ssmke.console import CleanConsole
from ssmke.errors import ConfigError, DataError, TargetCacheError

if TYPE_CHECKING:
    import torch

USAGE = """usage: ssmke targets build  [--recipe NAME] [--field value ...]   compute what is missing
       ssmke targets verify [--recipe NAME] [--field value ...]   digests of all, some computed again
       ssmke targets show FOLDER                                  what a cache is and whether it has paid off"""


def main(argv: Sequence[str]) -> int:
    """Runs ``ssmke targets ARGV``; gives the exit code (1: `verify` found problems)."""
    command, rest = (argv[0], argv[1:]) if argv else ("", ())
    if command == "build":
        return build(rest)
    if command == "verify":
        return verify(rest)
    if command == "show" and len(rest) == 1 and not rest[0].startswith("-"):
        return show(Path(rest[0]))
    print(USAGE)
    return 0 if command in ("-h", "--help") or set(rest) & {"-h", "--help"} else 2


def build(argv: Sequence[str]) -> int:
    """Computes what ``argv``'s recipe caches: targets, and the features of frozen encoders.

    With several ranks, each takes its share of shards."""
    import torch.distributed as dist

    from ssmke.objectives.gather import rank
    from ssmke.recipes import parse_recipe
    from ssmke.training.prepare import (
        build_module,
        load_teacher,
        open_shards,
        prepare_targets,
        prepare_text,
        prepare_tokens,
    )
    from ssmke.training.ranks import Placement

    recipe = parse_recipe(argv, "ssmke targets build")
    placement = Placement.of(os.environ)
    device = _device(placement.local_rank)
    if placement.nodes * placement.local_size > 1:
        dist.init_process_group("gloo")
    console = CleanConsole(quiet=rank() != 0)
    say = console.print
    shards = open_shards(recipe, say)
    if recipe.targets.mode == "online" and not recipe.targets.frozen_tokens:
        raise ConfigError("--targets.mode online caches nothing: leave it out")
    teacher = load_teacher(recipe, device, say)
    if teacher is None and not recipe.targets.frozen_tokens:
        raise ConfigError("--loss.distillation none needs no targets: choose mse, kl or contrastive")
    prepare_targets(recipe, shards, teacher, say)
    if recipe.targets.frozen_tokens:
        student = build_module(recipe, teacher, shards.images, device, say).student
        prepare_tokens(recipe, shards, student, say)
        prepare_text(recipe, shards, student, say)
    if dist.is_initialized():
        dist.destroy_process_group()
    return 0


def _device(number: int = 0) -> torch.device:
    """The GPU of this rank, computing fp32 as training does (`ssmke.training.launch`), or the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.set_float32_matmul_precision("high")
    return torch.device("cuda", number)


def verify(argv: Sequence[str]) -> int:
    """Checks the caches of ``argv``'s recipe; 1 when anything is wrong."""
    from ssmke.recipes import parse_recipe
    from ssmke.targets.build import RowSource
    from ssmke.targets.verify import verify_targets
    from ssmke.training.prepare import (
        build_module,
        load_teacher,
        open_shards,
        target_rows,
        text_rows,
        token_rows,
    )

    recipe = parse_recipe(argv, "ssmke targets verify")
    console = CleanConsole()
    shards = open_shards(recipe, console.print)
    device = _device()
    teacher = load_teacher(recipe, device, console.print)
    sources: list[RowSource] = [] if teacher is None else [target_rows(recipe, teacher)]
    if recipe.targets.frozen_tokens:
        student = build_module(recipe, teacher, shards.images, device, console.print).student
        sources.append(token_rows(recipe, student))
        if recipe.targets.frozen_text:
            sources.append(text_rows(recipe, student))
    if not sources:
        raise ConfigError("--loss.distillation none has no targets to verify")
    wrong = 0
    for source in sources:
        report = verify_targets(shards, source, recipe.targets)
        for problem in report.problems:
            console.print(f"[red]{escape(problem)}")
        console.print(
            f"{source.identity.folder_name}: {report.shards} shards, {report.images:,} images: {len(report.problems)} "
            f"problems; {report.recomputed} rows computed again, at most {report.largest_distance:.1e} of their length "
            "away"
        )
        wrong += len(report.problems)
    return 1 if wrong else 0


def show(folder: Path) -> int:
    """Prints what the cache in ``folder`` is, how whole it is, and when it has paid off."""
    from ssmke.targets.cache import ShardTargets, load_identity

    identity = load_identity(folder)
    if identity is None:
        raise TargetCacheError(
            f"{folder} has no cache.json: give the folder of a cache, SHARDS/targets/<teacher>-<output>-v<views>"
        )
    records = [
        ShardTargets(**json.loads(path.read_text(encoding="utf-8")))
        for path in sorted(folder.glob("*.json"))
        if path.name != "cache.json"
    ]
    images, seconds = sum(r.images for r in records), sum(r.seconds for r in records)
    teacher, views = identity["teacher"], identity["views"]
    captions = teacher.get("rows") == "captions"
    size = sum(path.stat().st_size for path in folder.glob("*.npy"))
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0), title=str(folder), title_justify="left")
    rows = {
        "model": f"{teacher['name']} ({teacher['output']}, {teacher['dim']} wide)",
        "weights": f"sha256 {teacher['digest'][:16]}...",
        "rows": "a caption each, of at most {} tokens".format(teacher["max_tokens"])
        if captions
        else f"{views} of {identity['image_size']} pixels an image "
        + ("(canonical: short side, centre crop)" if views == 1 else f"({identity['augmentation']})"),
        "images": f"{images:,} in {len(records)} shards, {sum(len(r.bad) for r in records)} "
        + ("that cannot be read" if captions else "not decodable"),
        "size": f"{decimal(size)} ({identity['dtype']})",
        "cost": f"{seconds:,.1f} device-seconds"
        + (f", {images * views / seconds:,.0f} images/s" if seconds else ""),
        "paid off": "after 1 epoch: each caption is encoded once"
        if captions
        else _break_even(folder, records, images, views),
    }
    for name, value in rows.items():
        table.add_row(name, escape(value))
    CleanConsole().print(table)
    return 0


def _break_even(folder: Path, records: Sequence[object], images: int, views: int) -> str:
    from ssmke.data.manifest import Manifest

    try:
        manifest = Manifest.load(folder.parent.parent)
    except DataError:
        return "unknown: the cache does not lie in its shard folder"
    cached = {path.stem for path in folder.glob("*.json")}
    pairs = sum(
        info.captions
        for split in manifest.splits.values()
        for info in split.shards
        if Path(info.file).stem in cached
    )
    if not images or not pairs:
        return "nothing is cached yet"
    return (
        f"after {images * views / pairs:.2f} epochs: it took {images * views:,} forward passes, an epoch "
        f"without it takes {pairs:,}"
    )
