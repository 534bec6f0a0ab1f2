"""The MLflow run of a training whose process died: it says RUNNING for ever, unless somebody closes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ssmke.credentials import masked
from ssmke.errors import ConfigError
from ssmke.tracking.store import RUN_ID_FILE, open_client

_LEVELS = 4


def close_run(run_dir: Path, *, ended_wall_ns: int, uri: str | None = None) -> str:
    """Marks the MLflow run of ``run_dir`` as KILLED at its last heartbeat; says what it did, "" for nothing to do.

    Only a run that still says RUNNING is touched. A server is asked only if it is the caller's ``uri``: a run folder
    may come from others, and its recipe must not choose where our credentials for MLflow are sent. ConfigError if the
    store does not answer.
    """
    try:
        run_id = (run_dir / RUN_ID_FILE).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
    store = uri or store_of(run_dir)
    if store is None:
        return f"its MLflow store is not known (run {run_id}): say --tracking-uri"
    if uri is None and not store.startswith("sqlite"):
        return f"its MLflow run {run_id} is in {masked(store)}: if that is yours, say --tracking-uri {masked(store)}"
    from mlflow.exceptions import MlflowException

    try:
        client = open_client(store)
        if client.get_run(run_id).info.status != "RUNNING":
            return ""
        client.set_tag(run_id, "ssmke.reconciled", "killed: closed at its last heartbeat")
        client.set_terminated(run_id, "KILLED", end_time=ended_wall_ns // 1_000_000)
    except Exception as error:  # MLflow's own, SQLAlchemy's, the operating system's
        if isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return f"MLflow run {run_id} is not in {store}"
        why = masked((str(error).splitlines() or [type(error).__name__])[0])
        raise ConfigError(
            f"{masked(store)}: the MLflow store does not answer ({why}); the ledgers are closed: run the same command "
            "again"
        ) from error
    return f"MLflow run {run_id} closed as KILLED"


def store_of(run_dir: Path) -> str | None:
    """The MLflow store that a run folder's training logged to; None if it cannot be told."""
    try:
        recipe: dict[str, Any] = json.loads((run_dir / "recipe.json").read_text(encoding="utf-8"))
        uri = recipe["tracking"]["uri"]
    except (OSError, ValueError, KeyError, TypeError):
        uri = None
    if uri is not None and not str(uri).startswith("sqlite"):
        return str(uri)
    name = "mlflow.db" if uri is None else str(uri).partition(":///")[2]
    for folder in list(run_dir.resolve().parents)[:_LEVELS]:
        # Not elsewhere: MLflow would migrate whatever database a foreign recipe names.
        found = (folder / name).resolve()
        inside = found.parent == folder if Path(name).is_absolute() else found.is_relative_to(folder)
        if inside and found.is_file():
            return f"sqlite:///{folder / name}"
    return None
