"""The commands behind a table: what a user would type, in the order in which it has to run.

Every step is a command of this framework that can be run by hand, writes into a folder of its own and is finished when
its result file is there. Pretraining steps share one target cache a data set and teacher (it lies beside the shards),
and all keep their ledgers below one folder, so that `ssmke-cost report` adds them up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ssmke.errors import ConfigError
from ssmke.reproduce.variants import HALVES, SCALE, VARIANTS, Scale, ScaleName, Table


@dataclass(frozen=True)
class Step:
    """One command."""

    name: str
    """Unique among the steps, and the name of its log."""
    command: tuple[str, ...]
    """A launcher script or a sub-command of ``ssmke`` (see ``launches``), and its arguments."""
    launches: bool
    """Whether DeepSpeed starts it."""
    result: Path
    """The file that is there when the step is done."""
    variant: str
    """Key of the variant, or half, that it is for."""


@dataclass(frozen=True)
class Places:
    """Where everything lies. ``root``: runs, results, logs and the report; ``data``: data folders by name."""

    root: Path
    data: Path

    def run(self, variant: str) -> Path:
        """The run folder of a variant."""
        return self.root / "runs" / variant

    def result(self, variant: str, data: str) -> Path:
        """Scores of a variant on a data folder."""
        return self.root / "results" / f"{variant}-{data}.json"


def variants_of(tables: Sequence[Table], scale: ScaleName) -> list[str]:
    """Keys of the variants that ``tables`` train at ``scale``, each once, what others start from before them."""
    keys = [key for table in tables for key in table.variants if scale in VARIANTS[key].flags]
    first = [base for key in keys if (base := VARIANTS[key].starts_from) is not None]
    return list(dict.fromkeys((*first, *keys)))


def steps_of(
    tables: Sequence[Table], scale: ScaleName, places: Places, more: Sequence[str] = (), seed: int = 0
) -> list[Step]:
    """All steps of ``tables``; ``more`` are flags for every model's training (``--optim.epochs 1``)."""
    found: list[Step] = []
    for key in variants_of(tables, scale):
        found += [_distillation(half, scale, places, seed) for half in VARIANTS[key].halves]
        found.append(_training(key, scale, places, more, seed))
        for data in SCALE[scale].scored_on:
            found.append(_scoring(key, SCALE[scale], data, places))
    return found


def recipe_flags(key: str, scale: ScaleName) -> list[str]:
    """``--recipe`` and what the variant changes of it."""
    own = VARIANTS[key].flags[scale]
    return list(own) if "--recipe" in own else ["--recipe", SCALE[scale].recipe, *own]


def missing_data(tables: Sequence[Table], scale: ScaleName, places: Places) -> list[str]:
    """A line for each data folder that is needed and not there: what makes it."""
    found = SCALE[scale]
    how = {name: f"ssmke data get {name} --out DIR" for name in found.scored_on} | dict(found.trains_on)
    for key in variants_of(tables, scale):
        for half in VARIANTS[key].halves:
            how.setdefault(HALVES[half].data[scale][1], HALVES[half].made_by)
    lines = []
    for name, command in how.items():
        folder = places.data / name
        if not (folder / "manifest.json").exists() and not (name == "openwebtext" and folder.exists()):
            lines.append(f"{folder}: {command.replace('DIR', str(folder))}")
    return lines


def require_data(tables: Sequence[Table], scale: ScaleName, places: Places) -> None:
    """ConfigError that says how to make what is missing."""
    missing = missing_data(tables, scale, places)
    if missing:
        raise ConfigError(
            f"--data {places.data} lacks what --scale {scale} trains or is scored on; make it with\n  "
            + "\n  ".join(missing)
        )


def trains_on(key: str, scale: ScaleName) -> tuple[str, ...]:
    """Folders below the data folder that a variant is trained on."""
    return VARIANTS[key].trains_on.get(scale, tuple(SCALE[scale].trains_on))


def _training(key: str, scale: ScaleName, places: Places, more: Sequence[str], seed: int) -> Step:
    variant, run, folders = VARIANTS[key], places.run(key), trains_on(key, scale)
    scored_on = next(
        (name for name in folders if name in SCALE[scale].scored_on), next(iter(SCALE[scale].scored_on))
    )
    script, own = (
        "pretrain.py",
        [word.replace("{root}", str(places.root)) for word in recipe_flags(key, scale)],
    )
    if variant.starts_from is not None:
        script = "finetune_retrieval.py"
        own += ["--init", str(places.run(variant.starts_from) / "model")]
    for half in variant.halves:
        own += [HALVES[half].weights, str(places.run(half) / "model")]
    command = [
        script, "--deepspeed_config", "zero2.json", *own,
        "--data.make", "nothing", "--data.shards", *(str(places.data / name) for name in folders),
        "--data.eval-shards", str(places.data / scored_on), "--data.eval-split", SCALE[scale].split,
        "--seed", str(seed), "--runs-dir", str(places.root / "runs"), "--run-dir", str(run), "--resume", "auto", *more,
    ]  # fmt: skip
    return Step(key, tuple(command), True, run / "results.json", key)


def _distillation(key: str, scale: ScaleName, places: Places, seed: int) -> Step:
    half, run = HALVES[key], places.run(key)
    flag, folder = half.data[scale]
    command = (
        half.launcher, "--deepspeed_config", "zero2.json", "--recipe", half.recipes[scale],
        "--data.make", "nothing", flag, str(places.data / folder),
        "--seed", str(seed), "--runs-dir", str(places.root / "runs"), "--run-dir", str(run), "--resume", "auto",
    )  # fmt: skip
    return Step(key, command, True, run / "results.json", key)


def _scoring(key: str, scale: Scale, data: str, places: Places) -> Step:
    result = places.result(key, data)
    command = (
        "evaluate", "retrieval", "--model", str(places.run(key) / "model"), "--data", str(places.data / data),
        "--split", scale.split, "--out", str(result),
    )  # fmt: skip
    return Step(f"{key}-{data}", command, False, result, key)
