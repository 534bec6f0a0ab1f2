"""Probes without hardware: a scripted one, and one that repeats what a ledger recorded.

They stand in for NVML wherever behaviour must be shown without a GPU (tests, demonstrations of the report)
and obey the same protocol, failures included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ssmke.cost.ledger import Segment
from ssmke.cost.probe import Device, Sample


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

    def __init__(self, segment: Segment) -> None:
        self.note = f"replayed from {segment.attempt}/{segment.node}"
        self.driver: str | None = "replay"
        self._segment = segment
        self._rows = self._in_order()

    def open(self) -> tuple[Device, ...]:
        return tuple(
            Device(id=device, name=name, kind="cpu" if device.startswith("cpu:") else "gpu")
            for device, name in self._segment.devices
        )

    def sample(self) -> Mapping[str, Sample]:
        return next(self._rows, {})

    def close(self) -> None:
        return None

    def _in_order(self) -> Iterator[Mapping[str, Sample]]:
        times = sorted({row[0] for rows in self._segment.readings.values() for row in rows})
        for at in times:
            yield {
                device: Sample(mj=mj, mw=mw)
                for device, rows in self._segment.readings.items()
                for b, mj, mw in rows
                if b == at
            }
