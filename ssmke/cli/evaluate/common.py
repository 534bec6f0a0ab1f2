"""What all suites do before they measure and after: the device, the models, the places of results.

Measuring takes hours, so what can be wrong is looked for first: a place that takes no file, a name that is no model.
What goes wrong later all the same, with one of several models, does not cost the numbers of those before it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from ssmke.errors import ConfigError, SSMKEError, WeightsError

if TYPE_CHECKING:
    import torch

    from ssmke.console import CleanConsole
    from ssmke.models.dual_encoder import DualEncoder

SEEDS_DIFFER_IN = ("seed", "name", "runs_dir", "targets.dir")
"""Parts of a recipe in which seeds of one recipe may differ, beside what attempts of one run may differ in."""


@dataclass(frozen=True)
class Places:
    """Where results go, apart from the screen."""

    out: Path | None
    mlflow: bool
    tracking_uri: str | None
    experiment: str | None

    def prepare(self, models: tuple[str, ...]) -> None:
        """Raises what can be known to be wrong before the work: a place that takes no file, an address of MLflow."""
        from ssmke.evaluation.tracked import destination

        if self.out is not None:
            check_writable(self.out)
        if self.logs:
            for model in models:
                destination(model, self.tracking_uri, self.experiment)

    @property
    def logs(self) -> bool:
        """Whether results go to MLflow."""
        return self.mlflow or self.tracking_uri is not None

    def write(self, results: Mapping[str, Any], console: CleanConsole) -> None:
        """Writes the JSON file, if one was asked for."""
        from ssmke.data.atomic import write_json

        if self.out is not None:
            write_json(self.out, results)
            console.print(f"numbers: {escape(str(self.out))}")

    def log(
        self, model: str, suite: str, data: str, metrics: Mapping[str, float], console: CleanConsole
    ) -> None:
        """Logs ``metrics`` as ``eval/<suite>/<data>/<name>``, if asked for."""
        from ssmke.evaluation.tracked import destination, log_results

        if not self.logs:
            return
        to = destination(model, self.tracking_uri, self.experiment)
        tags = {"ssmke.evaluated_model": model, f"ssmke.evaluated.{suite}": data}
        run_id = log_results(to, f"evaluate {Path(model).name}", f"eval/{suite}/{data}", metrics, tags)
        console.print(f"MLflow: run {run_id} in {escape(to.uri)}")


def check_writable(file: Path) -> None:
    """Makes the folder of ``file``, and raises DataError where a file of that name could not be written at the end."""
    from ssmke.data.atomic import TEMPORARY_SUFFIX, make_folder, write_error

    make_folder(file.parent)
    if os.path.isdir(file):  # noqa: PTH112 - Path.is_dir may raise
        raise write_error(file, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
    try:
        # As long a name as `atomic_writer` gives to what it writes.
        with NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", suffix=TEMPORARY_SUFFIX):
            pass
    except OSError as error:
        raise write_error(file, error) from error


def check_models(models: Sequence[str]) -> None:
    """Looks for each model without reading its weights; ours are fetched from the hub where a name means that.

    Of peers only folders are looked for: what other names mean, their libraries know.

    Raises:
        ConfigError: there are none, or a name ends at its colon.
        WeightsError: there is no such folder, or it holds no model.
    """
    from ssmke.models import pretrained
    from ssmke.models.dual_encoder import PEERS

    if not models:
        raise ConfigError("--model: give at least one")
    for name in models:
        library, colon, rest = name.partition(":")
        if colon and library in PEERS:
            if not rest:
                raise ConfigError(f"--model {name} names no model: give {name}NAME")
            folder = Path(rest.removeprefix("local-dir:")).expanduser()
            is_path = rest.startswith(("/", ".", "~", "local-dir:"))
            if is_path and not folder.exists():
                raise WeightsError(f"--model {name}: there is no {folder}")
        elif (named := pretrained.hub_name(name)) is not None:
            pretrained.download(*named)
        elif not _looks_whole(Path(name)):
            pretrained.load(name)  # fails at the same files, and says why


def _looks_whole(folder: Path) -> bool:
    """Whether config and weights of a model of ours are there, and their beginnings can be read."""
    from safetensors import SafetensorError, safe_open

    from ssmke import foreign_json
    from ssmke.models.pretrained import FORMAT

    try:
        config = foreign_json.loads((folder / "config.json").read_bytes())
        with safe_open(folder / "model.safetensors", framework="pt"):
            return isinstance(config, dict) and config.get("format") == FORMAT
    except (OSError, ValueError, SafetensorError):
        return False


def measure_each(
    models: Sequence[str],
    measure: Callable[[str], dict[str, Any]],
    common: Mapping[str, Any],
    columns: Sequence[str],
    places: Places,
    log: Callable[[str, dict[str, Any]], None],
    console: CleanConsole,
    seeds: bool,
) -> None:
    """Measures the models in turn; compares, writes and logs what was found.

    Where one fails, what those before it gave is written and logged before the error goes on.

    Args:
        models: their names.
        measure: prints the tables of one model and gives what the JSON file holds of it, numbers as "metrics".
        common: what the JSON file holds beside the models.
        columns: metrics that the comparison shows.
        places: where the JSON file goes.
        log: takes the name and results of one model to MLflow, if asked for.
        console: where it is said.
        seeds: see `comparison`.
    """
    found: list[dict[str, Any]] = []
    try:
        for name in models:
            found.append(measure(name))
    except BaseException:  # Ctrl-C too
        if found:
            unfinished = list(models[len(found) :])
            try:
                places.write(
                    {**common, "models": found, "aggregate": None, "unfinished": unfinished}, console
                )
                for name, results in zip(models, found, strict=False):
                    log(name, results)
            except SSMKEError as error:  # the first error is the one to be told
                console.print(f"[yellow]{escape(str(error))}[/]")
        raise
    if len(found) == 1:
        places.write({**common, **found[0]}, console)
    else:
        table, spread, why = comparison(models, [results["metrics"] for results in found], columns, seeds)
        console.print(table)
        places.write({**common, "models": found, "aggregate": spread, "not_averaged": why}, console)
    for name, results in zip(models, found, strict=True):
        log(name, results)


def find_device(name: str) -> torch.device:
    """The device that ``--device`` names; ``auto`` takes a GPU where there is one.

    Raises:
        ConfigError: this machine has no such device.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=torch.device(name)).device
    except (RuntimeError, AssertionError) as error:  # what torch raises for a device that is not there
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name}: {reason} Give auto, cpu or a device of this machine.") from None


