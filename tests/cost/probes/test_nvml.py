"""GPUs are found by UUID in every form that CUDA_VISIBLE_DEVICES takes, and lost ones are survived.

pynvml is replaced by an autospec double here, and only here; a test on the real library runs where a GPU is.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock

import pynvml
import pytest

from ssmke.cost.probes.nvml import NvmlProbe
from ssmke.cost.probes.probe import ProbeUnavailable

UUIDS = ["GPU-aaaa1111", "GPU-bbbb2222", "GPU-bbbb3333"]  # in order of PCI bus


class FakeDriver:
    """Three GPUs that NVML lists in another order than the bus has them."""

    listed = (2, 0, 1)

    def __init__(self, nvml: mock.MagicMock) -> None:
        self.energy: list[object] = [1000, 2000, 3000]
        self.power: list[object] = [250_000, 260_000, 270_000]
        self.limit: object = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        self.slices: dict[str, tuple[int, int, int]] = {}
        """MIG UUID -> (parent, compute slices of the instance, slices of its GPU instance)."""
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
        nvml.nvmlDeviceGetEnforcedPowerLimit.side_effect = lambda h: self.give([self.limit] * 3, h)
        nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle.side_effect = lambda h: self.slices[h][0]
        nvml.nvmlDeviceGetAttributes_v2.side_effect = lambda h: SimpleNamespace(
            computeInstanceSliceCount=self.slices[h][1], gpuInstanceSliceCount=self.slices[h][2]
        )
        nvml.nvmlDeviceGetMaxMigDeviceCount.return_value = 7
        nvml.nvmlDeviceGetMigMode.side_effect = lambda h: [
            int(h in {p for p, _, _ in self.slices.values()}),
            0,
        ]
        nvml.nvmlSystemGetDriverVersion.return_value = "580.1"

    def by_uuid(self, uuid: str) -> object:
        if uuid in self.slices:
            return uuid
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
        ("MIG-1234,0", ["MIG-1234", UUIDS[0]]),
    ],
)
def test_the_visible_devices_are_the_devices(
    driver: FakeDriver, visible: str | None, found: list[str]
) -> None:
    driver.slices = {"MIG-1234": (1, 2, 2)}
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


UNSUPPORTED = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


def test_the_counter_is_preferred_then_power_then_the_limit(driver: FakeDriver) -> None:
    driver.energy = [1000, UNSUPPORTED, UNSUPPORTED]
    driver.power = [250_000, 260_000, UNSUPPORTED]
    driver.limit = 500_000
    probe = NvmlProbe()
    assert [d.energy for d in probe.open()] == ["counter", "power", "tdp"]
    assert "500 W, its limit, is assumed" in probe.note
    samples = probe.sample()
    assert [(samples[u].mj, samples[u].mw) for u in UUIDS] == [
        (1000, 250_000),
        (None, 260_000),
        (None, 500_000),
    ]
    assert samples[UUIDS[2]].util == 97
    assert samples[UUIDS[0]].mem_mib == 5 << 10


@pytest.mark.parametrize(
    ("name", "method", "mw"),
    [("NVIDIA H100 80GB HBM3", "tdp", 700_000), ("NVIDIA GPU of tomorrow", None, None)],
)
def test_without_a_limit_the_data_sheet_is_asked_and_an_unknown_product_stays_unknown(
    driver: FakeDriver, name: str, method: str | None, mw: int | None
) -> None:
    driver.energy = driver.power = [UNSUPPORTED] * 3
    pynvml.nvmlDeviceGetName.return_value = name
    probe = NvmlProbe(["aaaa1111"])
    assert probe.open()[0].energy == method
    assert (probe.sample()[UUIDS[0]].mj, probe.sample()[UUIDS[0]].mw) == (None, mw)
    assert ("unknown" in probe.note) == (method is None)


def test_a_counter_that_fails_for_a_while_is_not_replaced_by_the_limit(driver: FakeDriver) -> None:
    driver.limit = 500_000
    driver.power = [UNSUPPORTED] * 3
    probe = NvmlProbe(["aaaa1111"])
    probe.open()
    driver.energy[0] = pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
    assert (probe.sample()[UUIDS[0]].mj, probe.sample()[UUIDS[0]].mw) == (None, None)


def test_a_slice_gets_its_share_of_the_gpu(driver: FakeDriver) -> None:
    driver.slices = {"MIG-a": (1, 3, 3), "MIG-b": (1, 1, 3)}
    driver.energy[1], driver.power[1] = 7000, 210_000
    probe = NvmlProbe((), "MIG-a,MIG-b")
    assert [d.energy for d in probe.open()] == ["mig", "mig"]
    samples = probe.sample()
    assert (samples["MIG-a"].mj, samples["MIG-a"].mw) == (3000, 90_000)
    assert (samples["MIG-b"].mj, samples["MIG-b"].mw) == (1000, 30_000)
    assert "estimated" in probe.note


def test_slices_of_one_gpu_never_add_up_to_more_than_it(driver: FakeDriver) -> None:
    driver.slices = {f"MIG-{i}": (0, 1, 1) for i in range(7)}
    probe = NvmlProbe((), ",".join(driver.slices))
    probe.open()
    for counted in (1000, 123_456_789, 123_456_790):
        driver.energy[0] = counted
        total = sum(sample.mj or 0 for sample in probe.sample().values())
        assert counted - 7 < total <= counted


@pytest.mark.parametrize("slices", [(1, 0, 0), (1, 8, 8)])
def test_a_slice_of_unknown_share_has_unknown_energy(
    driver: FakeDriver, slices: tuple[int, int, int]
) -> None:
    driver.slices = {"MIG-a": slices}
    probe = NvmlProbe((), "MIG-a")
    assert probe.open()[0].energy is None
    sample = probe.sample()["MIG-a"]
    assert (sample.mj, sample.mw) == (None, None)
    assert "unknown" in probe.note


@pytest.mark.parametrize("given", ["aaaa", "GPU-aaaa1111"])
def test_torch_may_name_the_slice_or_the_gpu_it_is_of(driver: FakeDriver, given: str) -> None:
    driver.slices = {"MIG-aaaa": (0, 2, 2)}
    devices = NvmlProbe([given], "MIG-aaaa").open()
    assert [(d.id, d.energy) for d in devices] == [("MIG-aaaa", "mig")]


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
        assert device.id.startswith(("GPU-", "MIG-"))
        assert device.memory_mib
        assert samples[device.id].mem_mib is not None
        assert device.energy is None or samples[device.id].mw is not None
    probe.close()
