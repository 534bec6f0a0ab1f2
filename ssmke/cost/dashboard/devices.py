"""Devices on a page: how busy each one was over paid time, and what power they drew together."""

from __future__ import annotations

from collections.abc import Sequence

from ssmke.cost.charts.axes import Axis, duration, linear
from ssmke.cost.charts.svg import escape, profile, shorten
from ssmke.cost.charts.timeline import Timeline, Track
from ssmke.cost.dashboard.page import Tile, pair, section
from ssmke.cost.dashboard.words import clock
from ssmke.cost.ledger.usage import Usage
from ssmke.cost.render.numbers import energy
from ssmke.words import percent

MOST = 8
_BESIDE = 4
METHODS = {
    "counter": "energy counters",
    "power": "power readings over time",
    "tdp": "estimate: power limit x time",
    "mig": "estimate: a slice's share of its GPU",
}
_FULL = Axis(0.0, 100.0, ())


def devices_section(usage: Usage, methods: Sequence[str], over: Timeline) -> str:
    """Utilisation rows and, where it was read, power beside them."""
    x = duration(over.total_hours)
    rows = track_rows(over.tracks, over.edges, x)
    busy = section(
        "Devices",
        "How busy each was over paid time, 0 to 100 %. Paid is paid: what lies above the line was bought and not used.",
        rows or '<p class="empty">No device said how busy it was.</p>',
    )
    power = _power(usage, methods, over, x)
    # Many rows beside one chart would leave a hole below it.
    return busy + power if len(over.tracks) > _BESIDE else pair(busy, power)


def track_rows(tracks: Sequence[Track], edges: Sequence[float], x: Axis) -> str:
    """A row per device, at most MOST of them: the least busy, which are worth a look."""
    read = [t for t in tracks if t.mean_busy is not None]
    chosen = (
        sorted(read, key=lambda t: (t.mean_busy or 0.0, t.name, t.device))[:MOST]
        if len(read) > MOST
        else read
    )
    if not read:
        return ""
    rows = "".join(_row(t, edges, x) for t in chosen)
    shown = f'<div class="devices">{rows}</div>'
    if len(read) > MOST:
        others = [t.mean_busy or 0.0 for t in read if t not in chosen]
        shown += (
            f'<p class="note">The {MOST} least busy of {len(read)} devices; the others were busy '
            f"{min(others):.0f} to {max(others):.0f} % of the time on average.</p>"
        )
    return shown


def energy_tile(usage: Usage, methods: Sequence[str]) -> Tile:
    """Energy with its error, how it was had, and how much of the time that covers."""
    if usage.energy_kwh is None:
        return Tile("Energy", "unknown", energy_note(usage, methods), True)
    shown, _, error = energy(usage, unit=False).partition(" ")
    covered = "" if usage.energy_coverage > 0.99 else f"{percent(usage.energy_coverage)} of the time"
    note = ", ".join(part for part in (error, energy_note(usage, methods), covered) if part)
    return Tile("Energy", f"{shown} kWh", note)


def energy_note(usage: Usage, methods: Sequence[str]) -> str:
    """How an energy was had, in words."""
    if usage.energy_kwh is None:
        return "no counter, no power readings"
    how = " and ".join(METHODS.get(m, m) for m in methods)
    return how or "method not stored"


def _row(track: Track, edges: Sequence[float], x: Axis) -> str:
    def said(i: int) -> str:
        value = track.busy[i]
        return f"after {clock(edges[i])}: " + ("unknown" if value is None else f"{value:.0f} %")

    name = shorten(track.name, 28)
    memory = "" if track.peak_memory_mib is None else f"peak {track.peak_memory_mib / 1024:.1f} GiB"
    chart = profile(
        x,
        _FULL,
        edges,
        track.busy,
        kind="busy",
        label=f"Utilisation of {track.name} over time",
        height=44,
        hover=said,
        ticks=False,
    )
    mean = "unknown" if track.mean_busy is None else f"{track.mean_busy:.0f} %"
    return (
        f'<div class="device"><div class="name" title="{escape(f"{track.name}, {track.device}")}">{escape(name)}'
        f"<small>{escape(_short(track.device))}</small></div>{chart}"
        f'<div class="value">{mean}<small>{escape(memory)}</small></div></div>'
    )


def _short(device: str) -> str:
    """A UUID's beginning is enough to tell devices apart on a page; the tooltip has all of it."""
    return device if len(device) <= 14 else f"{device[:12]}…"


def _power(usage: Usage, methods: Sequence[str], over: Timeline, x: Axis) -> str:
    total = [_sum([t.watts[i] for t in over.tracks]) for i in range(len(over.edges))]
    known = [w for w in total if w is not None]
    if not known:
        return ""
    y = linear(max(known), lambda v: f"{v:,.0f} W" if v < 10_000 else f"{v / 1000:g} kW", count=3)

    def said(i: int) -> str:
        value = total[i]
        return f"after {clock(over.edges[i])}: " + ("unknown" if value is None else f"{value:,.0f} W")

    devices = sum(1 for t in over.tracks if t.mean_watts is not None)
    together = "" if devices == 1 else f", {devices} devices together"
    chart = profile(
        x,
        y,
        over.edges,
        total,
        kind="power",
        label="Power over paid time",
        height=min(320, max(180, 66 * devices)),
        hover=said,
    )
    coverage = "" if usage.energy_coverage > 0.99 else f" ({percent(usage.energy_coverage)} of the time)"
    return section(
        "Power and energy",
        f"{' kWh '.join(energy(usage, unit=False).split(' ', 1))}{coverage}{together}, {energy_note(usage, methods)}.",
        chart,
    )


def _sum(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) if known else None
