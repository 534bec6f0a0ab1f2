"""Probes without hardware: a scripted one, and one that repeats what a ledger recorded.

They stand in for NVML wherever behaviour must be shown without a GPU (tests, demonstrations of the report)
and obey the same protocol, failures included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ssmke.cost.ledger.reader import Series
from ssmke.cost.probes.probe import Device, Sample


class FakeProbe:
    """Gives the scripted readings one after another (the last one for ever); an exception in it is raised."""

    def __init__(
        self, devices: Sequence[Device], script: Sequence[Mapping[str, Sample] | Exception] = ()
    ) -> None:
        self.note = ""
        self.driver: str | None = "fake"
        self._devices = tuple(devices)
        self._script: list[Mapping[str, Sample] | Exception] = list(script) or [{}]

    def open(self) -> tuple[Device, ...]:
        return self._devices

    def sample(self) -> Mapping[str, Sample]:
        step = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        if isinstance(step, Exception):
            raise step
        return step

    def close(self) -> None:
        return None


class ReplayProbe:
    """The devices and readings of a recorded segment, in their order; afterwards no readings."""

    def __init__(self, series: Series) -> None:
        self.note = f"replayed from {series.attempt}/{series.node}"
        self.driver: str | None = "replay"
        self._series = series
        self._beats = iter(series.beats)

    def open(self) -> tuple[Device, ...]:
        return tuple(
            Device(id=device, name=name, kind="cpu" if device.startswith("cpu:") else "gpu")
            for device, name in self._series.devices
        )

    def sample(self) -> Mapping[str, Sample]:
        beat = next(self._beats, None)
        if beat is None:
            return {}
        return {
            device: Sample(mj=row.get("mj"), mw=row.get("mw"), util=row.get("util"), mem_mib=row.get("mem"))
            for device, row in beat.d.items()
        }

    def close(self) -> None:
        return None
