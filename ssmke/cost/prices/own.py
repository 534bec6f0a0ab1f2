"""What an hour of one's own machine costs: its loss of value, staff, hosting; electricity by what it draws.

Linear: (purchase - residual) / (life x 8,760 h x utilisation), until the life is over and the machine is paid
off. Market: the machine is worth what a new buyer would pay, which falls by ``decline`` powers of ten a year;
an hour costs value x decline x ln 10 / 8,760 / utilisation (Cottier et al., "The rising costs of training
frontier AI models", arXiv 2405.21015, who find 0.14). The two bracket a quote: nobody knows which is right.

Electricity is not in the hourly price: measured energy x price per kWh x PUE is added where energy is known,
so a run that draws little pays little and an unmeasured one says "unknown" instead of a nameplate's watts.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from ssmke.cost.prices.rates import Rate, currency_code, dollars, micro, rate_for
from ssmke.cost.prices.toml_entry import Entry

HOURS_PER_YEAR = 8_760
MARKET_DECLINE = Decimal("0.14")
METHODS = ("linear", "market")
_YEAR_DAYS = Decimal("365.25")


@dataclass(frozen=True)
class OwnHardware:
    """One machine (a node) that was bought. Amounts are as stated, in ``currency``.

    ``utilisation``: share of all hours in which it works for somebody, 0 to 1: idle hours are paid by the
    others. ``share`` "node": a run pays for the whole machine; "gpus": for the GPUs that it uses, of ``gpus``.
    ``bought_rate`` makes dollars of purchase and residual, ``running_rate`` of what is paid per hour and kWh.
    """

    name: str
    purchase: Decimal
    currency: str
    residual: Decimal
    life_years: Decimal
    utilisation: Decimal
    bought: dt.date
    electricity_per_kwh: Decimal
    pue: Decimal
    source: str
    staff_per_hour: Decimal = Decimal(0)
    hosting_per_hour: Decimal = Decimal(0)
    amortisation: str = "linear"
    decline: Decimal = MARKET_DECLINE
    accelerator: str = ""
    gpus: int = 0
    share: str = "node"
    as_of: dt.date | None = None
    bought_rate: Rate | None = None
    running_rate: Rate | None = None

    @property
    def usd_per_kwh(self) -> Decimal:
        """Electricity x PUE: what a kWh at the devices costs at the meter."""
        return micro(dollars(self.electricity_per_kwh, self.running_rate) * self.pue)

    def usd_per_hour(self, on: dt.date | None = None) -> Decimal:
        """One hour of the whole machine on that day (default: when it was bought), without electricity."""
        return self._hourly(self.amortisation, on)

    def interval(self, on: dt.date | None = None) -> tuple[Decimal, Decimal]:
        """The lower and the higher of the two ways to write the machine off, on that day."""
        both = [self._hourly(method, on) for method in METHODS]
        return min(both), max(both)

    def assumptions(self, on: dt.date | None = None) -> dict[str, str]:
        """All that the hourly price rests on, in words."""
        known = {
            "amortisation": self.amortisation,
            "purchase": f"{self.purchase:f} {self.currency} on {self.bought}",
            "utilisation": f"{self.utilisation:f} of {HOURS_PER_YEAR} h a year",
            "electricity": f"{self.electricity_per_kwh:f} {self.currency}/kWh x PUE {self.pue:f}, on measured energy",
            "share": "the whole machine" if self.share == "node" else f"GPUs used of {self.gpus}",
            "source": self.source,
        }
        for name, hourly in (("staff", self.staff_per_hour), ("hosting", self.hosting_per_hour)):
            if hourly:
                known[name] = f"{hourly:f} {self.currency}/h"
        if self.amortisation == "linear":
            known["residual"] = f"{self.residual:f} {self.currency} after {self._life}"
            if self._age(on) >= self.life_years:
                known["paid off"] = f"the life of {self._life} was over on {on}"
        else:
            known["decline"] = f"{self.decline:f} powers of ten a year (arXiv 2405.21015: 0.14)"
        for name, rate in (("rate", self.bought_rate), ("running rate", self.running_rate)):
            if rate is not None:
                known[name] = str(rate)
        return known

    @property
    def _life(self) -> str:
        return f"{self.life_years:f} year{'' if self.life_years == 1 else 's'}"

    def _hourly(self, method: str, on: dt.date | None) -> Decimal:
        purchase, residual = (dollars(x, self.bought_rate) for x in (self.purchase, self.residual))
        age = self._age(on)
        if method == "market":
            lost = purchase * Decimal(10) ** (-self.decline * age) * self.decline * Decimal(10).ln()
        elif age < self.life_years:
            lost = (purchase - residual) / self.life_years
        else:
            lost = Decimal(0)
        running = dollars(self.staff_per_hour + self.hosting_per_hour, self.running_rate)
        return micro(lost / (HOURS_PER_YEAR * self.utilisation) + running)

    def _age(self, on: dt.date | None) -> Decimal:
        # A run older than the machine is a what-if: priced as if new.
        return Decimal(0) if on is None else Decimal(max(0, (on - self.bought).days)) / _YEAR_DAYS


def own_of(entry: Entry, rates: Sequence[Rate]) -> OwnHardware:
    """The ``[[own]]`` entry as hardware; ValueError says what is wrong with it."""
    currency = currency_code(entry.text("currency"))
    bought = entry.past_day("bought")
    as_of = entry.past_day("as_of", bought)
    gpus = entry.whole("gpus", 0, most=64)
    hardware = OwnHardware(
        name=entry.text("name"),
        purchase=entry.number("purchase", above=0),
        currency=currency,
        residual=entry.number("residual", Decimal(0)),
        life_years=entry.number("life_years", above=0, most=30),
        utilisation=entry.number("utilisation", above=0, most=1),
        bought=bought,
        electricity_per_kwh=entry.number("electricity_per_kwh"),
        pue=entry.number("pue", at_least=1, most=5),
        source=entry.text("source"),
        staff_per_hour=entry.number("staff_per_hour", Decimal(0)),
        hosting_per_hour=entry.number("hosting_per_hour", Decimal(0)),
        amortisation=entry.one_of("amortisation", METHODS, "linear"),
        decline=entry.number("decline", MARKET_DECLINE, above=0, most=2),
        accelerator=entry.text("accelerator", ""),
        gpus=gpus,
        share=entry.one_of("share", ("node", "gpus"), "node"),
        as_of=as_of,
        bought_rate=rate_for(currency, bought, rates),
        running_rate=rate_for(currency, as_of, rates),
    )
    entry.done()
    if "/" in hardware.name:
        raise ValueError(f"name {hardware.name!r} has a slash, which --cost.price takes as separator")
    if hardware.residual > hardware.purchase:
        raise ValueError(f"residual {hardware.residual} above purchase {hardware.purchase}")
    if hardware.share == "gpus" and not gpus:
        raise ValueError('share = "gpus" needs gpus, the number in the machine')
    return hardware
