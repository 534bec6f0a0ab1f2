"""The cost dashboard in MLflow: one standing run per experiment, and pages in the runs themselves.

MLflow shows an HTML artifact in a sandboxed frame. A standing run "cost dashboard" (found by its tag, so it may
be renamed) holds the page of the whole experiment and is overwritten each time; a run folder's page goes to that
run. Called from the command line, never from training: it waits for the store, and says what is wrong with it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ssmke.credentials import masked
from ssmke.errors import ConfigError, SSMKEError
from ssmke.tracking.store import find_experiment, open_client

if TYPE_CHECKING:
    from mlflow import MlflowClient

NAME = "cost dashboard"
TAG = "ssmke.standing"
_NOTE = (
    "Training cost of all runs of this workspace: the page is under Artifacts, `{file}`. "
    "`ssmke-cost dashboard` renews it."
)


def ui_command(uri: str) -> str:
    """What starts MLflow's page on a store, for a shell. MLflow asks nobody for a password: this machine only."""
    return shlex.join(["mlflow", "ui", "--backend-store-uri", uri, "--host", "127.0.0.1"])


@dataclass(frozen=True)
class Published:
    """Where a page went."""

    uri: str
    experiment_id: str
    run_id: str
    file: str

    @property
    def command(self) -> str | None:
        """What starts the UI on a local store; None for a server, which has one."""
        return None if self.uri.startswith("http") else ui_command(self.uri)

    @property
    def address(self) -> str:
        """The page in the UI."""
        base = self.uri.rstrip("/") if self.uri.startswith("http") else "http://127.0.0.1:5000"
        return f"{base}/#/experiments/{self.experiment_id}/runs/{self.run_id}/artifacts/{self.file}"


def publish_workspace(
    page: Path, *, uri: str, experiment: str, artifacts: Path, metrics: Mapping[str, float] | None = None
) -> Published:
    """Logs ``page`` to the standing run of ``experiment``, which is made if there is none.

    ``artifacts``: where a local store keeps the artifacts of an experiment that has to be made. ``metrics``:
    numbers for the run list, at step 0 and now.
    """
    with _store(uri) as client:
        experiment_id = find_experiment(client, experiment, uri, artifacts)
        run_id = _standing(client, experiment_id, page.name)
        client.log_artifact(run_id, str(page))
        for name, value in (metrics or {}).items():
            client.log_metric(run_id, name, value)
        client.set_terminated(run_id)
    return Published(uri, experiment_id, run_id, page.name)


def publish_run(page: Path, run_id: str, *, uri: str) -> Published:
    """Logs ``page`` to the MLflow run of a run folder; the run's status stays as it is."""
    with _store(uri) as client:
        experiment_id = str(client.get_run(run_id).info.experiment_id)
        client.log_artifact(run_id, str(page))
    return Published(uri, experiment_id, run_id, page.name)


@contextmanager
def _store(uri: str) -> Iterator[MlflowClient]:
    """A client whose failures are told in one line: wrong address, server away, damaged database."""
    try:
        yield open_client(uri)
    except SSMKEError:
        raise
    except Exception as error:  # MLflow's own, SQLAlchemy's, the operating system's
        text = masked((str(error).splitlines() or [type(error).__name__])[0])
        raise ConfigError(
            f"--tracking-uri {masked(uri)}: {text}; the page is written all the same, open it as a file"
        ) from error


def _standing(client: MlflowClient, experiment_id: str, file: str) -> str:
    # Two of them (two people published at once) are no harm: the oldest is the one.
    found = client.search_runs(
        [experiment_id],
        filter_string=f"tags.`{TAG}` = '{NAME}'",
        order_by=["attributes.start_time ASC"],
        max_results=1,
    )
    if found:
        return str(found[0].info.run_id)
    tags = {TAG: NAME, "mlflow.note.content": _NOTE.format(file=file)}
    return str(client.create_run(experiment_id, run_name=NAME, tags=tags).info.run_id)
