"""The commands behind a table: what a user would type, in the order in which it has to run.

Every step is a command of this framework that can be run by hand, writes into a folder of its own and is finished when
its result file is there. Pretraining steps share one target cache a data set and teacher (it lies beside the shards),
and all keep their ledgers below one folder, so that `ssmke-cost report` adds them up. With several seeds everything
that learns is done once for each, all of one seed before the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssmke.errors import ConfigError
from ssmke.reproduce.suites import ALONE, CUT, FINETUNED, ZERO_SHOT, Alone, Suite, halves_of
from ssmke.reproduce.variants import HALVES, SCALE, VARIANTS, Scale, ScaleName, Table


@dataclass(frozen=True)
class Step:
    """One command."""

    name: str
    """Unique among the steps, and the name of its log."""
    command: tuple[str, ...]
    """A launcher script (see ``launches``), ``-m`` and a module, or a sub-command of ``ssmke``; and its arguments."""
    launches: bool
    """Whether DeepSpeed starts it."""
    result: Path
    """The file that is there when the step is done."""
    variant: str
    """Key of the variant, half or row that it is for."""
    timed_as: str = ""
    """Its name with the first seed; its own where that is empty."""


@dataclass(frozen=True)
class Places:
    """Where everything lies. ``root``: runs, results, logs and the report; ``data``: data folders by name."""

    root: Path
    data: Path
    seeds: tuple[int, ...] = (0,)
    """Of all trainings; what the first makes has plain names."""

    def again(self, seed: int | None) -> str:
        """What the names of a further seed end in; nothing for the first, which None stands for."""
        return "" if seed is None or seed == self.seeds[0] else f"-seed{seed}"

    def run(self, variant: str, seed: int | None = None) -> Path:
        """The run folder of a variant."""
        return self.root / "runs" / f"{variant}{self.again(seed)}"

    def result(self, variant: str, data: str, seed: int | None = None) -> Path:
        """Scores of a variant on a data folder."""
        return self.root / "results" / f"{variant}{self.again(seed)}-{data}.json"


def variants_of(tables: Sequence[Table], scale: ScaleName) -> list[str]:
    """Keys of the variants that ``tables`` train at ``scale``, each once, what others start from before them."""
    tables = [table for table in tables if table.kind != "alone" or scale in FINETUNED]
    keys = [key for table in tables for key in table.variants if scale in VARIANTS[key].flags]
    first = [base for key in keys if (base := VARIANTS[key].starts_from) is not None]
    return list(dict.fromkeys((*first, *keys)))


def steps_of(
    tables: Sequence[Table], scale: ScaleName, places: Places, more: Sequence[str] = ()
) -> list[Step]:
    """All steps of ``tables``, each once; ``more`` are flags for every model's training (``--optim.epochs 1``)."""
    found: dict[str, Step] = {}
    for seed in places.seeds:
        for step in _steps_of_seed(tables, scale, places, more, seed):
            found.setdefault(step.name, step)
    return list(found.values())


def _steps_of_seed(
    tables: Sequence[Table], scale: ScaleName, places: Places, more: Sequence[str], seed: int
) -> Iterator[Step]:
    named = zero_shot_of(tables, scale)
    for key in variants_of(tables, scale):
        for half in VARIANTS[key].halves:
            yield _distillation(half, scale, places, seed)
        yield _training(key, scale, places, more, seed)
        for data in SCALE[scale].scored_on:
            yield _scoring(key, SCALE[scale], data, places, seed)
        if key in named:
            yield _evaluation(key, ZERO_SHOT[scale], str(places.run(key, seed) / "model"), places, seed)
    if scale in FINETUNED and any(table.kind == "alone" for table in tables):
        yield from _steps_alone(scale, places, more, seed)


def zero_shot_of(tables: Sequence[Table], scale: ScaleName) -> list[str]:
    """Keys of the variants that classify by the names of classes at ``scale``."""
    if scale not in ZERO_SHOT:
        return []
    return [
        key for table in tables if table.zero_shot for key in table.variants if scale in VARIANTS[key].flags
    ]


def suite_data(suite: Suite, places: Places) -> Path:
    """The folder of a suite; what a step makes lies beside the results."""
    return (places.data if suite.made_by else places.root) / suite.data


def _steps_alone(scale: ScaleName, places: Places, more: Sequence[str], seed: int) -> Iterator[Step]:
    for suite in FINETUNED[scale]:
        if not suite.made_by:
            folder = suite_data(suite, places)
            make = ("-m", "ssmke.reproduce.labelled_scenes", "--out", str(folder))
            yield Step(suite.data, make, False, folder, suite.data)
    cut = places.root / CUT
    command = ("-m", "ssmke.reproduce.cut_halves", "--out", str(cut), *recipe_flags("bank", scale, more))
    yield Step(CUT, command, False, cut / "model.safetensors", CUT)
    for key, alone in ALONE.items():
        for half in halves_of(alone, scale):
            yield _distillation(half, scale, places, seed)
        for suite in FINETUNED[scale]:
            yield _evaluation(
                key, suite, _model(alone, suite, places, seed), places, seed, "--part", "encoder"
            )


