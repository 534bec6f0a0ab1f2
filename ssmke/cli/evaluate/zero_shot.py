"""`ssmke evaluate zero-shot`: classify images by the names of their classes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table
from tyro.extras import SubcommandApp

from ssmke.cli.evaluate.common import (
    Places,
    check_batch_size,
    check_models,
    facts,
    find_device,
    measure_each,
)
from ssmke.console import CleanConsole

if TYPE_CHECKING:
    from ssmke.evaluation.zero_shot import Classification

NUMBERS = ("top1", "top5", "mean_per_class_recall")


def register(app: SubcommandApp) -> None:
    """Adds the command ``zero-shot``."""
    app.command(name="zero-shot")(zero_shot)


def zero_shot(
    model: tuple[str, ...],
    data: Path,
    split: str | None = None,
    classes: Path | None = None,
    templates: str = "clip",
    batch_size: int = 64,
    out: Path | None = None,
    device: str = "auto",
    seed: int = 0,
    seeds: bool = False,
    mlflow: bool = False,
    tracking_uri: str | None = None,
    experiment: str | None = None,
) -> int:
    """Zero-shot classification by CLIP's protocol: top-1, top-5, mean per-class recall, with 95 % intervals.

    Data: class folders (named by class or by WordNet id, as ImageNet's), CIFAR-10/100 in the binary version, or
    Tiny ImageNet's val, as folder or zip.

    Args:
        model: folder of a trained model (RUN/model), open_clip:ARCH/PRETRAINED or transformers:NAME; several.
        data: folder (or Tiny ImageNet's zip) of labelled images.
        split: train, val or test, where the data has them; default: val, else test.
        classes: file with the names of the classes: "folder<tab>name" a line, or names in the order of the folders.
        templates: clip (its 80 prompts), simple (the 7 selected of them), or a file of prompts with {}, one a line.
        batch_size: images at a time; prompts, being shorter, four times as many.
        out: JSON file to write the numbers to.
        device: auto, cpu, cuda, cuda:1, ...
        seed: of the images drawn for the intervals.
        seeds: several models are seeds of one recipe, whatever recipes lie beside them: give mean and deviation.
        mlflow: log the numbers, into the run of the model where it lies in a run folder, else into a new run.
        tracking_uri: MLflow store, instead of that of the run; implies --mlflow.
        experiment: MLflow experiment, instead of that of the run.
    """
    check_batch_size(batch_size)

    from ssmke.evaluation.class_names import load_class_names, load_templates
    from ssmke.evaluation.embed import embed_images
    from ssmke.evaluation.labelled import open_labelled, splits_of
    from ssmke.evaluation.zero_shot import class_embeddings, classify
    from ssmke.models.dual_encoder import load_dual_encoder

    prompts = load_templates(templates)
    if split is None:
        there = splits_of(data)
        split = next((name for name in ("val", "validation", "test") if name in there), None)
    images = open_labelled(data, split)
    names = images.names if classes is None else load_class_names(classes, images.folders)
    where = find_device(device)
    places = Places(out, mlflow, tracking_uri, experiment)
    places.prepare(model)
    check_models(model)
    console = CleanConsole(highlight=False)
    shown = f"{data.name}{f'/{split}' if split else ''}"

    def measure(name: str) -> dict[str, Any]:
        started = time.perf_counter()
        encoder = load_dual_encoder(name, where)
        bar = console.is_terminal
        embedded = embed_images(encoder, images, batch_size=batch_size, progress=bar)
        heads = class_embeddings(encoder, names, prompts, batch_size=4 * batch_size, progress=bar)
        scores = classify(embedded.image, heads, images.labels[embedded.image_index], names, seed=seed)
        seconds = time.perf_counter() - started
        console.print(classification_table(scores, f"Zero-shot: {name} on {shown}"))
        console.print(worst_table(scores))
        for reason, number in sorted(embedded.skipped.items()):
            console.print(f"[yellow]skipped {number:,}: {escape(reason)}[/]")
        console.print(f"{len(prompts)} prompts a class, {seconds:.1f} s")
        return {
            "model": facts(encoder),
            "metrics": scores.to_dict(),
            **scores.details(),
            "skipped": dict(embedded.skipped),
            "seconds": round(seconds, 3),
            "device": str(where),
        }

    def log(name: str, results: dict[str, Any]) -> None:
        ends = {
            f"{key}_{end}": results["intervals"][key][i]
            for key in NUMBERS
            for i, end in enumerate(("low", "high"))
        }
        places.log(name, "zero-shot", shown, results["metrics"] | ends, console)

    common = {
        "task": "zero-shot",
        "data": {"path": str(data.resolve()), "split": split},
        "templates": prompts,
        "class_names": names,
    }
    measure_each(model, measure, common, NUMBERS, places, log, console, seeds)
    return 0


def classification_table(scores: Classification, title: str) -> Table:
    """Accuracies with their intervals and chance."""
    table = Table(
        title=escape(title),
        caption=f"{scores.images:,} images, {scores.classes:,} classes; %, in brackets\n"
        "what other images of the kind might have given (95 %).",
    )
    for column in ("", "top-1", "top-5", "mean per class"):
        table.add_column(column, justify="right" if column else "left")
    flat = scores.to_dict()
    table.add_row(
        "model", *(f"{flat[name]:.2f} ({scores.intervals[name]})" for name in NUMBERS), style="bold"
    )
    chance = flat["top1_chance"]
    table.add_row("chance", f"{chance:.3f}", f"{flat['top5_chance']:.3f}", f"{chance:.3f}", style="dim")
    return table


def worst_table(scores: Classification) -> Table:
    """The classes that are missed most, and what their images are taken for."""
    table = Table(title="The classes that are missed most")
    for column in ("class", "right", "taken for"):
        table.add_column(column, justify="right" if column == "right" else "left")
    for confusion in scores.worst:
        answers = ", ".join(f"{name} {share:.0f} %" for name, share in confusion.taken_for)
        table.add_row(escape(confusion.name), f"{confusion.recall:.1f} %", escape(answers))
    return table
