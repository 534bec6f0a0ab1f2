"""NVIDIA GPUs through NVML, found by UUID.

An ordinal of CUDA is not an index of NVML: CUDA renumbers by CUDA_VISIBLE_DEVICES and by speed, NVML by
neither. So devices are named by UUID, as torch gives it; without torch the visible-devices string is
resolved: UUIDs and their prefixes as they are, integers as PCI bus order (what CUDA_DEVICE_ORDER=PCI_BUS_ID
gives); and without that all GPUs of the node are taken, which their ``scope`` says.

Energy: the total-energy counter (Volta and newer, millijoules since the driver was loaded) where it answers,
else power. Slices of a MIG GPU have neither of their own: unknown. A query that is not supported is asked
once. One sample of 8 GPUs takes a few milliseconds, in the meter's own thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ssmke.cost.probe import Device, ProbeUnavailable, Sample, gpu_uuid


class NvmlProbe:
    """The GPUs named by ``device_ids`` (UUIDs), or by ``visible``, or all."""

    def __init__(self, device_ids: Sequence[str] = (), visible: str | None = None) -> None:
        self.note = ""
        self.driver: str | None = None
        self._ids = tuple(device_ids)
        self._visible = visible
        self._nvml: Any = None
        self._handles: dict[str, Any] = {}
        self._energy: dict[str, str | None] = {}
        self._unsupported: set[tuple[str, str]] = set()

    def open(self) -> tuple[Device, ...]:
        """The devices; ProbeUnavailable without the library, the driver, or a GPU that fits."""
        try:
            import pynvml
        except ImportError as error:
            raise ProbeUnavailable(f"the package nvidia-ml-py is missing ({error})") from error
        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise ProbeUnavailable(f"NVML does not start ({error})") from error
        try:
            self.driver = _text(pynvml.nvmlSystemGetDriverVersion())
            found = self._find()
            devices = tuple(self._describe(uuid, handle, scope) for uuid, handle, scope in found)
        except pynvml.NVMLError as error:
            self.close()
            raise ProbeUnavailable(f"NVML cannot list the GPUs ({error})") from error
        if not devices:
            self.close()
            raise ProbeUnavailable("NVML sees no GPU of this run")
        return devices

    def sample(self) -> Mapping[str, Sample]:
        nvml = self._nvml
        readings: dict[str, Sample] = {}
        for device, handle in self._handles.items():
            method = self._energy[device]
            utilisation = self._ask(device, "util", nvml.nvmlDeviceGetUtilizationRates, handle)
            memory = self._ask(device, "mem", nvml.nvmlDeviceGetMemoryInfo, handle)
            readings[device] = Sample(
                mj=self._ask(device, "mj", nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
                if method == "counter"
                else None,
                mw=self._ask(device, "mw", nvml.nvmlDeviceGetPowerUsage, handle) if method else None,
                util=None if utilisation is None else float(utilisation.gpu),
                mem_mib=None if memory is None else int(memory.used) >> 20,
            )
        return readings

    def close(self) -> None:
        self._handles = {}
        if self._nvml is not None:
            nvml, self._nvml = self._nvml, None
            try:
                nvml.nvmlShutdown()
            except nvml.NVMLError:
                return

    def _find(self) -> list[tuple[str, Any, str]]:
        nvml = self._nvml
        if self._ids:
            wanted = [gpu_uuid(i) for i in self._ids]
            return [(u, nvml.nvmlDeviceGetHandleByUUID(u), "run") for u in dict.fromkeys(wanted)]
        every = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        every.sort(key=lambda handle: _text(nvml.nvmlDeviceGetPciInfo(handle).busId))
        uuids = [_text(nvml.nvmlDeviceGetUUID(handle)) for handle in every]
        if self._visible is None:
            return [(u, h, "node") for u, h in zip(uuids, every, strict=True)]
        found: list[tuple[str, Any, str]] = []
        for token in (t.strip() for t in self._visible.split(",")):
            if token.isdigit() and int(token) < len(every):
                found.append((uuids[int(token)], every[int(token)], "run"))
            elif token.startswith("MIG-"):
                found.append((token, nvml.nvmlDeviceGetHandleByUUID(token), "run"))
            elif token and sum(u.startswith(token) for u in uuids) == 1:
                at = next(i for i, u in enumerate(uuids) if u.startswith(token))
                found.append((uuids[at], every[at], "run"))
            else:
                break  # as CUDA does: nothing after the first token that names no device
        return found

    def _describe(self, uuid: str, handle: Any, scope: str) -> Device:
        nvml = self._nvml
        memory = self._ask(uuid, "mem", nvml.nvmlDeviceGetMemoryInfo, handle)
        method: str | None = None
        if uuid.startswith("MIG-"):
            self.note = "energy of a MIG slice cannot be measured: unknown"
        elif self._ask(uuid, "mj", nvml.nvmlDeviceGetTotalEnergyConsumption, handle) is not None:
            method = "counter"
        elif self._ask(uuid, "mw", nvml.nvmlDeviceGetPowerUsage, handle) is not None:
            method = "power"
        else:
            self.note = "these GPUs report neither energy nor power: unknown"
        self._handles[uuid] = handle
        self._energy[uuid] = method
        name = self._ask(uuid, "name", nvml.nvmlDeviceGetName, handle)
        return Device(
            id=uuid,
            name="GPU of unknown make" if name is None else _text(name),
            memory_mib=None if memory is None else int(memory.total) >> 20,
            energy=method,
            scope=scope,
        )

    def _ask(self, device: str, what: str, query: Callable[[Any], Any], handle: Any) -> Any:
        """The answer, or None: a query that is not supported, a lost GPU, a driver that is being reloaded."""
        if (device, what) in self._unsupported:
            return None
        try:
            return query(handle)
        except self._nvml.NVMLError as error:
            if isinstance(error, self._nvml.NVMLError_NotSupported):
                self._unsupported.add((device, what))
            return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
