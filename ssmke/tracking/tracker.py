"""What training calls: parameters, metrics, pictures and files of a run, on their way to MLflow.

MLflow is a view of a run, not its record (the run folder and the cost ledger are), so a slow, absent or
broken server never delays or stops training: every call returns after putting an entry into a queue. What is
unsent at the end is kept in ``RUN_DIR/mlflow_unsent.jsonl`` and sent by the next attempt.

One MLflow run per lineage: its id is kept in ``RUN_DIR/mlflow_run_id`` and a resumed attempt continues it.
MLflow's "latest" value of a metric is the one with the largest step, not the last one logged, so the step of
a key never goes back within an attempt, and that of ``cost/`` keys not even over attempts.

The default store is sqlite with absolute paths (MLflow's own default depends on the working directory) and an
explicit artifact location. Only global rank 0 tracks.
"""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssmke import credentials
from ssmke.differences import flatten
from ssmke.errors import ConfigError
from ssmke.tracking.outbox import Outbox, keep_unsent, take_unsent
from ssmke.tracking.provenance import ENVIRONMENT
from ssmke.tracking.store import MlflowStore

if TYPE_CHECKING:
    from PIL import Image

STATUSES = ("FINISHED", "FAILED", "KILLED")
LAST_STEP_FILE = "mlflow_last_step"
UNSENT_FILE = "mlflow_unsent.jsonl"
_SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")
_VALUE_LIMIT, _KEY_LIMIT = 6000, 250
_CUT = " ... (cut)"
_STEP_EVERY_S = 10.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrackingConfig:
    """Where a run shows up in MLflow."""

    uri: str | None = None
    """MLflow tracking store: ``sqlite:///path/to/mlflow.db``, ``https://server``, or None for ``mlflow.db``
    in the workspace (the folder of the run folders). Relative sqlite paths are relative to the workspace."""

    experiment: str = "ssmke"
    """Name of the MLflow experiment; made if there is none."""

    enabled: bool = True
    """False: nothing is logged, and MLflow is not even imported."""

    def __post_init__(self) -> None:
        credentials.refuse({"uri": self.uri or "", "experiment": self.experiment}, "--tracking.")
        if not self.experiment.strip():
            raise ConfigError("--tracking.experiment must not be empty")
        if self.uri is not None and re.split(r"[:+]", self.uri)[0] not in _SCHEMES:
            raise ConfigError(
                f"--tracking.uri {self.uri!r}: MLflow keeps no runs in plain folders any more; give "
                "sqlite:///path/to/mlflow.db or the https:// address of a server"
            )

    def resolved_uri(self, workspace: Path) -> str:
        """The store's address, with an absolute path if it is a local database."""
        scheme, separator, path = (self.uri or "sqlite:///mlflow.db").partition(":///")
        if separator and scheme.startswith("sqlite"):
            return f"{scheme}:///{(workspace.resolve() / path).resolve()}"
        return self.uri or ""


