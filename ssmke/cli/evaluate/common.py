"""What all suites do before they measure and after: the device, the model, the places of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from ssmke.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from ssmke.console import CleanConsole
    from ssmke.models.dual_encoder import DualEncoder


@dataclass(frozen=True)
class Places:
    """Where results go, apart from the screen."""

    out: Path | None
    mlflow: bool
    tracking_uri: str | None
    experiment: str | None

    def prepare(self, models: tuple[str, ...]) -> None:
        """Raises what can be known to be wrong before the work: a folder, or an address of MLflow."""
        from ssmke.data.atomic import make_folder
        from ssmke.evaluation.tracked import destination

        if self.out is not None:
            make_folder(self.out.parent)
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
    models: Sequence[str], metrics: Sequence[Mapping[str, float]], columns: Sequence[str]
) -> tuple[Table, dict[str, dict[str, Any]]]:
    """A table of several models and, if all are ours, the mean and spread of each number, as it goes into JSON.

    Ours count as seeds of one recipe. Peers are other models, of which a mean would mean nothing.
    """
    from ssmke.evaluation.intervals import aggregate
    from ssmke.models.dual_encoder import PEERS

    peers = any(name.partition(":")[0] in PEERS for name in models)
    over_seeds = {} if peers else aggregate(metrics)
    note = "models compared, not averaged" if peers else "mean ± standard deviation over seeds (n - 1)"
    legend = "\n".join(f"{i}: {escape(model)}" for i, model in enumerate(models, 1))
    table = Table(title=f"{len(models)} models, %", caption=f"{note}\n{legend}")
    table.add_column("")
    if over_seeds:
        table.add_column("mean ± std", justify="right", style="bold", no_wrap=True)
    for i in range(len(models)):
        table.add_column(str(i + 1), justify="right")
    for name in columns:
        mean = [str(over_seeds[name])] if over_seeds else []
        table.add_row(name.replace("_", " "), *mean, *(f"{numbers[name]:.2f}" for numbers in metrics))
    spread = {key: {"mean": a.mean, "std": a.std, "values": a.values} for key, a in over_seeds.items()}
    return table, spread
