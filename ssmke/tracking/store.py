"""The one place that speaks to MLflow.

Used from the outbox's thread. MLflow is imported at the first connection, with its telemetry and its log of
database migrations turned off, and with short retries of its own: the outbox does the waiting.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssmke.tracking.provenance import environment, git_state

RUN_ID_FILE = "mlflow_run_id"
# The store understood and says no; anything else (locked database, server away) is worth another try.
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED")
_PARAM_BATCH = 100

_log = logging.getLogger(__name__)


def open_client(uri: str) -> Any:
    """A client of the store at ``uri``, quiet and with short retries; a sqlite file's folder is made."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if uri.startswith("sqlite"):
        Path(uri.partition(":///")[2]).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=uri)


def find_experiment(client: Any, name: str, uri: str, artifacts: Path) -> str:
    """The id of the experiment ``name``, made or restored where needed; ``artifacts``: a local store's folder."""
    found = client.get_experiment_by_name(name)
    if found is None:
        # A server chooses its own artifact store; a local database would choose by working directory.
        local = (artifacts.resolve() / name.replace("/", "_")).as_uri() if uri.startswith("sqlite") else None
        return str(client.create_experiment(name, artifact_location=local))
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


class MlflowStore:
    """One MLflow run in ``experiment`` of the store at ``uri``; its id is kept in ``run_dir``."""

    def __init__(self, uri: str, experiment: str, *, run_dir: Path, run_name: str, artifacts: Path) -> None:
        self.uri = uri
        self.run_id: str | None = None
        self._experiment_name = experiment
        self._run_dir = run_dir
        self._run_name = run_name
        self._artifacts = artifacts
        self._client: Any = None

    def connect(self) -> None:
        """Continues the run that the run folder names, or begins one."""
        client = self._open()
        known = self._run_dir / RUN_ID_FILE
        run_id = known.read_text(encoding="utf-8").strip() if known.is_file() else None
        if run_id is not None and not self._exists(run_id):
            _log.warning(
                "tracking: MLflow run %s is not in %s any more: a new one is begun", run_id, self.uri
            )
            run_id = None
        if run_id is not None:
            client.update_run(run_id, status="RUNNING")
        else:
            self._run_dir.mkdir(parents=True, exist_ok=True)
            run_id = str(
                client.create_run(
                    find_experiment(client, self._experiment_name, self.uri, self._artifacts),
                    run_name=self._run_name,
                ).info.run_id
            )
            known.write_text(run_id + "\n", encoding="utf-8")
        self.run_id = run_id

    def send(self, entry: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric, RunTag

        client, run_id, op = self._client, self.run_id, entry["op"]
        if op == "metrics":
            # The time stamp is the one of logging: MLflow then takes a repeated delivery as the same row.
            client.log_batch(run_id, metrics=[Metric(*row) for row in entry["rows"]])
        elif op == "params":
            self._send_params(entry["values"])
        elif op == "tags":
            client.log_batch(run_id, tags=[RunTag(k, v) for k, v in entry["values"].items()])
        elif op == "artifact":
            client.log_artifact(run_id, entry["path"], entry["folder"])
        elif op == "provenance":
            tags = git_state(Path(entry["source"]))
            client.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items()])
            client.log_dict(run_id, environment(entry["variables"]), "environment.json")
        elif op == "status":
            client.set_terminated(run_id, entry["status"])
        else:
            raise ValueError(f"unknown entry {op!r}")

    def refuses(self, error: Exception) -> bool:
        code = getattr(error, "error_code", None)
        return code in _REFUSALS or isinstance(error, (ValueError, TypeError, KeyError, FileNotFoundError))

    def _open(self) -> Any:
        if self._client is None:
            self._client = open_client(self.uri)
        return self._client

    def _exists(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return False
            raise

    def _send_params(self, values: Mapping[str, str]) -> None:
        """MLflow params cannot change: those that a resumed attempt changed become tags ``resumed.<key>``."""
        from mlflow.entities import Param, RunTag
        from mlflow.exceptions import MlflowException

        rows = [Param(k, v) for k, v in values.items()]
        changed: list[RunTag] = []
        for at in range(0, len(rows), _PARAM_BATCH):
            batch = rows[at : at + _PARAM_BATCH]
            try:
                self._client.log_batch(self.run_id, params=batch)
            except MlflowException as error:
                if not self.refuses(error):
                    raise
                for row in batch:
                    try:
                        self._client.log_batch(self.run_id, params=[row])
                    except MlflowException as refused:
                        if not self.refuses(refused):
                            raise
                        changed.append(RunTag(f"resumed.{row.key}"[:250], row.value))
        if changed:
            self._client.log_batch(self.run_id, tags=changed)
