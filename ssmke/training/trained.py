"""A run that begins with a trained student: its weights, its architecture, and that it stays the same one.

The folder (``--init RUN/model``) decides the architecture. A flag of ``--model.*`` that asks for another one is
refused, never ignored; what a flag leaves at its default is the folder's. What is trained is the new run's decision:
``--model.image.frozen`` and the ``freeze`` flags count, not those that the student was trained with. The prediction
head goes with its teacher: it is kept where this run's teacher has its width, else it is left out or made anew.

Temperatures are no part of a saved student; they begin anew.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ssmke import foreign_json
from ssmke.data.atomic import write_json
from ssmke.data.shards import file_sha256
from ssmke.differences import flatten
from ssmke.errors import CheckpointError, ConfigError, WeightsError
from ssmke.models.student import SSMKE, StudentConfig

FILE = "init.json"
"""In the run folder: which student the run began with."""

_TRAINING = ("image.frozen", "image.freeze_blocks", "text.frozen", "text.freeze_layers")
_SOURCES = ("image.weights", "text.weights", "text.tokenizer", "text.architecture", "prediction_dim")


def trained_student(folder: str, asked: StudentConfig, prediction_dim: int | None) -> SSMKE:
    """The student of ``folder``, to be trained on as ``asked`` says.

    ``prediction_dim``: width of this run's teacher; None: no prediction head.

    Raises:
        WeightsError: the folder is no trained student.
        ConfigError: ``asked`` wants another architecture; the message names the flag.
    """
    found = SSMKE.from_pretrained(folder)
    _refuse_contradictions(folder, asked, found.config)
    saved = found.config
    config = dataclasses.replace(
        saved,
        image=dataclasses.replace(
            saved.image, frozen=asked.image.frozen, freeze_blocks=asked.image.freeze_blocks
        ),
        text=dataclasses.replace(
            saved.text, frozen=asked.text.frozen, freeze_layers=asked.text.freeze_layers
        ),
        prediction_dim=prediction_dim,
    )
    student = SSMKE(config, quiet=True)
    state = found.state_dict()
    if prediction_dim != saved.prediction_dim:
        own = student.state_dict()
        state = {name: value for name, value in state.items() if not name.startswith("prediction.")}
        state |= {name: value for name, value in own.items() if name.startswith("prediction.")}
    student.load_state_dict(state)
    return student.train()


def _refuse_contradictions(folder: str, asked: StudentConfig, saved: StudentConfig) -> None:
    wanted, default, there = (flatten(dataclasses.asdict(c)) for c in (asked, StudentConfig(), saved))
    for name, value in wanted.items():
        if any(name == part or name.startswith(f"{part}.") for part in _TRAINING):
            continue
        if value == default.get(name):
            continue
        flag = f"--model.{name.replace('_', '-')}"
        if any(name == part or name.startswith(f"{part}.") for part in _SOURCES):
            if name != "prediction_dim":
                raise ConfigError(
                    f"{flag} {value} and --init {folder} both say where weights come from: leave one out"
                )
        elif value != there.get(name):
            raise ConfigError(
                f"{flag} {value} is not what --init {folder} was trained with, {there.get(name)}: leave the flag out, "
                "or give another folder"
            )


def remember_init(run: Path, folder: str, *, resumed: bool) -> str:
    """Keeps in the run folder which student the run begins with (rank 0), and gives the digest of its weights.

    Raises:
        CheckpointError: a resumed run began with other weights than those that are now in ``folder``.
    """
    file, weights = run / FILE, Path(folder) / "model.safetensors"
    try:
        digest = file_sha256(weights)
    except OSError as error:
        raise WeightsError(
            f"--init {folder}: {weights.name} cannot be read ({error.strerror or error}): give the folder of a trained "
            "model (RUN/model)"
        ) from None
    if resumed and file.exists():
        try:
            began = foreign_json.loads(file.read_bytes())["digest"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{file} is damaged ({error}): start a new run") from None
        if began != digest:
            raise CheckpointError(
                f"the run began with other weights than --init {folder} now holds (sha256 {str(began)[:12]}, now "
                f"{digest[:12]}): restore that folder, or start a new run"
            )
    else:
        write_json(file, {"folder": folder, "digest": digest})
    return digest
