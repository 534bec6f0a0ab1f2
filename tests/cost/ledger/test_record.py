"""A ledger in which anything was changed: the report is made all the same, and the other runs are whole."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmke.cost import audit, render
from ssmke.cost.dashboard import page_of
from ssmke.cost.ledger.record import record_of
from ssmke.cost.report import report
from tests.cost.simulated import Training

FACTS = {
    "recipe": "r", "ranks": 2, "parameters": 117_000_000, "pairs_per_epoch": 1000, "eval_split": "test",
    "retrieval": {"i2t_r1": 10.0, "t2i_r1": 8.0, "images": 5000, "captions": 25_010},
    "efficiency": {"flops_per_pair": 1e9, "dtype": "bf16", "mfu": 0.3, "tflops_per_device": 100.0, "device": "x"},
    "forecast": {"usd": 1.0, "low": 0.5, "high": 2.0, "device_hours": 1.0},
}  # fmt: skip
VALUES = [None, -1, 10**30, 1.5, "x", "", [], {}, True, [1, 2], {"a": 1}, float("inf")]


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The records of a killed attempt, with facts."""
    folder = tmp_path_factory.mktemp("damaged")
    Training(folder, steps=6, every=3).attempt("a0", None)
    records = [json.loads(line) for line in (folder / "cost/a0/node0000.jsonl").read_bytes().splitlines()]
    records[0]["facts"] = FACTS
    records[-1]["facts"] = FACTS
    return records


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield (*path, key)
        yield from places(each, (*path, key))


@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_whatever_is_changed_the_report_is_made(ledger: list[dict[str, Any]], data: st.DataObject) -> None:
    records = copy.deepcopy(ledger)
    for _ in range(data.draw(st.integers(1, 4))):
        record = data.draw(st.sampled_from([records[0], records[-1], *records]))
        *way, last = data.draw(st.sampled_from(list(places(record))))
        target: Any = record
        for key in way:
            target = target[key]
        target[last] = copy.deepcopy(data.draw(st.sampled_from(VALUES)))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "damaged/cost/a0").mkdir(parents=True)
        (root / "damaged/cost/a0/node0000.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
        Training(root / "whole", steps=6, every=3, lineage="whole").attempt("a0", None)
        found = report(root)
        [whole] = [run for run in found.runs if run.lineage == "whole"]
        assert whole.attempts[0].outcome == "finished"
        for form in render.FORMATS:
            render.render(found, form)
        audit.of_report(found)
        page_of(root, found)


@pytest.mark.parametrize(
    "line",
    [
        b'{"t":"beat","b":1,"w":NaN}', b'{"t":"beat","b":1e999,"w":1}', b'{"t":"beat","b":-1,"w":1}', b"{" * 100_000,
        b'{"t":"beat","b":1,"w":1,"phases":{"train":"1"}}', b'{"t":"beat","b":1,"w":1,"d":{"GPU":{"mj":-5}}}',
    ],
)  # fmt: skip
def test_a_line_that_no_meter_writes_is_no_record(line: bytes) -> None:
    assert record_of(line) is None
