r"""The nine GLUE tasks as examples, from the official TSV files or the parquet files of Hugging Face.

    GLUE/CoLA/train.tsv  GLUE/CoLA/dev.tsv  GLUE/MNLI/dev_matched.tsv  ...         (official)
    GLUE/cola/train-00000-of-00001.parquet  GLUE/mnli/validation_matched-...       (Hugging Face)

The TSV files know no quoting: sentences hold single quotation marks, and a reader that pairs them swallows whole runs
of lines in silence (that is what `csv.QUOTE_NONE` is for; here a line is split at its tabs, which is the same). Lines
end at \n alone: sentences also hold characters, such as U+2028 and U+0085, at which `str.splitlines` breaks. Columns
are found by the header's names, as MNLI's train and dev files differ in them; CoLA has no header. A line with another
number of columns than the header (QQP has some) or without a usable label is left out and counted; more than 1 % of
them means a damaged or another file, and is refused.

Evaluation is on the dev sets: the labels of the test sets are not public.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssmke.errors import DataError
from ssmke.evaluation.finetune.glue_metrics import accuracy, f1, matthews, pearson, spearman

Metric = Callable[[Any, Any], float]
Example = tuple[str, str | None, float]
"""First sentence, second sentence if the task has pairs, and label: a class or STS-B's 0..5."""

_NLI = {"entailment": 0, "neutral": 1, "contradiction": 2}
_ENTAILS = {"entailment": 0, "not_entailment": 1}
_BINARY = {"0": 0, "1": 1}


@dataclass(frozen=True)
class GlueTask:
    """One task: its files, its columns, its metrics, and how long it is finetuned."""

    name: str
    """Folder in the official release."""
    columns: tuple[str, ...]
    """The official header's names of the sentence or the two sentences."""
    label: str
    """The official header's name of the label."""
    classes: dict[str, int]
    """Labels by the text that stands for them; empty: a number to be regressed."""
    metrics: dict[str, Metric]
    """By name; the first is the task's one number."""
    hf: tuple[str, tuple[str, ...]]
    """Folder and sentence columns at Hugging Face."""
    epochs: int
    batch_size: int
    lr: float
    dev: tuple[str, ...] = ("dev",)
    """Official names of the evaluation files, without suffix."""

    @property
    def outputs(self) -> int:
        """Width of the head."""
        return len(self.classes) or 1


_ACCURACY: dict[str, Metric] = {"accuracy": accuracy}
_F1: dict[str, Metric] = {"f1": f1, "accuracy": accuracy}
_PAIR = ("sentence1", "sentence2")
TASKS = {
    task.name: task
    for task in (
        GlueTask(
            "CoLA",
            ("3",),
            "1",
            _BINARY,
            {"matthews": matthews, "accuracy": accuracy},
            ("cola", ("sentence",)),
            5,
            32,
            3e-5,
        ),
        GlueTask("SST-2", ("sentence",), "label", _BINARY, _ACCURACY, ("sst2", ("sentence",)), 3, 32, 2e-5),
        GlueTask("MRPC", ("#1 String", "#2 String"), "Quality", _BINARY, _F1, ("mrpc", _PAIR), 5, 16, 3e-5),
        GlueTask(
            "STS-B",
            _PAIR,
            "score",
            {},
            {"spearman": spearman, "pearson": pearson},
            ("stsb", _PAIR),
            5,
            16,
            3e-5,
        ),
        GlueTask(
            "QQP",
            ("question1", "question2"),
            "is_duplicate",
            _BINARY,
            _F1,
            ("qqp", ("question1", "question2")),
            3,
            32,
            3e-5,
        ),
        GlueTask(
            "MNLI",
            _PAIR,
            "gold_label",
            _NLI,
            _ACCURACY,
            ("mnli", ("premise", "hypothesis")),
            3,
            32,
            3e-5,
            ("dev_matched", "dev_mismatched"),
        ),
        GlueTask(
            "QNLI",
            ("question", "sentence"),
            "label",
            _ENTAILS,
            _ACCURACY,
            ("qnli", ("question", "sentence")),
            3,
            32,
            3e-5,
        ),
        GlueTask("RTE", _PAIR, "label", _ENTAILS, _ACCURACY, ("rte", _PAIR), 5, 16, 3e-5),
        GlueTask("WNLI", _PAIR, "label", _BINARY, _ACCURACY, ("wnli", _PAIR), 5, 16, 2e-5),
    )
}
"""By official name. Lengths, batches and rates are those usual for BERT-base and DistilBERT."""


@dataclass(frozen=True)
class GlueData:
    """Examples of one task."""

    train: list[Example]
    dev: dict[str, list[Example]]
    """By official name of the file."""
    skipped: dict[str, int]
    """Lines that were left out, by file."""
    digest: str
    """SHA-256 over all examples."""


