"""The model card: README.md of a shared model, written from its run.

Markdown with the YAML front matter that the Hugging Face hub reads, made by huggingface_hub's own `ModelCardData`.
Every number is the run's; what the run does not say is called missing, by name, and never filled in. Names and texts of
the run are quoted as code, so that they cannot become markup.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from ssmke import __version__
from ssmke.export.facts import RunFacts
from ssmke.export.terms import UNKNOWN, data_terms, weights_terms
from ssmke.screen import clean

if TYPE_CHECKING:
    from ssmke.models.student import SSMKE

MISSING = "**missing**"
RECALLS = ("r1", "r5", "r10")
DIRECTIONS = (("i2t", "image to text"), ("t2i", "text to image"))
SETTINGS = (
    ("optim.batch_size", "pairs a step"),
    ("optim.epochs", "epochs"),
    ("optim.lr", "peak learning rate"),
    ("optim.weight_decay", "weight decay"),
    ("loss.distillation", "distillation"),
    ("loss.bank_size", "bank of negatives"),
    ("targets.mode", "teacher targets"),
    ("data.augmentation.crop_min", "smallest crop"),
    ("seed", "seed"),
)
Form = Literal["safetensors", "onnx", "sentence-transformers"]
"""What the folder that the card lies in holds; each is used in another way."""
USES: dict[Form, str] = {
    "safetensors": """```python
from ssmke import SSMKE

model = SSMKE.from_pretrained("this folder, or its name on the hub")
images = model.encode_image(["kite.jpg"])  # [1, D], L2-normalised; PIL images and arrays do too
texts = model.encode_text(["a kite high in the air", "a pizza on a plate"])  # [2, D]
print(model.similarity(images, texts))  # cosines [1, 2]
```""",
    "onnx": """In this folder, with onnxruntime, Pillow and tokenizers; ssmke is not needed. For programs
in other languages `preprocessing.json` says what has to be done to a picture and a text.

```python
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer

facts = json.loads(Path("preprocessing.json").read_text())
side = facts["image"]["resize"]["side"]
picture = ImageOps.exif_transpose(Image.open("kite.jpg")).convert("RGB")
picture = ImageOps.fit(picture, (side, side), Image.Resampling.BICUBIC)  # largest centred square
pixels = np.asarray(picture).transpose(2, 0, 1)[None]  # uint8 [1, 3, S, S]
images = onnxruntime.InferenceSession("image.onnx").run(None, {"images": pixels})[0]  # [1, D]

tokenizer = Tokenizer.from_file("tokenizer/tokenizer.json")
tokenizer.enable_truncation(facts["text"]["max_tokens"])
tokenizer.enable_padding(pad_id=facts["text"]["pad_token_id"])
tokens = tokenizer.encode_batch(["a kite high in the air", "a pizza on a plate"])
given = {
    "input_ids": np.array([t.ids for t in tokens], np.int64),
    "attention_mask": np.array([t.attention_mask for t in tokens], np.int64),
}
texts = onnxruntime.InferenceSession("text.onnx").run(None, given)[0]  # [2, D], L2-normalised
print(images @ texts.T)  # cosines [1, 2]
```""",
    "sentence-transformers": """The folder holds no code, its class is that of ssmke:
