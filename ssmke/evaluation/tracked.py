"""Results into MLflow: into the run that trained the model where there is one, else into a run of their own.

A model folder RUN/model belongs to the run whose folder is RUN: its recipe says which store and experiment, and
``mlflow_run_id`` which run, so that losses, dollars and scores stand side by side. For peers, and models that were
copied elsewhere, a run is made. Only numbers go there, as ``eval/<task>/<data>/<name>``; the JSON file has the rest.

Nothing is queued as in training: an evaluation that asked for MLflow and cannot reach it ends with an error, after its
table was printed and its file written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssmke import foreign_json
from ssmke.errors import ConfigError
from ssmke.tracking import TrackingConfig
from ssmke.tracking.store import RUN_ID_FILE, find_experiment, open_client

_KEY = re.compile(r"[^\w\-. :/]")


@dataclass(frozen=True)
class Destination:
    """Where results of a model go."""

    uri: str
    experiment: str
    workspace: Path
    """Where artifacts of a local store lie."""
    run_id: str | None
    """The run that trained the model; None: a new one."""


def destination(model: str, uri: str | None = None, experiment: str | None = None) -> Destination:
    """The store and run for results of ``model`` (folder, or the name of a peer).

    ``uri`` and ``experiment`` come before what the run says; without either the store is ``mlflow.db`` here.

    Raises:
        ConfigError: the address is none of MLflow's.
    """
    run = Path(model).resolve().parent
    recipe = _recipe(run) if Path(model).is_dir() else {}  # a peer's name is no path
    said = recipe.get("tracking")
    tracking: dict[str, Any] = said if isinstance(said, dict) else {}
    config = TrackingConfig(
        uri or _text(tracking.get("uri")), experiment or _text(tracking.get("experiment")) or "ssmke"
    )
    workspace = Path.cwd()
    if recipe:
        # The recipe's folder may be relative to where the run was started; runs lie two levels below it.
        candidates = [Path(_text(recipe.get("runs_dir")) or "runs"), run.parent.parent, run.parent]
        workspace = next((path for path in candidates if (path / "mlflow.db").is_file()), run.parent)
    known = run / RUN_ID_FILE
    run_id = known.read_text(encoding="utf-8").strip() if recipe and uri is None and known.is_file() else None
    return Destination(config.resolved_uri(workspace), config.experiment, workspace, run_id or None)


def _recipe(run: Path) -> dict[str, Any]:
    try:
        recipe = foreign_json.loads((run / "recipe.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return recipe if isinstance(recipe, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def log_results(
    to: Destination, run_name: str, prefix: str, metrics: Mapping[str, float], tags: Mapping[str, str]
) -> str:
    """Logs ``metrics`` under ``prefix``; gives the id of the run that has them.

    Raises:
        ConfigError: the store cannot be reached, or refuses.
    """
    try:
        client = open_client(to.uri)
        run_id = to.run_id if to.run_id and _is_there(client, to.run_id) else None
        made = run_id is None
        if run_id is None:
            found = find_experiment(client, to.experiment, to.uri, to.workspace / "mlartifacts")
            run_id = str(client.create_run(found, run_name=run_name).info.run_id)
        for name, value in metrics.items():
            if math.isfinite(value):
                client.log_metric(run_id, _KEY.sub("_", f"{prefix}/{name}")[:250], float(value), step=0)
        for name, text in tags.items():
            client.set_tag(run_id, name, text[:5000])
        if made:
            client.set_terminated(run_id, "FINISHED")
    except Exception as error:  # MLflow, its databases and its server raise of all kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"--mlflow: {to.uri} takes no results ({reason}): check --tracking-uri") from error
    return run_id


def _is_there(client: Any, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return False
        raise
