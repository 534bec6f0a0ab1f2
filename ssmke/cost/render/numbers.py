"""Numbers as people read them: dollars, counts, hours, energy, intervals.

Rounded half up to what the number can bear, and never to a zero that it is not: $0.0001234 stays that.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING

from ssmke.words import percent

if TYPE_CHECKING:
    from ssmke.cost.ledger.usage import Usage

UNKNOWN = "unknown"
AT_LEAST = ">= "
# Beats are seconds apart: readings never quite cover the ends of a run.
_COVERED = 0.9


def money(usd: Decimal | None, *, partial: bool = False) -> str:
    """ "$77,414.40", "$15.456", "$0.0001234", "unknown", ">= $1.20", "-$3.00"."""
    if usd is None:
        return UNKNOWN
    size = abs(usd)
    if size >= 100:
        shown = f"{size.quantize(Decimal('0.01'), ROUND_HALF_UP):,f}"
    elif size >= 1 or size == 0:
        shown = _at_least_cents(f"{size.quantize(Decimal('0.001'), ROUND_HALF_UP):f}")
    else:
        digits = 3 - size.adjusted()
        shown = f"{size.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP):f}"
    return f"{AT_LEAST if partial else ''}{'-' if usd < 0 else ''}${shown}"


def money_short(usd: Decimal | None, *, partial: bool = False, least: Decimal = Decimal("0.0001")) -> str:
    """As ``money`` for narrow columns: three digits below a dollar, and below ``least`` "<$0.0001"."""
    if usd is None or usd >= 1 or usd <= 0:
        return money(usd, partial=partial)
    if usd < least:
        return f"{AT_LEAST}$0.00" if partial else f"<${least:f}"
    shown = usd.quantize(Decimal(1).scaleb(usd.adjusted() - 2), ROUND_HALF_UP)
    return f"{AT_LEAST if partial else ''}${shown:f}"


def rate(usd: Decimal) -> str:
    """A price per hour, unrounded: "$0.69", "$3.9015", "$2.00"."""
    return f"${_at_least_cents(f'{usd:f}')}"


def money_span(span: tuple[Decimal, Decimal] | None) -> str:
    """One amount, or "$96.40 to $115.68"."""
    if span is None:
        return UNKNOWN
    low, high = money(span[0]), money(span[1])
    return low if low == high else f"{low} to {high}"


def count(number: float | None, *, at_least: bool = False) -> str:
    """Counts as people say them: 117.2M, 3.3M, 22,848."""
    if number is None:
        return UNKNOWN
    prefix = AT_LEAST if at_least else ""
    for size, letter in ((10**9, "B"), (10**6, "M")):
        # What would round up to the next unit is shown in it: 999,999.6 is 1M.
        if number >= size * (1 - 5e-5):
            return f"{prefix}{number / size:.4g}{letter}"
    return f"{prefix}{number:,.0f}" if number >= 100 or number == int(number) else f"{prefix}{number:.3g}"


def hours(value: float | Decimal) -> str:
    """ "73,728", "1,989.9", "22.4", "0.02083"."""
    if value >= 100:
        shown = f"{value:,.1f}"
        return shown.removesuffix(".0")
    return f"{float(value):.4g}"


def hours_span(span: tuple[Decimal, Decimal] | None) -> str:
    """One number of hours, or "50 to 60"."""
    if span is None:
        return UNKNOWN
    low, high = hours(span[0]), hours(span[1])
    return low if low == high else f"{low} to {high}"


def energy(usage: Usage, *, unit: bool = True) -> str:
    """ "1.234 kWh ±5 %", "0.012 kWh ±10 % (61.0 % of the time measured)", "unknown"; short: ">= 0.012 ±10 %"."""
    kwh, error = usage.energy_kwh, usage.energy_kwh_error
    if kwh is None:
        return UNKNOWN
    thin = usage.energy_coverage < _COVERED
    shown = f"{kwh:.4g} kWh" if unit else f"{AT_LEAST if thin else ''}{kwh:.4g}"
    if kwh and error is not None:
        shown += f" ±{error / kwh:.0%}".replace("%", " %")
    if unit and thin:
        shown += f" ({percent(usage.energy_coverage)} of the time measured)"
    return shown


def _at_least_cents(shown: str) -> str:
    """Without trailing zeros, but for cents."""
    whole, _, part = shown.partition(".")
    return f"{whole}.{part.rstrip('0'):0<2}"
