"""`ssmke export`: a trained model as a folder to share, as ONNX files, for sentence-transformers; and its card.

Every export is compared with the model that it was made of before it is kept, and carries the card of its run:
``--run`` says which, and RUN/model finds its own. Modules that cost time to import are imported when a command runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.markup import escape
from tyro.extras import SubcommandApp

from ssmke.console import CleanConsole

if TYPE_CHECKING:
    from ssmke.export.card import Form
    from ssmke.export.facts import RunFacts
    from ssmke.models.student import SSMKE

app = SubcommandApp()


def main(argv: Sequence[str]) -> int:
    """Run ``ssmke export ARGV``; gives the exit code.

    Raises:
        SSMKEError: what the user has to change; the caller prints it.
    """
    code: int = app.cli(args=list(argv), prog="ssmke export", description="Give a trained model to others.")
    return code


@app.command(name="safetensors")
def safetensors(
    model: str, out: Path, precision: Literal["fp32", "fp16", "bf16"] = "fp32", run: Path | None = None
) -> int:
    """A clean model folder for `SSMKE.from_pretrained` and for the hub: safetensors, tokenizer, card.

    Args:
        model: folder of a trained model (RUN/model), or its name on the hub.
        out: new folder to write.
        precision: of the stored weights; fp16 and bf16 halve them. Loaded, they are fp32 again.
        run: folder of the run, for the card; default: that of RUN/model.
    """
    from ssmke.export.weights import export_weights

    student, card = _student_and_card(model, run, "safetensors")
    difference = export_weights(student, out, precision, card)
    _done(out, f"largest difference of a coordinate from the model at hand: {difference:.2g} ({precision})")
    return 0


@app.command(name="onnx")
def onnx(model: str, out: Path, tolerance: float = 1e-4, run: Path | None = None) -> int:
    """image.onnx and text.onnx with dynamic batch and length, and what a program has to do before them.

    Both are run by onnxruntime on drawn scenes and on random input and compared with torch; nothing is kept if they
    differ. Needs the extra "onnx".

    Args:
        model: folder of a trained model (RUN/model), or its name on the hub.
        out: new folder to write.
        tolerance: largest absolute difference of a coordinate of an embedding.
        run: folder of the run, for the card; default: that of RUN/model.
    """
    from ssmke.export.onnx import export_onnx

    student, card = _student_and_card(model, run, "onnx")
    found = export_onnx(student, out, card, tolerance)
    console = CleanConsole(highlight=False)
    for difference in found:
        console.print(
            f"{difference.file:<10} {difference.samples:<28} largest difference from torch {difference.largest:.2g}"
        )
    _done(out, f"within {tolerance:g} of torch")
    return 0


@app.command(name="sentence-transformers")
def sentence_transformers(model: str, out: Path, run: Path | None = None) -> int:
    """A folder that sentence-transformers loads, for texts and pictures; needs the extra "sentence-transformers".

    Loaded with `SentenceTransformer(OUT, trust_remote_code=True)`: the class is that of the installed ssmke.

    Args:
        model: folder of a trained model (RUN/model), or its name on the hub.
        out: new folder to write.
        run: folder of the run, for the card; default: that of RUN/model.
    """
    from ssmke.export.sentence_transformers import export_sentence_transformers

    student, card = _student_and_card(model, run, "sentence-transformers")
    difference = export_sentence_transformers(student, out, card)
    _done(out, f"largest difference of a coordinate from our own embeddings: {difference:.2g}")
    return 0


@app.command(name="card")
def card(run: Path, out: Path | None = None) -> int:
    """The model card of a run: data, recipe, results, cost, terms; what the run does not say is named as missing.

    Args:
        run: folder of the run.
        out: file to write; default: the screen.
    """
    from ssmke.data.atomic import atomic_writer, make_folder
    from ssmke.export.card import model_card
    from ssmke.export.facts import read_run
    from ssmke.models.student import SSMKE

    facts = read_run(run)
    student = SSMKE.from_pretrained(run / "model") if (run / "model").is_dir() else None
    text = model_card(student, facts, _title(run, facts))
    if out is None:
        print(text, end="")
        return 0
    make_folder(out.parent)
    with atomic_writer(out) as file:
        file.write(text.encode())
    CleanConsole(highlight=False).print(f"card: {escape(str(out))}", soft_wrap=True)
    return 0


def _student_and_card(model: str, run: Path | None, form: Form) -> tuple[SSMKE, str]:
    from ssmke.export.card import model_card
    from ssmke.export.facts import read_run
    from ssmke.models.student import SSMKE

    if run is None:
        parent = Path(model).resolve().parent
        run = parent if (parent / "recipe.json").is_file() else None
    facts = None if run is None else read_run(run)
    student = SSMKE.from_pretrained(model)
    return student, model_card(
        student, facts, Path(model).name if facts is None or run is None else _title(run, facts), form
    )


def _title(run: Path, facts: RunFacts) -> str:
    return f"{facts.setting('name') or 'ssmke'}, {run.resolve().name}"


def _done(out: Path, said: str) -> None:
    console = CleanConsole(highlight=False)
    console.print(escape(said), soft_wrap=True)
    console.print(f"written: {escape(str(out))}", soft_wrap=True)
