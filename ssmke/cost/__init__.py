"""What training costs: probe -> meter -> ledger -> usage -> (prices, baselines) -> report.

Facts of use are appended to a local, crash-safe ledger; device-hours, energy and dollars are derived from it
with dated prices. Nothing in here imports torch, MLflow or the training code: ``ssmke-cost`` starts in well
under a second.
"""

from __future__ import annotations

from ssmke.cost.config import CostConfig
from ssmke.cost.meter import CostMeter
from ssmke.cost.phases import PHASES
from ssmke.cost.totals import Totals

__all__ = ["PHASES", "CostConfig", "CostMeter", "Totals"]