def check_batch_size(batch_size: int) -> None:
    """Raises ConfigError for none."""
    if batch_size < 1:
        raise ConfigError(f"--batch-size {batch_size}: must be at least 1")


def facts(encoder: DualEncoder) -> dict[str, str]:
    """Which model it was, for the JSON file: where it lies, and the digest of its weights."""
    folder = Path(encoder.name)
    path = str(folder.resolve()) if folder.exists() else encoder.name
    return {"path": path, "weights_sha256": encoder.digest}


def comparison(
    models: Sequence[str], metrics: Sequence[Mapping[str, float]], columns: Sequence[str], seeds: bool
) -> tuple[Table, dict[str, dict[str, Any]] | None, str | None]:
    """A table of several models; mean and spread of each number where they are seeds of one recipe; else why not.

    They are where the recipes beside them say so, or the user does (``seeds``). Of other models a mean would mean
    nothing.
    """
    from ssmke.evaluation.intervals import aggregate

    why = None if seeds else _no_seeds(models)
    over_seeds = aggregate(metrics) if why is None else {}
    note = "mean ± standard deviation over seeds (n - 1)"
    if why is not None:
        note = f"compared, not averaged: {why}"
    legend = "\n".join(f"{i}: {model}" for i, model in enumerate(models, 1))
    table = Table(title=f"{len(models)} models, %", caption=escape(f"{note}\n{legend}"))
    table.add_column("")
    if over_seeds:
        table.add_column("mean ± std", justify="right", style="bold", no_wrap=True)
    for i in range(len(models)):
        table.add_column(str(i + 1), justify="right")
    for name in columns:
        mean = [str(over_seeds[name])] if over_seeds else []
        table.add_row(name.replace("_", " "), *mean, *(f"{numbers[name]:.2f}" for numbers in metrics))
    if why is not None:
        return table, None, why
    return table, {k: {"mean": a.mean, "std": a.std, "values": a.values} for k, a in over_seeds.items()}, None


def _no_seeds(models: Sequence[str]) -> str | None:
    """Why ``models`` are not known to be seeds of one recipe; None where they are."""
    from ssmke import foreign_json
    from ssmke.differences import differences
    from ssmke.models.dual_encoder import PEERS
    from ssmke.training.run_folder import ADDED, VOLATILE

    recipes: list[dict[str, Any]] = []
    for number, name in enumerate(models, 1):
        if name.partition(":")[0] in PEERS:
            return f"{number} is a peer"
        try:
            recipe = foreign_json.loads((Path(name).resolve().parent / "recipe.json").read_bytes())
        except (OSError, ValueError):
            recipe = None
        if not isinstance(recipe, dict):
            return f"{number} has no recipe.json beside its folder (--seeds: they are seeds of one recipe)"
        recipes.append(recipe)
    for number, recipe in enumerate(recipes[1:], 2):
        for key, one, other in differences(recipes[0], recipe):
            may_differ = any(
                key == part or key.startswith(f"{part}.") for part in (*VOLATILE, *SEEDS_DIFFER_IN)
            )
            if not may_differ and (one is None) + (other is None) == 1 and key in ADDED:
                may_differ = ADDED[key] in (one, other)
            if not may_differ:
                return f"recipes of 1 and {number} differ, {key} is {one!r} and {other!r}"
    if len({repr(recipe.get("seed")) for recipe in recipes}) < len(recipes):
        return "some have the same seed"
    return None
