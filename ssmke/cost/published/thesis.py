"""The thesis' own cost tables, recomputed from their factors, and three places where they do not add up.

Each model is devices x hours x the price of one device, at the price paid (RunPod, RTX 4090) and at the one it
was compared with (AWS, V100); what was printed stands beside it. Each inconsistency carries its numbers, all
computed from factors and catalogue rows: the text is built from them, so that it stays true when a price
changes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from ssmke.cost.prices.catalogue import Catalogue, Price, PriceError, shipped
from ssmke.cost.published.baselines import BASELINES, Baseline, by_name, cited, priced, saving
from ssmke.cost.render.numbers import hours, money, rate


@dataclass(frozen=True)
class Model:
    """A model of the thesis. ``printed``: its dollars as printed, at the price paid and at the one compared with."""

    name: str
    parameters: int
    samples: int
    devices: int
    hours: Decimal
    printed: tuple[str, str]

    @property
    def device_hours(self) -> Decimal:
        return self.devices * self.hours


@dataclass(frozen=True)
class ProjectLine:
    """A line of the project's bill. ``hours`` None: not compute, and no factors were published.

    ``printed``: dollars paid, and estimated on AWS (None: not estimated).
    """

    name: str
    amount: str
    hours: Decimal | None
    printed: tuple[Decimal, Decimal | None]


@dataclass(frozen=True)
class Inconsistency:
    """Something in the published numbers that does not hold. ``values``: what it was computed from, by name."""

    title: str
    text: str
    values: dict[str, Decimal]


@dataclass(frozen=True)
class Thesis:
    """``here``: the price paid per device-hour; ``there``: the one compared with; ``labelled``: the one it names."""

    source: str
    here: Price
    there: Price
    labelled: Price
    label: str
    models: tuple[Model, ...]
    project: tuple[ProjectLine, ...]
    printed_total: tuple[Decimal, Decimal]

    def usd(self, model: Model) -> tuple[Decimal, Decimal]:
        """Exact dollars of a model, here and there."""
        return model.device_hours * per_device(self.here), model.device_hours * per_device(self.there)

    def line_usd(self, line: ProjectLine) -> tuple[Decimal, Decimal] | None:
        """Dollars if the line's hours are device-hours; None where there are no factors."""
        if line.hours is None:
            return None
        return line.hours * per_device(self.here), line.hours * per_device(self.there)

    @property
    def paid(self) -> Decimal:
        """The project's dollars: the sum of the printed lines."""
        return sum((line.printed[0] for line in self.project), Decimal(0))


def load_thesis(path: Path = BASELINES, catalogue: Catalogue | None = None) -> Thesis:
    """The tables; PriceError if one of their prices is not in the catalogue."""
    catalogue = catalogue or shipped()
    data = json.loads(path.read_text(encoding="utf-8"))["thesis"]

    def price(name: str) -> Price:
        found = priced(catalogue, data[name], f"{path}: thesis")
        if found is None:
            raise PriceError(f"{path}: thesis needs a price {name!r}")
        return found

    return Thesis(
        source=data["source"],
        here=price("here"),
        there=price("there"),
        labelled=price("labelled"),
        label=data["label"],
        models=tuple(
            Model(**{**m, "hours": Decimal(m["hours"]), "printed": tuple(m["printed"])})
            for m in data["models"]
        ),
        project=tuple(
            ProjectLine(
                name=line["name"],
                amount=line["amount"],
                hours=None if line["hours"] is None else Decimal(line["hours"]),
                printed=(
                    Decimal(line["printed"][0]),
                    None if line["printed"][1] is None else Decimal(line["printed"][1]),
                ),
            )
            for line in data["project"]
        ),
        printed_total=(Decimal(data["printed_total"][0]), Decimal(data["printed_total"][1])),
    )


def inconsistencies(thesis: Thesis, baselines: Sequence[Baseline]) -> tuple[Inconsistency, ...]:
    """The three that are known: unlike price bases, a wrong label, hours that are not device-hours."""
    return (_unlike_bases(baselines), _wrong_label(thesis, baselines), _hours(thesis))


