"""MLflow, off the training path. Nothing outside this package (and the cost dashboard) knows of MLflow.

``tracker`` is what training calls; ``outbox`` carries its entries over in a thread; ``store`` speaks to
MLflow; ``provenance`` says which code and environment a run came from. Importing this costs nothing: MLflow
takes seconds to import and is imported in the thread.
"""

from __future__ import annotations

from ssmke.tracking.tracker import Tracker, TrackingConfig

__all__ = ["Tracker", "TrackingConfig"]