class Tracker:
    """One attempt's line to MLflow; ``Tracker.start`` makes it. No method waits, or raises for MLflow."""

    def __init__(self, run_dir: Path, store: MlflowStore | None) -> None:
        self._run_dir = run_dir
        self._store = store
        self._outbox = None if store is None else Outbox(store, store.uri, delivered=self._delivered)
        self._steps: dict[str, int] = {}
        self._floor = 0 if store is None else _read_step(run_dir / LAST_STEP_FILE)
        self._reached = self._floor
        self._stored_at = time.monotonic()

    @classmethod
    def start(
        cls,
        config: TrackingConfig,
        *,
        run_dir: Path,
        run_name: str,
        workspace: Path | None = None,
        rank: int = 0,
        lineage: str | None = None,
        tags: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        source_dir: Path | None = None,
    ) -> Tracker:
        """Opens (or continues) this run folder's MLflow run in the background and returns at once.

        ``workspace`` holds ``mlflow.db`` and ``mlartifacts`` (default: the parent of ``run_dir``). Any
        ``rank`` but 0 gets a tracker that does nothing. ``environment`` is the launcher's os.environ, of
        which only the variables in ``provenance.ENVIRONMENT`` are kept. ``source_dir``: whose git commit is
        recorded (default: where this package lies).
        """
        run_dir = run_dir.resolve()
        workspace = (workspace or run_dir.parent).resolve()
        if rank != 0 or not config.enabled:
            return cls(run_dir, None)
        store = MlflowStore(
            config.resolved_uri(workspace),
            config.experiment,
            run_dir=run_dir,
            run_name=run_name,
            artifacts=workspace / "mlartifacts",
        )
        tracker = cls(run_dir, store)
        for entry in take_unsent(run_dir / UNSENT_FILE):
            tracker._put(entry)
        variables = {name: value for name, value in (environment or {}).items() if name in ENVIRONMENT}
        tracker._put(
            {"op": "provenance", "source": str(source_dir or Path(__file__).parent), "variables": variables}
        )
        tracker.tags(
            {"ssmke.run_dir": str(run_dir), **({"ssmke.lineage": lineage} if lineage else {}), **(tags or {})}
        )
        if tracker._outbox is not None:
            tracker._outbox.start()
        return tracker

    @property
    def enabled(self) -> bool:
        """Whether anything is logged at all."""
        return self._outbox is not None

    @property
    def uri(self) -> str | None:
        """The store's address, absolute; None when disabled."""
        return None if self._store is None else self._store.uri

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run, once the background thread has reached the store."""
        return None if self._store is None else self._store.run_id

    def params(self, values: Mapping[str, Any]) -> None:
        """Facts of the run that do not change. Nested mappings become dotted keys, long values are cut."""
        self._put({"op": "params", "values": {_key(k): _text(v) for k, v in flatten(values).items()}})

    def tags(self, values: Mapping[str, Any]) -> None:
        """Facts that may change, such as why a run ended."""
        self._put({"op": "tags", "values": {_key(k): _text(v) for k, v in values.items()}})

    def metrics(self, values: Mapping[str, float | int | None], step: int) -> None:
        """Numbers at an optimiser step. None (unknown) and infinities are left out: MLflow has neither."""
        if self._outbox is None:
            return
        now = time.time_ns() // 1_000_000
        rows: list[list[Any]] = []
        for name, value in values.items():
            if value is None or math.isinf(value):
                continue
            key = _key(name)
            at = max(step, self._steps.get(key, step), self._floor if key.startswith("cost/") else step)
            self._steps[key] = at
            rows.append([key, float(value), now, at])
        if rows:
            self._put({"op": "metrics", "rows": rows})

    def text(self, name: str, content: str) -> None:
        """A text artifact (``retrieval.md``); kept as ``RUN_DIR/artifacts/<name>`` too."""
        self._write_then_send(name, lambda path: path.write_text(content, encoding="utf-8"))

    def image(self, name: str, image: Image.Image) -> None:
        """A picture as artifact, in the format of the suffix of ``name``; kept in the run folder too."""
        self._write_then_send(name, image.save)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """A file as artifact under ``folder``; it must stay where it is until sent."""
        self._put({"op": "artifact", "path": str(Path(path).resolve()), "folder": folder})

    def finish(self, status: str = "FINISHED", timeout_s: float = 30.0) -> bool:
        """Sends what is left and sets the run's status; whether all got through within ``timeout_s``.

        The rest is kept for the next attempt, and said. Later calls of any method do nothing.
        """
        if status not in STATUSES:
            raise ValueError(f"status {status!r} is none of {', '.join(STATUSES)}")
        if self._outbox is None:
            return True
        self._put({"op": "status", "status": status})
        outbox, self._outbox = self._outbox, None
        unsent = outbox.close(timeout_s)
        self._store_step()
        if unsent:
            try:
                keep_unsent(self._run_dir / UNSENT_FILE, unsent)
                kept = f"kept in {self._run_dir / UNSENT_FILE} for the next attempt"
            except OSError as error:
                kept = f"lost ({error})"
            _log.warning("tracking: %d entries did not reach %s: %s", len(unsent), self.uri, kept)
        return not unsent

    def _put(self, entry: dict[str, Any]) -> None:
        if self._outbox is not None:
            self._outbox.put(entry)

    def _write_then_send(self, name: str, write: Callable[[Path], Any]) -> None:
        if self._outbox is None:
            return
        root = self._run_dir / "artifacts"
        path = root / name
        try:
            if not path.resolve().is_relative_to(root):
                raise ValueError(f"{name!r} leads out of the artifact folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
        except (
            Exception
        ) as error:  # a full disk, or whatever an image format raises: never training's problem
            self._outbox.trouble(f"artifact {name}", error)
            return
        folder = Path(name).parent.as_posix()
        self.artifact(path, None if folder == "." else folder)

    def _delivered(self, entry: Mapping[str, Any]) -> None:
        """In the outbox's thread: remembers how far the ``cost/`` metrics got."""
        if entry["op"] != "metrics":
            return
        self._reached = max([self._reached, *(row[3] for row in entry["rows"] if row[0].startswith("cost/"))])
        if time.monotonic() - self._stored_at >= _STEP_EVERY_S:
            self._store_step()

    def _store_step(self) -> None:
        self._stored_at = time.monotonic()
        if self._reached <= self._floor:
            return
        try:
            (self._run_dir / LAST_STEP_FILE).write_text(f"{self._reached}\n", encoding="utf-8")
        except OSError as error:
            _log.warning("tracking: %s cannot be written: %s", LAST_STEP_FILE, error)


def _read_step(path: Path) -> int:
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0


def _key(name: str) -> str:
    """A key that MLflow accepts: "R@1" becomes "R_1"."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:_KEY_LIMIT]


def _text(value: Any) -> str:
    text = credentials.masked(value if isinstance(value, str) else json.dumps(value, default=str))
    return text if len(text) <= _VALUE_LIMIT else text[: _VALUE_LIMIT - len(_CUT)] + _CUT
