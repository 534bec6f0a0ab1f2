"""`ssmke evaluate`: measure a trained model on the split of a dataset.

Prints a table with chance beside every number, so that a recall can be judged without knowing the size of the
split; `--out` keeps all numbers and what they were measured on as JSON. What can be wrong with the flags is said
before the model is loaded. Modules that cost time to import are imported when a command runs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from tyro.extras import SubcommandApp

from ssmke.console import CleanConsole
from ssmke.errors import ConfigError

if TYPE_CHECKING:
    from ssmke.models.student import SSMKE

app = SubcommandApp()


def main(argv: Sequence[str]) -> int:
    """Run ``ssmke evaluate ARGV``; gives the exit code.

    Raises:
        SSMKEError: what the user has to change; the caller prints it.
    """
    code: int = app.cli(args=list(argv), prog="ssmke evaluate", description="Measure a trained model.")
    return code


@app.command(name="retrieval")
def retrieval(
    model: Path,
    data: tuple[str, ...],
    split: str = "test",
    batch_size: int = 64,
    out: Path | None = None,
    sheet: Path | None = None,
    device: str = "auto",
) -> int:
    """Image-text retrieval: R@1/5/10 both ways, mean and median rank, the 5-fold 1K average median rank.

    Every image and every caption is a query, against all captions and all images.

    Args:
        model: folder of a trained model (RUN/model).
        data: dataset folders or addresses; several are evaluated as one.
        split: split of the datasets.
        batch_size: images at a time; captions, being shorter, four times as many.
        out: JSON file to write the numbers to.
        sheet: picture to draw of some captions with the images found for them; .png, .jpg or .webp.
        device: auto, cpu, cuda, cuda:1, ...
    """
    if batch_size < 1:
        raise ConfigError(f"--batch-size {batch_size}: must be at least 1")

    from ssmke.data.atomic import make_folder, write_json
    from ssmke.data.contact_sheet import check_sheet_name, save_sheet
    from ssmke.data.dataset import ImageTextShards
    from ssmke.data.remote.fetch import is_remote
    from ssmke.data.remote.sources import shown
    from ssmke.evaluation.embed import embed_split
    from ssmke.evaluation.retrieval import retrieval_metrics, retrieval_table
    from ssmke.evaluation.sheet import retrieval_sheet
    from ssmke.models.student import SSMKE
    from ssmke.models.weights import weights_digest

    if sheet is not None:
        check_sheet_name(sheet, "--sheet")
    shards = ImageTextShards.open(data, split)
    student = _on_device(SSMKE.from_pretrained(model), device)
    for path in filter(None, (out, sheet)):
        make_folder(path.parent)
    console = CleanConsole(highlight=False)
    started = time.perf_counter()
    found = embed_split(
        student, shards, batch_size=batch_size, text_batch_size=4 * batch_size, progress=console.is_terminal
    )
    embedded = time.perf_counter()
    metrics = retrieval_metrics(found.image, found.text, found.text_image)
    scored = time.perf_counter()

    names = ", ".join(map(shown, data))
    console.print(retrieval_table(metrics, title=escape(f"Retrieval: {model} on {split} of {names}")))
    for reason, number in sorted(found.skipped.items()):
        console.print(f"[yellow]skipped {number:,}: {escape(reason)}[/]")
    console.print(f"{embedded - started:.1f} s to embed, {scored - embedded:.1f} s to score")
    if out is not None:
        paths = [shown(place) if is_remote(place) else str(Path(place).resolve()) for place in data]
        results = {
            "task": "retrieval",
            "model": {"path": str(model.resolve()), "weights_sha256": weights_digest(student)},
            "data": {"paths": paths, "split": split},
            "metrics": metrics.to_dict(),
            "skipped": found.skipped,
            "seconds": {"embed": round(embedded - started, 3), "score": round(scored - embedded, 3)},
            "device": str(next(student.parameters()).device),
        }
        write_json(out, results)
        console.print(f"numbers: {escape(str(out))}")
    if sheet is not None:
        picture = retrieval_sheet(shards, found, title=f"{model.name}: text to image, {split}")
        save_sheet(picture, sheet, "--sheet")
        console.print(f"sheet: {escape(str(sheet))}")
    return 0


def _on_device(model: SSMKE, name: str) -> SSMKE:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return model.to(torch.device(name))
    except (RuntimeError, AssertionError) as error:  # what torch raises for a device that is not there
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name}: {reason} Give auto, cpu or a device of this machine.") from None
