"""The published dollars follow from their factors, to the cent."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest

from ssmke.cost.baselines import load, published_saving, saving
from ssmke.cost.prices import Catalogue, PriceError


def test_the_thesis_sums_are_exact() -> None:
    found = {b.name: b for b in load()}
    assert {name: b.usd for name, b in found.items()} == {
        "CLIP": Decimal("77414.40"),
        "VLMo": Decimal("9676.80"),
        "CoCa": Decimal("356106.24"),
        "S-SMKE": Decimal("15.456"),
    }
    assert {name: b.device_hours for name, b in found.items()} == {
        "CLIP": 73_728,
        "VLMo": 9_216,
        "CoCa": 245_760,
        "S-SMKE": Decimal("22.4"),
    }
    assert all(b.source and b.excludes for b in found.values())


def test_the_published_saving_is_computed() -> None:
    assert published_saving(load()) == "S-SMKE as published: 99.84 % cheaper than VLMo, 99.98 % than CLIP"
    assert saving(Decimal(50), Decimal(100)) == "50.00 %"
    assert saving(Decimal(150), Decimal(100)) == "-50.00 %"


def test_a_baseline_priced_by_nothing_in_the_catalogue_is_refused(tmp_path: Path) -> None:
    entry = json.loads((Path(load.__globals__["BASELINES"])).read_text())
    (tmp_path / "b.json").write_text(json.dumps(entry))
    with pytest.raises(PriceError, match="CLIP"):
        load(tmp_path / "b.json", Catalogue([]))
