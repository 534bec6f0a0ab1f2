"""`ssmke evaluate retrieval`: recall both ways on the Karpathy splits or any captioned images."""

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
    check_writable,
    facts,
    find_device,
    measure_each,
)
from ssmke.console import CleanConsole
from ssmke.errors import ConfigError

if TYPE_CHECKING:
    from ssmke.evaluation.embed import Images
    from ssmke.evaluation.folds import FoldRecall
    from ssmke.evaluation.intervals import Interval
    from ssmke.evaluation.retrieval import RetrievalMetrics
    from ssmke.models.dual_encoder import DualEncoder

RECALLS = tuple(f"{way}_r{k}" for way in ("i2t", "t2i", "mean") for k in (1, 5, 10))
WAYS = {"i2t": "image -> text", "t2i": "text -> image", "mean": "mean of both"}


def register(app: SubcommandApp) -> None:
    """Adds the command ``retrieval``."""
    app.command(name="retrieval")(retrieval)


def retrieval(
    model: tuple[str, ...],
    data: tuple[str, ...],
    split: str = "test",
    batch_size: int = 64,
    out: Path | None = None,
    sheet: Path | None = None,
    device: str = "auto",
    seed: int = 0,
    seeds: bool = False,
    mlflow: bool = False,
    tracking_uri: str | None = None,
    experiment: str | None = None,
) -> int:
    """Image-text retrieval: R@1/5/10 both ways with 95 % intervals, mean and median rank, COCO's 1K folds.

    Every image and every caption is a query, against all captions and all images. With 2,000 images or more, recall
    is also given as the mean over folds of 1,000 images (COCO 1K). Several models are compared; where the recipes
    beside them differ in nothing but the seed, mean and standard deviation are given.

    Args:
        model: folder of a trained model (RUN/model), open_clip:ARCH/PRETRAINED or transformers:NAME; several.
        data: dataset folders or addresses, several are evaluated as one; or a folder with Karpathy's JSON and images.
        split: split of the datasets.
        batch_size: images at a time; captions, being shorter, four times as many.
        out: JSON file to write the numbers to.
        sheet: picture to draw of some captions with the images found for them; .png, .jpg or .webp.
        device: auto, cpu, cuda, cuda:1, ...
        seed: of the images drawn for the intervals.
        seeds: several models are seeds of one recipe, whatever recipes lie beside them: give mean and deviation.
        mlflow: log the numbers, into the run of the model where it lies in a run folder, else into a new run.
        tracking_uri: MLflow store, instead of that of the run; implies --mlflow.
        experiment: MLflow experiment, instead of that of the run.
    """
    check_batch_size(batch_size)

    from ssmke.data.contact_sheet import check_sheet_name
    from ssmke.data.remote.fetch import is_remote
    from ssmke.data.remote.sources import shown
    from ssmke.evaluation.captioned_files import open_captioned
    from ssmke.models.dual_encoder import load_dual_encoder

    if sheet is not None:
        check_sheet_name(sheet, "--sheet")
        if len(model) > 1:
            raise ConfigError("--sheet: draws one model; give one --model")
    where = find_device(device)
    shards = open_captioned(data, split)
    places = Places(out, mlflow, tracking_uri, experiment)
    places.prepare(model)
    check_models(model)
    if sheet is not None:
        check_writable(sheet)
    console = CleanConsole(highlight=False)
    paths = [shown(place) if is_remote(place) else str(Path(place).resolve()) for place in data]
    names = ", ".join(map(shown, data))
    dataset = "+".join(Path(path).name for path in paths) + f"/{split}"

    def measure(name: str) -> dict[str, Any]:
        encoder = load_dual_encoder(name, where)
        title = f"Retrieval: {name} on {split} of {names}"
        return _measure(encoder, shards, split, batch_size, seed, title, sheet, console) | {
            "device": str(where)
        }

    def log(name: str, results: dict[str, Any]) -> None:
        places.log(name, "retrieval", dataset, _logged(results), console)

    common = {"task": "retrieval", "data": {"paths": paths, "split": split}}
    measure_each(model, measure, common, RECALLS[:6], places, log, console, seeds)
    return 0


