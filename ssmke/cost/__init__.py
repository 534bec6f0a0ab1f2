"""What training costs: probes -> meter -> ledger -> outcomes -> (prices, published runs) -> report.

    meter, phases, budget, totals   what runs inside a training        probes/      what devices report
    ledger/       facts of use, appended, read back, summed up         prices/      dated prices, the user's own
    efficiency/   operations of a pair, peaks of devices               estimates/   forecasts and what-if
    published/    others' runs, their dollars and quality              report, audit, render/, charts/, dashboard/

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
