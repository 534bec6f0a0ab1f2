"""GPUs are found by UUID in every form that CUDA_VISIBLE_DEVICES takes, and lost ones are survived.

pynvml is replaced by an autospec double here, and only here; a test on the real library runs where a GPU is.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock

import pynvml
import pytest

from ssmke.cost.nvml import NvmlProbe
from ssmke.cost.probe import ProbeUnavailable

UUIDS = ["GPU-aaaa1111", "GPU-bbbb2222", "GPU-bbbb3333"]  # in order of PCI bus


class FakeDriver:
    """Three GPUs that NVML lists in another order than the bus has them."""

    listed = (2, 0, 1)

    def __init__(self, nvml: mock.MagicMock) -> None:
        self.energy: list[object] = [1000, 2000, 3000]
        self.power: list[object] = [250_000, 260_000, 270_000]
        nvml.nvmlDeviceGetCount.return_value = 3
        nvml.nvmlDeviceGetHandleByIndex.side_effect = lambda i: self.listed[i]
        nvml.nvmlDeviceGetPciInfo.side_effect = lambda h: SimpleNamespace(busId=f"00000000:0{h}:00.0")
        nvml.nvmlDeviceGetUUID.side_effect = lambda h: UUIDS[h]
        nvml.nvmlDeviceGetHandleByUUID.side_effect = self.by_uuid
        nvml.nvmlDeviceGetName.return_value = "NVIDIA H100 80GB HBM3"
        nvml.nvmlDeviceGetMemoryInfo.return_value = SimpleNamespace(total=80 << 30, used=5 << 30)
        nvml.nvmlDeviceGetUtilizationRates.return_value = SimpleNamespace(gpu=97)
        nvml.nvmlDeviceGetTotalEnergyConsumption.side_effect = lambda h: self.give(self.energy, h)
        nvml.nvmlDeviceGetPowerUsage.side_effect = lambda h: self.give(self.power, h)
        nvml.nvmlSystemGetDriverVersion.return_value = "580.1"

    def by_uuid(self, uuid: str) -> object:
        if uuid.startswith("MIG-"):
            return "slice"
        if uuid not in UUIDS:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return UUIDS.index(uuid)

    @staticmethod
    def give(values: list[object], handle: object) -> object:
        value = (
            values[handle] if isinstance(handle, int) else pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        )
        if isinstance(value, Exception):
            raise value
        return value


@pytest.fixture
def driver() -> Iterator[FakeDriver]:
    functions = [
        n for n in dir(pynvml) if n.startswith(("nvmlDevice", "nvmlSystem", "nvmlInit", "nvmlShutdown"))
    ]
    spec = mock.create_autospec(pynvml)
    with mock.patch.multiple(pynvml, **{name: getattr(spec, name) for name in functions}):
        yield FakeDriver(spec)


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, UUIDS),
        ("0,1,2", UUIDS),
        ("2,0", [UUIDS[2], UUIDS[0]]),
        ("GPU-aaaa", [UUIDS[0]]),
        ("GPU-bbbb3333,GPU-aaaa1111", [UUIDS[2], UUIDS[0]]),
        ("0,7,1", [UUIDS[0]]),  # as CUDA: nothing after what names no device
        ("1,GPU-bbbb", [UUIDS[1]]),  # an ambiguous prefix names no device
        ("MIG-1234", ["MIG-1234"]),
    ],
)
def test_the_visible_devices_are_the_devices(
    driver: FakeDriver, visible: str | None, found: list[str]
) -> None:
    devices = NvmlProbe((), visible).open()
    assert [d.id for d in devices] == found
    assert {d.scope for d in devices} == {"node" if visible is None else "run"}


def test_uuids_of_torch_come_without_prefix_and_win_over_the_mask(driver: FakeDriver) -> None:
    devices = NvmlProbe(["bbbb2222", "GPU-aaaa1111", "bbbb2222"], "2").open()
    assert [d.id for d in devices] == [UUIDS[1], UUIDS[0]]


def test_no_device_or_no_driver_is_unavailable(driver: FakeDriver) -> None:
    for arguments in (((), "9"), (["GPU-unknown"], None)):
        with pytest.raises(ProbeUnavailable):
            NvmlProbe(*arguments).open()
    with (
        mock.patch.object(
            pynvml, "nvmlInit", side_effect=pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
        ),
        pytest.raises(ProbeUnavailable, match="does not start"),
    ):
        NvmlProbe().open()


def test_the_counter_is_preferred_then_power_then_unknown(driver: FakeDriver) -> None:
    unsupported = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    driver.energy = [1000, unsupported, unsupported]
    driver.power = [250_000, 260_000, unsupported]
    probe = NvmlProbe()
    assert [d.energy for d in probe.open()] == ["counter", "power", None]
    assert "unknown" in probe.note
    samples = probe.sample()
    assert [(samples[u].mj, samples[u].mw) for u in UUIDS] == [(1000, 250_000), (None, 260_000), (None, None)]
    assert samples[UUIDS[2]].util == 97
    assert samples[UUIDS[0]].mem_mib == 5 << 10


def test_a_slice_of_a_gpu_has_no_energy_of_its_own(driver: FakeDriver) -> None:
    probe = NvmlProbe((), "MIG-1234")
    assert probe.open()[0].energy is None
    assert probe.sample()["MIG-1234"].mj is None
    assert "MIG" in probe.note


def test_a_lost_gpu_reads_unknown_and_may_come_back(driver: FakeDriver) -> None:
    probe = NvmlProbe(["aaaa1111"])
    probe.open()
    driver.energy[0] = pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
    assert probe.sample()[UUIDS[0]].mj is None
    driver.energy[0] = 4000
    assert probe.sample()[UUIDS[0]].mj == 4000


def test_what_is_not_supported_is_asked_once(driver: FakeDriver) -> None:
    probe = NvmlProbe(["aaaa1111"])
    probe.open()
    query = mock.Mock(side_effect=pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED))
    with mock.patch.object(pynvml, "nvmlDeviceGetUtilizationRates", query):
        for _ in range(3):
            assert probe.sample()[UUIDS[0]].util is None
    assert query.call_count == 1


@pytest.mark.gpu
def test_a_real_gpu_reports_itself() -> None:
    probe = NvmlProbe()
    try:
        devices = probe.open()
    except ProbeUnavailable as error:
        pytest.skip(f"no GPU here: {error}")
    samples = probe.sample()
    for device in devices:
        assert device.id.startswith("GPU-")
        assert device.memory_mib
        assert samples[device.id].mem_mib is not None
        assert device.energy is None or samples[device.id].mw is not None
    probe.close()
