"""`ssmke evaluate probe`: what the frozen image features know, by k-NN and by a linear classifier."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.markup import escape
from tyro.extras import SubcommandApp

from ssmke.cli.evaluate.common import (
    Places,
    check_batch_size,
    check_models,
    facts,
    find_device,
    measure_each,
)
from ssmke.cli.evaluate.zero_shot import classification_table
from ssmke.console import CleanConsole
from ssmke.errors import ConfigError

if TYPE_CHECKING:
    from ssmke.evaluation.labelled import Labelled

NUMBERS = ("knn_top1", "linear_top1", "linear_top5")
TEST_SHARE = 0.2


def register(app: SubcommandApp) -> None:
    """Adds the command ``probe``."""
    app.command(name="probe")(probe)


def probe(
    model: tuple[str, ...],
    data: Path,
    features: Literal["embedding", "encoder"] = "embedding",
    neighbours: int = 20,
    temperature: float = 0.07,
    batch_size: int = 64,
    out: Path | None = None,
    device: str = "auto",
    seed: int = 0,
    seeds: bool = False,
    mlflow: bool = False,
    tracking_uri: str | None = None,
    experiment: str | None = None,
) -> int:
    """k-NN (weighted, as DINO) and a linear probe (logistic regression, as CLIP) on frozen image features.

    Trains on train/ and measures on val/ or test/. Data without splits are split by --seed, a fifth of each class for
    the test; such numbers compare with nobody's but your own. Data as for zero-shot.

    Args:
        model: folder of a trained model (RUN/model), open_clip:ARCH/PRETRAINED or transformers:NAME; several.
        data: folder (or Tiny ImageNet's zip) of labelled images.
        features: embedding (what retrieval uses), or encoder (ours only: [CLS] of the image encoder, before the
            shared block).
        neighbours: k of k-NN.
        temperature: of the votes of k-NN.
        batch_size: images at a time.
        out: JSON file to write the numbers to.
        device: auto, cpu, cuda, cuda:1, ...
        seed: of splits, held-out images, and the images drawn for the intervals.
        seeds: several models are seeds of one recipe, whatever recipes lie beside them: give mean and deviation.
        mlflow: log the numbers, into the run of the model where it lies in a run folder, else into a new run.
        tracking_uri: MLflow store, instead of that of the run; implies --mlflow.
        experiment: MLflow experiment, instead of that of the run.
    """
    check_batch_size(batch_size)
    if neighbours < 1:
        raise ConfigError(f"--neighbours {neighbours}: must be at least 1")
    if not temperature > 0:
        raise ConfigError(f"--temperature {temperature}: must be above 0")

    import torch

    from ssmke.evaluation.embed import embed_images
    from ssmke.evaluation.encoder_features import image_features
    from ssmke.evaluation.knn import knn
    from ssmke.evaluation.linear import linear
    from ssmke.models.dual_encoder import load_dual_encoder

    console = CleanConsole(highlight=False)
    train, test, how = _parts(data, seed)
    console.print(escape(how))
    where = find_device(device)
    places = Places(out, mlflow, tracking_uri, experiment)
    places.prepare(model)
    check_models(model)

    def measure(name: str) -> dict[str, Any]:
        started = time.perf_counter()
        encoder = load_dual_encoder(name, where)
        tower = image_features(encoder, features)
        parts = [
            embed_images(tower, part, batch_size=batch_size, progress=console.is_terminal)
            for part in (train, test)
        ]
        x_train, x_test = (part.image for part in parts)
        y_train, y_test = (
            torch.from_numpy(labelled.labels[part.image_index])
            for labelled, part in zip((train, test), parts, strict=True)
        )
        embedded = time.perf_counter()
        near = knn(
            x_train, y_train, x_test, y_test, train.names,
            neighbours=neighbours, temperature=temperature, seed=seed,
        )  # fmt: skip
        on_device = (x_train.to(where), y_train.to(where), x_test.to(where), y_test.to(where))
        line, c = linear(*on_device, train.names, seed=seed)
        ended = time.perf_counter()
        console.print(
            classification_table(near, f"k-NN, k = {neighbours}: {name} ({features}) on {data.name}")
        )
        console.print(
            classification_table(line, f"Linear probe, C = {c:.3g}: {name} ({features}) on {data.name}")
        )
        skipped = parts[0].skipped + parts[1].skipped
        for reason, number in sorted(skipped.items()):
            console.print(f"[yellow]skipped {number:,}: {escape(reason)}[/]")
        console.print(f"{embedded - started:.1f} s to embed, {ended - embedded:.1f} s to probe")
        both = {"knn": near, "linear": line}
        return {
            "model": facts(encoder),
            "features": features,
            "metrics": {
                f"{kind}_{key}": value
                for kind, scores in both.items()
                for key, value in scores.to_dict().items()
            }
            | {"train_images": len(x_train), "linear_c": c},
            **{kind: scores.details() for kind, scores in both.items()},
            "skipped": dict(skipped),
            "seconds": {"embed": round(embedded - started, 3), "probe": round(ended - embedded, 3)},
            "device": str(where),
        }

    def log(name: str, results: dict[str, Any]) -> None:
        ends = {
            f"{kind}_{key}_{end}": results[kind]["intervals"][key][i]
            for kind in ("knn", "linear")
            for key in ("top1", "top5")
            for i, end in enumerate(("low", "high"))
        }
        places.log(name, f"probe-{features}", data.name, results["metrics"] | ends, console)

    common = {
        "task": "probe",
        "data": {"path": str(data.resolve()), "split": how},
        "knn_settings": {"neighbours": neighbours, "temperature": temperature},
        "seed": seed,
    }
    measure_each(model, measure, common, NUMBERS, places, log, console, seeds)
    return 0


def _parts(data: Path, seed: int) -> tuple[Labelled, Labelled, str]:
    """What is trained on, what is measured on, and a sentence that says so."""
    import torch

    from ssmke.errors import DataError
    from ssmke.evaluation.labelled import open_labelled, splits_of
    from ssmke.evaluation.linear import held_out

    there = splits_of(data)
    if there:
        test = next((name for name in ("val", "validation", "test") if name in there), None)
        if test is None or "train" not in there:
            raise DataError(
                f"--data {data} has only {', '.join(there)}: a probe needs train/ and val/ or test/."
            )
        parts = open_labelled(data, "train"), open_labelled(data, test)
        if parts[0].folders != parts[1].folders:
            other = sorted(set(parts[0].folders) ^ set(parts[1].folders))
            raise DataError(
                f"--data {data}: train/ and {test}/ have different classes: {', '.join(other[:5])}."
            )
        return (
            *parts,
            f"trained on train/ ({parts[0].images:,} images), measured on {test}/ ({parts[1].images:,})",
        )
    whole = open_labelled(data)
    chosen = held_out(torch.from_numpy(whole.labels), TEST_SHARE, seed)
    train, test_part = (whole.subset(rows.nonzero().flatten().numpy()) for rows in (~chosen, chosen))
    return (
        train,
        test_part,
        f"{data.name} has no splits: a fifth of each class, by seed {seed}, is the test ({test_part.images:,} images), "
        f"the other {train.images:,} are trained on",
    )
