"""What a run cost is in its ledger and in MLflow, live and at its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssmke.cost.report import RunReport, report
from tests.e2e.runs import Pretrain, Run

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def tracked(pretrain: Pretrain, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    """A run with MLflow, and its store."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    return pretrain(
        "--tracking.enabled", "--tracking.uri", uri, "--cost.price", "3.6", "--log-every", "1"
    ), uri


@pytest.fixture(scope="module")
def accounted(tracked: tuple[Run, str]) -> RunReport:
    """The run as the report sees it."""
    [found] = report(tracked[0].folder).runs
    return found


def test_every_phase_of_a_run_is_in_its_ledger(accounted: RunReport) -> None:
    assert accounted.attempts[0].outcome == "finished"
    phases = accounted.usage.phases
    assert {"setup", "data_wait", "train", "checkpoint", "evaluation"} <= set(phases)
    assert phases.get("idle", 0) < 0.05 * accounted.usage.device_ns + 0.2e9  # starting and joining threads
    assert accounted.final == accounted.usage


def test_operations_are_counted_and_an_unknown_peak_gives_no_mfu(accounted: RunReport) -> None:
    counted = accounted.facts["efficiency"]
    assert counted["flops_per_pair"] > 0
    assert counted["padded_flops_per_pair"] >= counted["flops_per_pair"]
    assert 0 < counted["text_tokens_per_pair"] <= counted["padded_tokens_per_pair"] <= 16
    assert counted["tflops_per_device"] > 0
    assert counted["mfu"] is None
    assert "no peak is known" in counted["mfu_note"]


def test_costs_are_live_in_mlflow_and_the_page_is_an_artifact(
    tracked: tuple[Run, str], accounted: RunReport
) -> None:
    from mlflow import MlflowClient

    run, uri = tracked
    client = MlflowClient(tracking_uri=uri)
    run_id = (run.folder / "mlflow_run_id").read_text().strip()
    dollars = client.get_metric_history(run_id, "cost/usd_total")
    values = [m.value for m in sorted(dollars, key=lambda m: (m.step, m.value))]
    assert len({m.step for m in dollars}) == 16
    assert values == sorted(values)
    assert values[-1] == pytest.approx(float(accounted.usage.usd or 0), rel=0.2)
    metrics = client.get_run(run_id).data.metrics
    assert (
        metrics["cost/projected_usd_low"]
        <= metrics["cost/projected_usd"]
        <= metrics["cost/projected_usd_high"]
    )
    assert metrics["cost/projected_usd"] >= values[0]
    for key in ("cost/device_hours", "cost/pairs_per_usd", "cost/hours/train", "cost/tflops_per_device"):
        assert metrics[key] > 0, key
    assert "cost_dashboard.html" in [f.path for f in client.list_artifacts(run_id)]
    local = client.download_artifacts(run_id, "cost_dashboard.html", str(run.folder))
    page = Path(local).read_text()
    assert "finished" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