def per_device(price: Price) -> Decimal:
    """US dollars per hour of one device."""
    if price.usd_per_gpu_hour is None:
        raise PriceError(f"{price.name} has no devices to price")
    return price.usd_per_gpu_hour


def _unlike_bases(baselines: Sequence[Baseline]) -> Inconsistency:
    known = by_name(baselines)
    ours, clip, coca = known["S-SMKE"], known["CLIP"], known["CoCa"]
    values = {"S-SMKE as cited": cited(ours), "CLIP as cited": cited(clip), "CoCa as cited": cited(coca)}
    parts = []
    for baseline in (clip, coca):
        listed = baseline.at(baseline.on_demand)
        if listed is not None and baseline.on_demand is not None:
            values[f"{baseline.name} on demand"] = listed[1]
            parts.append(
                f"{baseline.name} is {money(listed[1])} on demand ({baseline.on_demand.name}), "
                f"not {money(baseline.usd)}"
            )
    span = clip.listed
    saved = ""
    if span is not None and clip.lowest is not None and clip.highest is not None:
        values |= {"CLIP at the lowest list price": span[0], "CLIP at the highest list price": span[1]}
        parts.append(
            f"by list prices alone CLIP is {money(span[0])} ({clip.lowest.name}) to "
            f"{money(span[1])} ({clip.highest.name})"
        )
        saved = (
            f" S-SMKE stays {saving(cited(ours), span[0])} to {saving(cited(ours), span[1])} cheaper than CLIP,"
            " so the claim holds while the dollars do not."
        )
    tiers = ", ".join(
        f"{b.name} at {b.cited.tier} {rate(per_device(b.cited))}"
        for b in (ours, clip, coca)
        if b.cited is not None
    )
    return Inconsistency(
        "Unlike price bases", f"Compared are {tiers} per device-hour: {'; '.join(parts)}.{saved}", values
    )


def _wrong_label(thesis: Thesis, baselines: Sequence[Baseline]) -> Inconsistency:
    clip, ours = by_name(baselines)["CLIP"], thesis.models[-1]
    there, labelled = per_device(thesis.there), per_device(thesis.labelled)
    values = {"printed for it": there, "its list price": labelled}
    right = clip.at(thesis.labelled)
    shift = ""
    if right is not None:
        values[f"CLIP on {thesis.label}"] = right[1]
        shift = f" On that device CLIP is {money(right[1])} on demand"
        at_there, at_labelled = ours.device_hours * there, ours.device_hours * labelled
        values |= {f"{ours.name} as printed": at_there, f"{ours.name} on {thesis.label}": at_labelled}
        shift += f", and the AWS estimate of {ours.name} {money(at_labelled)} instead of {money(at_there)}."
    memory = f"{thesis.there.gpu_mem_gib} GB" if thesis.there.gpu_mem_gib is not None else "another size"
    return Inconsistency(
        "Wrong label",
        f"The thesis gives {rate(there)} as the price of a {thesis.label}. That is {thesis.there.name}, a "
        f"{thesis.there.accelerator} {memory}; the {thesis.label} is {thesis.labelled.name} at "
        f"{rate(labelled)} per device-hour.{shift}",
        values,
    )


def _hours(thesis: Thesis) -> Inconsistency:
    line, spent = next((line, line.hours) for line in thesis.project if line.hours is not None)
    here, there = per_device(thesis.here), per_device(thesis.there)
    paid = line.printed[0]
    implied = paid / here
    values = {
        "hours": spent,
        "hours x price there": spent * there,
        "hours x price here": spent * here,
        "printed here": paid,
        "device-hours that were paid": implied,
        "those there": implied * there,
    }
    return Inconsistency(
        "Hours or device-hours",
        f"{line.name} is {line.amount}: x {rate(there)} they are {money(spent * there)}, the printed AWS "
        f"estimate, so they were taken as device-hours. But x {rate(here)} they are {money(spent * here)}, and "
        f"{money(paid)} was paid: that buys {hours(implied)} device-hours, {implied / spent:.2f} devices at a "
        f"time. The AWS estimate for those is {money(implied * there)}.",
        values,
    )