def _measure(
    encoder: DualEncoder,
    shards: Images,
    split: str,
    batch_size: int,
    seed: int,
    title: str,
    sheet: Path | None,
    console: CleanConsole,
) -> dict[str, Any]:
    """All numbers of one model, printed; as they go into the JSON file."""
    from ssmke.data.contact_sheet import save_sheet
    from ssmke.evaluation.embed import embed_split
    from ssmke.evaluation.folds import fold_recall
    from ssmke.evaluation.intervals import RESAMPLES, retrieval_intervals
    from ssmke.evaluation.retrieval import retrieval_metrics, retrieval_table
    from ssmke.evaluation.sheet import retrieval_sheet

    started = time.perf_counter()
    found = embed_split(
        encoder, shards, batch_size=batch_size, text_batch_size=4 * batch_size, progress=console.is_terminal
    )
    embedded = time.perf_counter()
    metrics = retrieval_metrics(found.image, found.text, found.text_image)
    folds = fold_recall(found.image, found.text, found.text_image)
    intervals = retrieval_intervals(metrics, found.text_image.numpy(), seed=seed)
    scored = time.perf_counter()
    console.print(retrieval_table(metrics, title=escape(title)))
    console.print(_interval_table(metrics, intervals, folds))
    for reason, number in sorted(found.skipped.items()):
        console.print(f"[yellow]skipped {number:,}: {escape(reason)}[/]")
    console.print(f"{embedded - started:.1f} s to embed, {scored - embedded:.1f} s to score")
    if sheet is not None:
        picture = retrieval_sheet(shards, found, title=f"{Path(encoder.name).name}: text to image, {split}")
        save_sheet(picture, sheet, "--sheet")
        console.print(f"sheet: {escape(str(sheet))}")
    fold_facts = None if folds is None else {"folds": folds.folds, "images": folds.images} | folds.to_dict()
    return {
        "model": facts(encoder),
        "metrics": metrics.to_dict(),
        "intervals": {
            "confidence": 0.95,
            "method": "percentile bootstrap over images, candidates held fixed",
            "resamples": RESAMPLES,
            "seed": seed,
            **{name: interval.to_list() for name, interval in intervals.items()},
        },
        "folds_1k": fold_facts,
        "skipped": found.skipped,
        "seconds": {"embed": round(embedded - started, 3), "score": round(scored - embedded, 3)},
    }


def _logged(results: dict[str, Any]) -> dict[str, float]:
    """What of one model's results goes to MLflow: all metrics, and both ends of each interval."""
    flat: dict[str, float] = dict(results["metrics"])
    for name in RECALLS:
        flat[f"{name}_low"], flat[f"{name}_high"] = results["intervals"][name]
    if results["folds_1k"]:
        flat |= {name: value for name, value in results["folds_1k"].items() if name.endswith("_1k")}
    return flat


def _interval_table(
    metrics: RetrievalMetrics, intervals: dict[str, Interval], folds: FoldRecall | None
) -> Table:
    table = Table(
        caption="%, and in brackets what other images of the kind might have\n"
        "given (95 %), the candidates staying the same."
        + (f"\n1K: mean over {folds.folds} folds of 1,000 images, an easier task." if folds else "")
    )
    table.add_column("")
    for k in (1, 5, 10):
        table.add_column(f"R@{k}", justify="right")
    flat, in_folds = metrics.to_dict(), folds.to_dict() if folds else {}
    for way, label in WAYS.items():
        names = [f"{way}_r{k}" for k in (1, 5, 10)]
        table.add_row(
            label,
            *(f"{flat[name]:.2f} ({intervals[name].low:.1f}-{intervals[name].high:.1f})" for name in names),
        )
        if folds:
            table.add_row("  1K", *(f"{in_folds[f'{name}_1k']:.2f}" for name in names), style="dim")
    return table