def read_glue(root: Path, task: GlueTask) -> GlueData:
    """Reads a task's training and dev files.

    Raises:
        DataError: a file or column is missing, damaged, or holds no examples.
    """
    folder = task_folder(root, task)
    if folder is None:
        raise DataError(
            f"{root} has no {task.name}/ (train.tsv, dev.tsv) and no {task.hf[0]}/ (parquet): download the task, or "
            "name the tasks that are there with --tasks"
        )
    read = _tsv if any(folder.glob("*.tsv")) else _parquet
    skipped: dict[str, int] = {}
    found = {split: read(folder, split, task, skipped) for split in ("train", *task.dev)}
    digest = hashlib.sha256(repr(sorted(found.items())).encode("utf-8", "surrogatepass")).hexdigest()
    return GlueData(found["train"], {name: found[name] for name in task.dev}, skipped, digest)


def task_folder(root: Path, task: GlueTask) -> Path | None:
    """The task's folder below ``root``, whatever the case of its name; None where there is none."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the one that holds CoLA/, SST-2/, ...")
    names = {task.name.lower(), task.hf[0], task.name.lower().replace("-", "_")}
    return next((p for p in sorted(root.iterdir()) if p.is_dir() and p.name.lower() in names), None)


def _tsv(folder: Path, split: str, task: GlueTask, skipped: dict[str, int]) -> list[Example]:
    file = folder / f"{split}.tsv"
    lines = _lines(file)
    if task.name == "CoLA":
        header = ["0", "1", "2", "3"]
    else:
        header = next(lines, [])
    for column in (*task.columns, task.label):
        if column not in header:
            raise DataError(
                f"{file}: no column {column!r} in its first line ({', '.join(header[:12])}): not {task.name}'s "
                f"{split} file of the official release"
            )
    sentences, label = [header.index(column) for column in task.columns], header.index(task.label)
    examples, bad = [], 0
    for fields in lines:
        value = _label(fields[label], task) if len(fields) == len(header) else None
        if value is None:
            bad += 1
            continue
        texts = [fields[i] for i in sentences]
        examples.append((texts[0], texts[1] if len(texts) == 2 else None, value))
    return _checked(file, examples, bad, skipped)


def _lines(file: Path) -> Iterator[list[str]]:
    r"""Fields of each line that is not empty; only \n ends one."""
    try:
        with file.open(encoding="utf-8-sig", newline="\n") as lines:
            for line in lines:
                if text := line.rstrip("\r\n"):
                    yield text.split("\t")
    except FileNotFoundError:
        raise DataError(f"{file} is missing: download the task again") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error}): download the task again") from None


def _parquet(folder: Path, split: str, task: GlueTask, skipped: dict[str, int]) -> list[Example]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = split.replace("dev", "validation")
    files = sorted(
        path for path in folder.rglob("*.parquet") if path.name.split("-")[0] == name or path.stem == name
    )
    if not files:
        raise DataError(f"{folder}: neither {split}.tsv nor {name}-*.parquet; download the task again")
    columns = task.hf[1]
    rows: list[dict[str, Any]] = []
    for file in files:
        try:
            rows += pq.read_table(file, columns=[*columns, "label"]).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"{file} cannot be read ({str(error).splitlines()[0]}): download it again"
            ) from None
        if rows and set(rows[-1]) != {*columns, "label"}:
            raise DataError(f"{file}: {task.name} has the columns {', '.join(columns)} and label")
    examples, bad = [], 0
    for row in rows:
        texts = [row[column] for column in columns]
        value = _number(row["label"], task)
        if value is None or not all(isinstance(text, str) for text in texts):
            bad += 1
            continue
        examples.append((texts[0], texts[1] if len(texts) == 2 else None, value))
    return _checked(folder / name, examples, bad, skipped)


def _label(text: str, task: GlueTask) -> float | None:
    if task.classes:
        return task.classes.get(text)
    try:
        return _number(float(text), task)
    except ValueError:
        return None


def _number(value: object, task: GlueTask) -> float | None:
    if not isinstance(value, (int, float)):
        return None
    if task.classes:
        return value if value in task.classes.values() else None
    return float(value) if 0 <= value <= 5 else None


def _checked(file: Path, examples: list[Example], bad: int, skipped: dict[str, int]) -> list[Example]:
    if bad > 0.01 * (len(examples) + bad) or not examples:
        raise DataError(
            f"{file}: {bad:,} of {len(examples) + bad:,} lines have no usable label or another number of columns than "
            "the first: damaged, or not the official release; download it again"
        )
    if bad:
        skipped[file.name] = bad
    return examples