`pip install 'ssmke[sentence-transformers]'`.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("this folder, or its name on the hub", trust_remote_code=True)
images = model.encode(["kite.jpg"])  # [1, D], L2-normalised; PIL images and arrays do too
texts = model.encode(["a kite high in the air", "a pizza on a plate"])  # [2, D]
print(model.similarity(images, texts))  # cosines [1, 2]
```""",
}


def model_card(model: SSMKE | None, run: RunFacts | None, title: str, form: Form = "safetensors") -> str:
    """The card of ``model`` that came out of ``run``; of either, what is None is said to be missing.

    Args:
        model: for its parts and sizes.
        run: for data, recipe, results and cost.
        title: name of the model.
        form: of the export, for how it is used.
    """
    sections = [
        _front_matter(run, title),
        f"# {_plain(title)}",
        f"An image-text retrieval model of the S-SMKE kind: {_parts(model)}, which embed pictures and sentences into "
        f"one space. Card written by ssmke {__version__}.",
        "## Use",
        USES[form],
        "## Model",
        _model(model, run),
        "## Training data",
        _data(run),
        "## Recipe",
        _recipe(run),
        "## Results",
        _results(run),
        "## Cost",
        _cost(run),
        "## Limits",
        _limits(run),
        "## Terms",
        _terms(run),
    ]
    return "\n\n".join(sections) + "\n"


def _parts(model: SSMKE | None) -> str:
    """What it is built of, for a sentence."""
    above = {"block": "one shared Transformer block", "mlp": "a shared MLP", "none": "a projection for each"}
    kind = "block" if model is None else model.config.shared.kind
    return f"two pretrained unimodal encoders, or their first layers, and {above[kind]}"


def precision_section(precision: str, difference: float) -> str:
    """What a card says of weights that are stored in fp16 or bf16: the last of its sections.

    Args:
        precision: of the stored weights.
        difference: the largest of a coordinate of an embedding from the fp32 model's, as measured.
    """
    return (
        f"\n## Precision\n\nThe weights are stored in {precision}, rounded from fp32. Measured at export, on drawn "
        f"scenes and on random input, the rounding moves a coordinate of an L2-normalised embedding by at most "
        f"{difference:.2g}. The results above are those of the fp32 model; with these weights they were not measured.\n"
    )


def _front_matter(run: RunFacts | None, title: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    scores = []
    data = "+".join(_eval_data(run)) if run is not None else ""
    for direction, words in DIRECTIONS if run is not None else ():
        for recall in RECALLS:
            value = run.score(f"{direction}_{recall}") if run is not None else None
            if value is None or run is None:
                continue
            scores.append(
                EvalResult(
                    task_type="image-text-retrieval",
                    dataset_type=data or "unknown",
                    dataset_name=data or "unknown",
                    dataset_split=str(run.result("eval_split") or "unknown"),
                    metric_type=f"{words.replace(' ', '_')}_recall_at_{recall[1:]}",
                    metric_value=round(value, 2),
                )
            )
    card = ModelCardData(
        language="en",
        license="other",
        license_name="see-terms-in-the-card",
        library_name="ssmke",
        pipeline_tag="zero-shot-image-classification",
        tags=["image-text-retrieval", "feature-extraction", "ssmke"],
        model_name=_plain(title),
        eval_results=scores or None,
    )
    return f"---\n{card.to_yaml()}\n---"


def _model(model: SSMKE | None, run: RunFacts | None) -> str:
    rows: list[tuple[str, str]] = []
    if model is not None:
        table = model.parameter_table()
        rows.append(("parameters", _number(table.pop("total"))))
        rows += [(f"of them {name.replace('_', ' ')}", _number(n)) for name, n in table.items() if n]
        if model.config.pool != "none":
            rows.append(("goes on of the encoders' tokens", f"{_code(model.config.pool)}, one vector"))
        frozen = [half for half in ("image", "text") if getattr(model.config, half).frozen]
        if frozen:
            rows.append(("encoders that were not trained", " and ".join(frozen)))
        rows.append(("embedding", f"{model.dim} numbers, L2-normalised"))
        rows.append(("picture", f"{model.image_size} x {model.image_size} pixels, largest centred square"))
        rows.append(("text", f"at most {model.config.text.max_tokens} tokens"))
    else:
        rows.append(("parameters", _number(None if run is None or run.cost is None else run.cost.parameters)))
    if run is not None:
        for part in ("model.image", "model.text", "teacher"):
            name, weights = run.setting(f"{part}.name"), run.setting(f"{part}.weights")
            depth = run.setting(f"{part}.depth")
            of = f", first {depth} blocks" if isinstance(depth, int) else ""
            label = {"model.image": "image encoder from", "model.text": "text encoder from"}.get(part, part)
            rows.append((label, f"{_code(name)}{of}, weights {_code(_place(weights))}"))
    return _table(("", ""), rows)


def _data(run: RunFacts | None) -> str:
    if run is None or not run.data:
        return f"{MISSING}: the run that made this model was not at hand."
    rows = [
        (
            _code(data.name),
            _number(data.images),
            _number(data.captions),
            "once" if data.weight == 1 else f"{data.weight:g} times",
        )
        for data in run.data
    ]
    trained = run.result("pairs")
    seen = f"Pairs seen in training: {_number(trained)}."
    return (
        _table(("dataset", "images", "captions", "each pair an epoch"), rows)
        + f"\n\nSplit {_code(run.setting('data.split'))}. "
        + seen
    )


def _recipe(run: RunFacts | None) -> str:
    if run is None:
        return f"{MISSING}: the run that made this model was not at hand."
    rows = [(words, _code(run.setting(name))) for name, words in SETTINGS]
    rows.append(("steps", _number(run.result("steps"))))
    return f"Recipe {_code(run.setting('name'))}.\n\n" + _table(("", ""), rows)


def _results(run: RunFacts | None) -> str:
    if run is None or run.results is None:
        return f"{MISSING}: " + ("the run was not at hand." if run is None else "the run has not ended.")
    where = (
        f"on split {_code(run.result('eval_split'))} of {', '.join(map(_code, _eval_data(run))) or MISSING}"
    )
    size = f"{_number(run.score('images'))} images, {_number(run.score('captions'))} captions"
    rows = [
        (words, *(_percent(run.score(f"{direction}_{recall}")) for recall in RECALLS))
        for direction, words in DIRECTIONS
    ]
    chance = _percent(run.score("t2i_r1_chance"))
    return (
        f"Retrieval {where} ({size}), in percent; chance for text to image R@1 is {chance}. One run, no interval.\n\n"
        + _table(("", "R@1", "R@5", "R@10"), rows)
    )


def _cost(run: RunFacts | None) -> str:
    from ssmke.cost.render.numbers import energy, hours, money

    if run is None or run.cost is None:
        return f"{MISSING}: no cost ledger was at hand."
    cost, usage = run.cost, run.cost.usage
    power = energy(usage) if usage.energy_kwh is not None else f"{MISSING} (nothing here could measure it)"
    dollars = (
        f"{MISSING} (no price is known)" if usage.usd is None else money(usage.usd, partial=usage.usd_partial)
    )
    wasted = cost.wasted
    rows = [
        ("dollars, all attempts", dollars),
        ("device-hours", hours(usage.device_hours)),
        ("of them lost to crashes and stops", hours(wasted.device_hours)),
        ("energy of the devices", power),
        ("devices", ", ".join(map(_code, cost.devices)) or MISSING),
        ("price", _code(cost.price)),
        ("attempts", f"{len(cost.attempts)}"),
    ]
    return "From the run's own ledger.\n\n" + _table(("", ""), rows)


def _limits(run: RunFacts | None) -> str:
    limits = [
        "It ranks; it does not describe, count or reason. Models of this kind are known to mix up who does what to "
        "whom in a sentence, and numbers of things.",
        "It was trained on captions in the language of its data, English unless you chose other data, and carries the "
        "biases of those captions and of the pretrained encoders. Nobody has measured them for this model.",
        "Not for identifying people, nor for decisions about them.",
        "Its scores hold for the split that they were measured on, and say little about pictures of another kind.",
    ]
    if run is not None and any(data.name == "scenes" for data in run.data):
        limits.insert(0, "It was trained on drawn shapes: about photographs it knows nothing.")
    return "\n".join(f"- {limit}" for limit in limits)


def _terms(run: RunFacts | None) -> str:
    intro = "The code is under the MIT licence. The weights are made of parts that have terms of their own:"
    if run is None:
        return f"{intro} {UNKNOWN}; which data and weights they were is {MISSING}."
    lines = [f"- data {_code(data.name)}: {data_terms(data.name)}" for data in run.data]
    for part in ("model.image", "model.text", "teacher"):
        name, weights = run.setting(f"{part}.name"), run.setting(f"{part}.weights")
        label = {"model.image": "image encoder", "model.text": "text encoder"}.get(part, part)
        terms = (
            weights_terms(name, weights) if isinstance(name, str) and isinstance(weights, str) else UNKNOWN
        )
        lines.append(f"- {label} {_code(name)}: {terms}")
    return f"{intro}\n\n" + "\n".join(lines)


def _eval_data(run: RunFacts) -> list[str]:
    named = None if run.cost is None else run.cost.facts.get("eval_data")
    return [part for part in named.split("+") if part] if isinstance(named, str) else []


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _number(value: Any) -> str:
    return f"{value:,.0f}" if type(value) in (int, float) and value == value else MISSING


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _place(weights: Any) -> Any:
    """Where weights are from, without the folders of whoever trained."""
    local = (
        isinstance(weights, str)
        and ("/" in weights or "\\" in weights)
        and not weights.startswith("package:")
    )
    return weights.replace("\\", "/").rsplit("/", 1)[-1] if local else weights


def _code(value: Any) -> str:
    return MISSING if value is None else f"`{_plain(str(value))}`"


def _plain(text: str) -> str:
    """On one line, and without what would end code or a cell of a table."""
    return " ".join(clean(text).replace("`", "'").replace("|", "/").split())[:200]
