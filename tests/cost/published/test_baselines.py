"""The published dollars follow from their factors, to the cent, in every basis; what is unknown stays unknown."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from ssmke.cost.prices.catalogue import Catalogue, PriceError, shipped
from ssmke.cost.published.baselines import BASELINES, BASES, load, published_saving, saving
from ssmke.cost.published.thesis import inconsistencies, load_thesis

D = Decimal


def test_the_thesis_sums_are_exact() -> None:
    found = {b.name: b for b in load()}
    assert {name: found[name].usd for name in ("CLIP", "VLMo", "CoCa", "S-SMKE")} == {
        "CLIP": D("77414.40"),
        "VLMo": D("9676.80"),
        "CoCa": D("356106.24"),
        "S-SMKE": D("15.456"),
    }
    assert {name: found[name].device_hours for name in ("CLIP", "VLMo", "CoCa", "S-SMKE")} == {
        "CLIP": (73_728, 73_728),
        "VLMo": (9_216, 9_216),
        "CoCa": (245_760, 245_760),
        "S-SMKE": (D("22.4"), D("22.4")),
    }
    assert all(b.source and b.excludes for b in found.values())


def test_three_bases_are_factors_times_rows_of_the_catalogue() -> None:
    found = {b.name: b for b in load()}
    assert [basis.name for basis in found["CLIP"].bases] == list(BASES)
    # By hand from the prices' own sources: 3.06 p3.2xlarge, 0.74 + 0.067 GCP V100 with its host, 3.22 TPU v4.
    assert [b.usd and b.usd[0] for b in found["CLIP"].bases] == [D("77414.4"), D("225607.68"), D("59498.496")]
    assert [b.usd and b.usd[0] for b in found["CoCa"].bases] == [D("356106.24"), D("791347.2"), None]
    assert found["CoCa"].bases[2].why == "no spot price known"
    assert [b.usd and b.usd[0] for b in found["S-SMKE"].bases] == [D("15.456"), D("15.456"), D("7.84")]
    assert found["CLIP"].listed == (D("58245.12"), D("287649.792"))  # Lambda 0.79, p3dn 3.9015
    for b in found.values():
        for basis in b.bases[1:]:
            assert basis.price is None or basis.price in shipped().prices
        if b.on_demand is not None:
            assert b.on_demand.as_of is not None, f"{b.name}: the list price must be dated"


def test_the_cheapest_spot_follows_the_catalogue() -> None:
    spot = next(b for b in load() if b.name == "CLIP").spot
    assert spot is not None
    cheaper = replace(spot, provider="elsewhere", usd_per_hour=spot.usd_per_hour / 2)
    clip = next(b for b in load(catalogue=Catalogue([*shipped().prices, cheaper])) if b.name == "CLIP")
    assert clip.spot == cheaper
    assert clip.usd == D("77414.40")


def test_unpublished_compute_is_no_zero() -> None:
    found = {b.name: b for b in load()}
    for name in ("VLMo, 1B pairs", "BEiT-3", "FLAVA"):
        assert found[name].unpublished
        assert found[name].device_hours is None
        assert found[name].usd is None
        assert [b.why for b in found[name].bases] == ["unpublished"] * 3
    assert found["VLMo, 1B pairs"].at_least is found["VLMo"]
    assert found["CoCa"].pairs_at_least


def test_peers_have_hours_as_intervals_and_dollars_only_from_us() -> None:
    peers = {b.name: b for b in load() if b.kind == "peer"}
    assert peers["SAIL"].device_hours == (5, 5)
    assert peers["ShareLock"].device_hours == (1, 1)
    assert peers["Freeze-Align"].device_hours == (50, 60)
    assert all(b.usd is None and "abstract" in b.source and b.estimate for b in peers.values())
    assert peers["Freeze-Align"].bases[1].usd == (D("183.67"), D("220.404"))  # 3.6734 a2-highgpu-1g
    assert peers["SAIL"].bases[2].usd == (D("9.64"), D("9.64"))  # 1.928 spot


def test_the_published_saving_is_computed() -> None:
    assert published_saving(load()) == "S-SMKE as published: 99.84 % cheaper than VLMo, 99.98 % than CLIP"
    assert saving(D(50), D(100)) == "50.00 %"
    assert saving(D(150), D(100)) == "-50.00 %"


def test_a_baseline_priced_by_nothing_in_the_catalogue_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(BASELINES.read_text())
    with pytest.raises(PriceError, match="CLIP"):
        load(tmp_path / "b.json", Catalogue([]))


def test_the_six_models_come_out_as_printed() -> None:
    thesis = load_thesis()
    assert {m.name: thesis.usd(m)[0] for m in thesis.models}["S-SMKE CTL_MB"] == D("15.456")
    assert {m.name: thesis.usd(m)[1] for m in thesis.models}["S-SMKE CTL_MB"] == D("68.544")
    assert len(thesis.models) == 6
    for model in thesis.models:
        for usd, printed in zip(thesis.usd(model), model.printed, strict=True):
            # Printed with one digit, one of them (9.039 as 9.1) rounded up.
            assert abs(usd - D(printed)) <= D("0.1"), model.name


def test_the_project_adds_up_as_printed() -> None:
    thesis = load_thesis()
    assert thesis.paid == thesis.printed_total[0] == 1744
    assert sum(line.printed[1] or 0 for line in thesis.project) == thesis.printed_total[1] == 6195


def test_the_three_inconsistencies_are_computed() -> None:
    bases, label, hours = inconsistencies(load_thesis(), load())
    assert bases.values["CLIP on demand"] == D("225607.68")
    assert bases.values["CoCa on demand"] == D("791347.20")
    assert bases.values["CLIP at the lowest list price"] == D("58245.12")
    assert "$58,245.12" in bases.text
    assert "$287,649.79" in bases.text
    assert label.values["printed for it"] == D("3.06")
    assert label.values["its list price"] == D("3.9015")
    assert "V100 16 GB" in label.text
    assert hours.values["hours x price there"] == D("4280.94")
    assert hours.values["hours x price here"] == D("965.31")
    assert hours.values["printed here"] == 1373
    assert round(hours.values["device-hours that were paid"], 1) == D("1989.9")
    for found in (bases, label, hours):
        for value in found.values.values():
            assert value > 0


def test_an_inconsistency_is_no_prose_but_follows_the_prices() -> None:
    dearer = [
        replace(p, usd_per_hour=p.usd_per_hour * 2) if p.instance == "p3dn.24xlarge" else p
        for p in shipped().prices
    ]
    catalogue = Catalogue(dearer)
    _, label, _ = inconsistencies(load_thesis(catalogue=catalogue), load(catalogue=catalogue))
    assert label.values["its list price"] == D("7.803")
    assert "$7.803" in label.text


def test_no_dollar_is_typed_in() -> None:
    """Neither a baseline's dollars nor a price stand in the data file; what was printed stands there as such."""
    text = BASELINES.read_text()
    for b in load():
        for basis in b.bases:
            if basis.usd is not None and basis.price is not None:
                assert f"{basis.usd[1].normalize():f}" not in text
                assert f'"{basis.price.usd_per_gpu_hour}"' not in text
    assert not [k for entry in json.loads(text)["baselines"] for k in entry if "usd" in k or "price" in k]