def _model(alone: Alone, suite: Suite, places: Places, seed: int) -> str:
    given = alone.text if suite.side == "text" else alone.image
    return given.replace("{root}", str(places.root)).replace("{again}", places.again(seed))


def recipe_flags(key: str, scale: ScaleName, more: Sequence[str] = ()) -> list[str]:
    """``--recipe``, what is set for all models, and what the variant changes, which counts where both name a field."""
    own = VARIANTS[key].flags[scale]
    return [*more, *own] if "--recipe" in own else ["--recipe", SCALE[scale].recipe, *more, *own]


def missing_data(tables: Sequence[Table], scale: ScaleName, places: Places) -> list[str]:
    """A line for each data folder that is needed and not there: what makes it."""
    found = SCALE[scale]
    how = {name: f"ssmke data get {name} --out DIR" for name in found.scored_on} | dict(found.trains_on)
    alone = FINETUNED.get(scale, ()) if any(table.kind == "alone" for table in tables) else ()
    halves = [half for key in variants_of(tables, scale) for half in VARIANTS[key].halves]
    halves += [half for row in ALONE.values() for half in halves_of(row, scale) if alone]
    for half in halves:
        how.setdefault(HALVES[half].data[scale][1], HALVES[half].made_by)
    lines = []
    for name, command in how.items():
        folder = places.data / name
        if not (folder / "manifest.json").exists() and not (name == "openwebtext" and folder.exists()):
            lines.append(f"{folder}: {command.replace('DIR', str(folder))}")
    suites = (*alone, *([ZERO_SHOT[scale]] if zero_shot_of(tables, scale) else ()))
    for suite in {suite.data: suite for suite in suites if suite.made_by}.values():
        folder = places.data / suite.data
        if not folder.exists():
            lines.append(f"{folder}: {suite.made_by.replace('DIR', str(folder))}")
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
    variant, run, folders = VARIANTS[key], places.run(key, seed), trains_on(key, scale)
    again = places.again(seed)
    scored_on = next(
        (name for name in folders if name in SCALE[scale].scored_on), next(iter(SCALE[scale].scored_on))
    )
    script, own = (
        "pretrain.py",
        [
            word.replace("{root}", str(places.root)).replace("{again}", again)
            for word in recipe_flags(key, scale, more)
        ],
    )
    if variant.starts_from is not None:
        script = "finetune_retrieval.py"
        own += ["--init", str(places.run(variant.starts_from, seed) / "model")]
    for half in variant.halves:
        own += [HALVES[half].weights, str(places.run(half, seed) / "model")]
    command = [
        script, "--deepspeed_config", "zero2.json", *own,
        "--data.make", "nothing", "--data.shards", *(str(places.data / name) for name in folders),
        "--data.eval-shards", str(places.data / scored_on), "--data.eval-split", SCALE[scale].split,
        "--seed", str(seed), "--runs-dir", str(places.root / "runs"), "--run-dir", str(run), "--resume", "auto",
    ]  # fmt: skip
    return Step(run.name, tuple(command), True, run / "results.json", key, key)


def _distillation(key: str, scale: ScaleName, places: Places, seed: int) -> Step:
    half, run = HALVES[key], places.run(key, seed)
    flag, folder = half.data[scale]
    command = (
        half.launcher, "--deepspeed_config", "zero2.json", "--recipe", half.recipes[scale],
        "--data.make", "nothing", flag, str(places.data / folder),
        "--seed", str(seed), "--runs-dir", str(places.root / "runs"), "--run-dir", str(run), "--resume", "auto",
    )  # fmt: skip
    return Step(run.name, command, True, run / "results.json", key, key)


def _scoring(key: str, scale: Scale, data: str, places: Places, seed: int) -> Step:
    result = places.result(key, data, seed)
    command = (
        "evaluate", "retrieval", "--model", str(places.run(key, seed) / "model"), "--data", str(places.data / data),
        "--split", scale.split, "--out", str(result),
    )  # fmt: skip
    return Step(result.stem, command, False, result, key, f"{key}-{data}")


def _evaluation(key: str, suite: Suite, model: str, places: Places, seed: int, *flags: str) -> Step:
    result = places.result(key, suite.data, seed)
    command = (
        "evaluate", *suite.command, *flags, "--model", model, "--data", str(suite_data(suite, places)),
        "--seed", str(seed), "--out", str(result),
    )  # fmt: skip
    return Step(result.stem, command, False, result, key, f"{key}-{suite.data}")
