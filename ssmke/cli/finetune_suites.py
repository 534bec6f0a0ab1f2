"""`ssmke evaluate image-classification|glue|nlvr2`: how good a start a trained model is for other tasks.

`register` adds the commands to the group's app. Each prints a line an epoch and a table with chance beside; `--out`
keeps all epochs of all seeds as JSON; `--work` keeps a checkpoint an epoch, from which the same command goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from tyro.conf import OmitArgPrefixes
from tyro.extras import SubcommandApp

from ssmke.console import CleanConsole
from ssmke.evaluation.finetune.config import GlueConfig, ImageClassificationConfig, Nlvr2Config, RunConfig

if TYPE_CHECKING:
    from ssmke.cli.evaluate.common import Places


def register(app: SubcommandApp) -> None:
    """Adds the three commands to ``app``."""
    app.command(name="image-classification")(image_classification)
    app.command(name="glue")(glue)
    app.command(name="nlvr2")(nlvr2)


def image_classification(config: OmitArgPrefixes[ImageClassificationConfig]) -> int:
    """Finetune the image side on labelled images (mixup, CutMix, RandAugment, layer-wise rates)."""
    from ssmke.cli.evaluate.common import find_device

    device, console, places = find_device(config.run.device), *_ready(config.run, config.model)
    from ssmke.evaluation.finetune.results import metrics_table
    from ssmke.evaluation.finetune.run import run_image_classification

    found = run_image_classification(config, _say(console), device)
    title = f"Image classification: {config.model} ({config.part}) on {config.data}"
    console.print(metrics_table({"": found}, title, found["chance"]))
    places.write(found, console)
    suite = f"image-classification-{config.part}"
    places.log(config.model, suite, config.data.name, _means({"": found}), console)
    return 0


def glue(config: OmitArgPrefixes[GlueConfig]) -> int:
    """Finetune the text half on the nine GLUE tasks; each with its own metrics on its dev set, and the mean."""
    from ssmke.cli.evaluate.common import find_device

    device, console, places = find_device(config.run.device), *_ready(config.run, config.model)
    from ssmke.evaluation.finetune.results import metrics_table
    from ssmke.evaluation.finetune.run import run_glue

    found = run_glue(config, _say(console), device)
    table = metrics_table(found["tasks"], f"GLUE (dev): {config.model} ({config.part})", {})
    for name, value in found["means"].items():
        spread = "" if value["std"] is None else f"± {value['std']:.2f}"
        table.add_row(f"{len(found['means_over'])} tasks", name, f"{value['mean']:.2f}", spread, "")
    console.print(table)
    places.write(found, console)
    places.log(config.model, f"glue-{config.part}", config.data.name, _glue_numbers(found), console)
    return 0


def nlvr2(config: OmitArgPrefixes[Nlvr2Config]) -> int:
    """Finetune on NLVR2, two images and a sentence, without fusion: what the method cannot do, measured."""
    from ssmke.cli.evaluate.common import find_device

    device, console, places = find_device(config.run.device), *_ready(config.run, config.model)
    from ssmke.evaluation.finetune.results import metrics_table
    from ssmke.evaluation.finetune.run import run_nlvr2

    found = run_nlvr2(config, _say(console), device)
    scores = next(iter(found["seeds"].values()))
    chance = {name: scores[f"chance_{name}"] for name in ("accuracy", "consistency")}
    table = metrics_table({"": found}, f"NLVR2: {config.model} on {config.split} of {config.data}", chance)
    for name in chance:
        table.add_row("majority class", name, f"{scores[f'majority_{name}']:.2f}", "", "")
    console.print(table)
    places.write(found, console)
    places.log(config.model, "nlvr2", config.split, _means({"": found}), console)
    return 0


def _ready(run: RunConfig, model: str) -> tuple[CleanConsole, Places]:
    """Finds out before hours of work, and not after, that results can be written."""
    from ssmke.cli.evaluate.common import Places

    places = Places(run.out, run.mlflow, run.tracking_uri, run.experiment)
    places.prepare((model,))
    return CleanConsole(highlight=False), places


def _say(console: CleanConsole) -> Callable[[str], None]:
    return lambda line: console.print(escape(line), soft_wrap=True)


def _glue_numbers(found: dict[str, Any]) -> dict[str, float]:
    """What goes to MLflow: under one key, so the means of all nine tasks only."""
    from ssmke.evaluation.finetune.glue_data import TASKS

    numbers = _means(found["tasks"])
    if set(found["means_over"]) == set(TASKS):
        numbers |= {name: value["mean"] for name, value in found["means"].items()}
    return numbers


def _means(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Means over seeds, by metric, or by task and metric."""
    return {
        f"{row}/{name}".lstrip("/"): value["mean"]
        for row, result in results.items()
        for name, value in result["metrics"].items()
    }
