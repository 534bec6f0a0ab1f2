"""NVIDIA GPUs through NVML, found by UUID.

An ordinal of CUDA is not an index of NVML: CUDA renumbers by CUDA_VISIBLE_DEVICES and by speed, NVML by
neither. So devices are named by UUID, as torch gives it; without torch the visible-devices string is
resolved: UUIDs and their prefixes as they are, integers as PCI bus order (what CUDA_DEVICE_ORDER=PCI_BUS_ID
gives); and without that all GPUs of the node are taken, which their ``scope`` says.

Energy, best first: the total-energy counter (Volta and newer, millijoules since the driver was loaded), power,
and where neither answers the enforced power limit, or the data sheet's, as if it were drawn all the time
(method "tdp", no more than an estimate). A slice of a MIG GPU has no meter of its own, and what a driver
may answer for it is the whole GPU's; it gets the GPU's reading times its share of the compute slices (method
"mig", an estimate too: slices do not draw alike). What NVML cannot say at all stays unknown. A query that is
not supported is asked once. One sample of 8 GPUs takes a few milliseconds, in the meter's own thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ssmke.cost.probes.probe import UNKNOWN_GPU, Device, ProbeUnavailable, Sample, gpu_uuid, power_limit_mw

_MIG_ENABLED = 1


@dataclass(frozen=True)
class _Meter:
    """Where a device's energy is read: whose handle, how, and which share of it is the device's."""

    handle: Any
    method: str | None
    counts: bool
    measures: bool
    limit_mw: int | None
    share: Fraction = Fraction(1)


class NvmlProbe:
    """The GPUs named by ``device_ids`` (UUIDs), or by ``visible``, or all."""

    def __init__(self, device_ids: Sequence[str] = (), visible: str | None = None) -> None:
        self.note = ""
        self.driver: str | None = None
        self._ids = tuple(device_ids)
        self._visible = visible
        self._nvml: Any = None
        self._handles: dict[str, Any] = {}
        self._meters: dict[str, _Meter] = {}
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
            meter = self._meters[device]
            utilisation = self._ask(device, "util", nvml.nvmlDeviceGetUtilizationRates, handle)
            memory = self._ask(device, "mem", nvml.nvmlDeviceGetMemoryInfo, handle)
            energy = power = None
            if meter.counts:
                energy = self._ask(device, "mj", nvml.nvmlDeviceGetTotalEnergyConsumption, meter.handle)
            if meter.measures:
                power = self._ask(device, "mw", nvml.nvmlDeviceGetPowerUsage, meter.handle)
            elif not meter.counts:
                power = meter.limit_mw
            readings[device] = Sample(
                mj=None if energy is None else int(energy * meter.share),
                mw=None if power is None else int(power * meter.share),
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
        if self._ids:
            found = [self._by_uuid(uuid) for uuid in dict.fromkeys(gpu_uuid(i) for i in self._ids)]
            slices = self._visible is not None and "MIG-" in self._visible
            if not (slices and any(self._is_divided(handle) for _, handle, _ in found)):
                return found
            # A process never holds the whole of a divided GPU: the name that torch gave is that of its parent.
        nvml = self._nvml
        every = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        every.sort(key=lambda handle: _text(nvml.nvmlDeviceGetPciInfo(handle).busId))
        uuids = [_text(nvml.nvmlDeviceGetUUID(handle)) for handle in every]
        if self._visible is None:
            return [(u, h, "node") for u, h in zip(uuids, every, strict=True)]
        found = []
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

    def _by_uuid(self, uuid: str) -> tuple[str, Any, str]:
        nvml = self._nvml
        try:
            return uuid, nvml.nvmlDeviceGetHandleByUUID(uuid), "run"
        except nvml.NVMLError:
            # CUDA gives the UUID of a slice without saying that it is one.
            as_slice = uuid.replace("GPU-", "MIG-", 1)
            if as_slice == uuid:
                raise
            try:
                return as_slice, nvml.nvmlDeviceGetHandleByUUID(as_slice), "run"
            except nvml.NVMLError:
                pass
            raise

    def _is_divided(self, handle: Any) -> bool:
        try:
            return bool(self._nvml.nvmlDeviceGetMigMode(handle)[0] == _MIG_ENABLED)
        except self._nvml.NVMLError:
            return False

    def _describe(self, uuid: str, handle: Any, scope: str) -> Device:
        nvml = self._nvml
        memory = self._ask(uuid, "mem", nvml.nvmlDeviceGetMemoryInfo, handle)
        asked = self._ask(uuid, "name", nvml.nvmlDeviceGetName, handle)
        name = UNKNOWN_GPU if asked is None else _text(asked)
        meter = (
            self._slice_meter(uuid, handle) if uuid.startswith("MIG-") else self._meter(uuid, handle, name)
        )
        self._handles[uuid], self._meters[uuid] = handle, meter
        return Device(
            id=uuid,
            name=name,
            memory_mib=None if memory is None else int(memory.total) >> 20,
            energy=meter.method,
            scope=scope,
        )

    def _meter(self, uuid: str, handle: Any, name: str) -> _Meter:
        nvml = self._nvml
        counts = self._ask(uuid, "mj", nvml.nvmlDeviceGetTotalEnergyConsumption, handle) is not None
        measures = self._ask(uuid, "mw", nvml.nvmlDeviceGetPowerUsage, handle) is not None
        limit: int | None = None
        if counts:
            method: str | None = "counter"
        elif measures:
            method = "power"
        else:
            limit = self._ask(uuid, "limit", nvml.nvmlDeviceGetEnforcedPowerLimit, handle)
            limit = power_limit_mw(name) if limit is None else int(limit)
            method = None if limit is None else "tdp"
            self.note = (
                f"{name} reports neither energy nor power: unknown"
                if limit is None
                else f"{name} reports neither energy nor power: {limit / 1000:.0f} W, its limit, is assumed throughout"
            )
        return _Meter(handle, method, counts, measures, limit)

    def _slice_meter(self, uuid: str, handle: Any) -> _Meter:
        nvml = self._nvml
        parent = self._ask(uuid, "parent", nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, handle)
        share = None if parent is None else self._share(uuid, handle, parent)
        if parent is None or share is None:
            self.note = "which share of its GPU a MIG slice is cannot be read: its energy is unknown"
            return _Meter(handle, None, False, False, None)
        asked = self._ask(uuid, "parent name", nvml.nvmlDeviceGetName, parent)
        whole = self._meter(uuid, parent, UNKNOWN_GPU if asked is None else _text(asked))
        if whole.method is None:
            return whole
        self.note = f"energy of a MIG slice is estimated: {share} of its GPU's ({whole.method})"
        return _Meter(parent, "mig", whole.counts, whole.measures, whole.limit_mw, share)

    def _share(self, uuid: str, handle: Any, parent: Any) -> Fraction | None:
        """The compute slices of the instance over those of the GPU (7, or 4 on an A30)."""
        nvml = self._nvml
        attributes = self._ask(uuid, "attributes", nvml.nvmlDeviceGetAttributes_v2, handle)
        slices = self._ask(uuid, "slices", nvml.nvmlDeviceGetMaxMigDeviceCount, parent)
        if attributes is None or not slices:
            return None
        own = int(attributes.computeInstanceSliceCount) or int(attributes.gpuInstanceSliceCount)
        return Fraction(own, int(slices)) if 0 < own <= int(slices) else None

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
