"""Dated price facts and their lookup.

The catalogue is a set of observations: "at this time, this source listed this price". A later observation of
the same instance, region and tier replaces the earlier one from its date on, so a run is priced with what was
charged when it ran. Prices are of whole instances: eight GPUs in one box cost another amount per GPU than
one, so a price per GPU is a property of the instance, not of the GPU.

The shipped observations are ``data/prices.csv``; ``file`` lays the user's over them, with own hardware,
exchange rates and storage lines. Every row is validated on load (``rows``). Money is Decimal. Loading
150 rows takes 2 ms; no network, ever.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from ssmke.cost.prices.lines import Line
from ssmke.cost.prices.own import OwnHardware
from ssmke.cost.prices.rates import Rate
from ssmke.cost.prices.rows import COLUMNS, ON_DEMAND, TIERS, Price, PriceError, read
from ssmke.words import counted

__all__ = [
    "CATALOGUE",
    "COLUMNS",
    "ON_DEMAND",
    "TIERS",
    "Catalogue",
    "Price",
    "PriceError",
    "read",
    "shipped",
]

CATALOGUE = Path(__file__).parents[1] / "data" / "prices.csv"


class Catalogue:
    """Price observations, looked up by instance, region, tier and date; and what else a user's file says."""

    def __init__(
        self,
        prices: Iterable[Price],
        *,
        own: Iterable[OwnHardware] = (),
        lines: Iterable[Line] = (),
        rates: Iterable[Rate] = (),
    ) -> None:
        self.prices = tuple(prices)
        self.own = tuple(own)
        self.lines = tuple(lines)
        self.rates = tuple(rates)

    @classmethod
    def load(cls, path: Path = CATALOGUE) -> Catalogue:
        """The CSV at ``path``; PriceError names every row that is wrong."""
        prices, problems = read(path)
        if problems:
            wrong = counted(len(problems), "wrong row")
            raise PriceError(f"{path}: {wrong}: " + "; ".join(problems))
        return cls(prices)

    def under(self, user: Catalogue) -> Catalogue:
        """This catalogue with the user's on top, which wins on the same series and day."""
        replaced = {p.observation for p in user.prices}
        return Catalogue(
            (*(p for p in self.prices if p.observation not in replaced), *user.prices),
            own=(*self.own, *user.own),
            lines=(*self.lines, *user.lines),
            rates=(*self.rates, *user.rates),
        )

    def own_hardware(self, name: str) -> OwnHardware:
        """The ``[[own]]`` entry of that name; PriceError names those there are."""
        for hardware in self.own:
            if hardware.name.casefold() == name.casefold():
                return hardware
        known = ", ".join(f"own/{h.name}" for h in self.own)
        raise PriceError(
            f"no own hardware {name!r} is known; "
            + (f"there is {known}" if known else "")
            + ("" if known else "describe it as [[own]] in a prices file and name the file (--prices)")
        )

    def find(
        self,
        *,
        provider: str | None = None,
        instance: str | None = None,
        accelerator: str | None = None,
        region: str | None = None,
        tiers: Iterable[str] | None = None,
        on: dt.date | None = None,
    ) -> list[Price]:
        """The price of each matching series at ``on`` (default: the newest), names compared without case."""
        wanted = None if tiers is None else tuple(tiers)
        series: dict[tuple[str, ...], list[Price]] = {}
        for price in self.prices:
            if (
                _matches(provider, price.provider)
                and _matches(instance, price.instance)
                and _matches(accelerator, price.accelerator)
                and _matches(region, price.region)
                and (wanted is None or price.tier in wanted)
            ):
                series.setdefault(price.observation[0], []).append(price)
        return [_at(observations, on) for observations in series.values()]

    def lookup(
        self,
        provider: str,
        instance: str,
        *,
        region: str | None = None,
        tier: str | None = None,
        on: dt.date | None = None,
    ) -> Price:
        """The one price of an instance; without ``tier``, on demand. PriceError if none or many fit."""
        found = self.find(
            provider=provider,
            instance=instance,
            region=region,
            tiers=None if tier is None else (tier,),
            on=on,
        )
        if tier is None and len(found) > 1:
            found = [p for p in found if p.tier in ON_DEMAND] or found
        if len(found) == 1:
            return found[0]
        asked = "/".join(x for x in (provider, instance, region, tier) if x)
        if found:
            choices = ", ".join(sorted(p.name for p in found))
            raise PriceError(
                f"price {asked!r} is ambiguous: {choices}; say which as provider/instance/region/tier"
            )
        known = sorted(p.name for p in self.find(provider=provider, instance=instance))
        if known:
            raise PriceError(f"no price known for {asked!r}; there is {', '.join(known)}")
        names = sorted({f"{p.provider}/{p.instance}" for p in self.prices})
        folded = {n.casefold(): n for n in names}
        close = [folded[n] for n in get_close_matches(f"{provider}/{instance}".casefold(), list(folded), n=3)]
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise PriceError(
            f"no price known for {asked!r}{hint or ';'} see `ssmke-cost prices list`, or give the US dollars "
            "per hour of the whole node"
        )


@functools.lru_cache(maxsize=1)
def shipped() -> Catalogue:
    """The catalogue in the package, read once per process."""
    return Catalogue.load()


def _matches(wanted: str | None, value: str) -> bool:
    return wanted is None or wanted.casefold() == value.casefold()


def _at(observations: list[Price], on: dt.date | None) -> Price:
    # The newest known at that date, else the first after it; undated ones only where nothing is dated.
    dated = sorted((p for p in observations if p.as_of is not None), key=lambda p: p.as_of or dt.date.min)
    if not dated:
        return observations[-1]
    earlier = [p for p in dated if on is None or (p.as_of or dt.date.min) <= on]
    return earlier[-1] if earlier else dated[0]
