"""NVML from a fake: units, refusals, reasons, neighbours, energy. Its questions are those of the real package."""

from __future__ import annotations

import inspect
import os
import sys
import time
import types

import pytest
from harness_cuda import Cuda, Handle
from harness_cuda.nvml import GPU_DIE, MEMORY, SM, THROTTLE, Meter, joules

from harness import TimingPlan


class Refused(Exception):
    """As pynvml.NVMLError."""


class FakeNvml(types.ModuleType):
    """As much of pynvml as is asked; names in `refuses` raise, and anything unknown is not there."""

    NVMLError = Refused

    def __init__(self, refuses=(), pids=(), **answers):
        super().__init__("pynvml")
        self.refuses, self.pids, self.opened = refuses, pids, []
        self.answers = {
            "nvmlDeviceGetClockInfo": lambda clock: {1: 1980, 2: 2619}[clock],
            "nvmlDeviceGetMaxClockInfo": lambda clock: {1: 1980}[clock],
            "nvmlDeviceGetTemperature": lambda sensor: 41,
            "nvmlDeviceGetPowerUsage": lambda: 312_500,
            "nvmlDeviceGetPowerManagementLimit": lambda: 700_000,
            "nvmlDeviceGetCurrentClocksEventReasons": lambda: 0,
            "nvmlDeviceGetComputeRunningProcesses": lambda: [types.SimpleNamespace(pid=pid) for pid in self.pids],
            "nvmlDeviceGetTotalEnergyConsumption": lambda: 5_000,
            "nvmlDeviceGetMigMode": lambda: [0, 0],
            **answers,
        }

    def __getattr__(self, name):
        def call(gpu, *arguments):
            assert gpu == "a gpu"
            if name in self.refuses:
                raise Refused("Not Supported")
            return self.answers[name](*arguments)

        if name in self.__dict__.get("answers", {}):
            return call
        raise AttributeError(name)

    def nvmlInit(self):
        if "nvmlInit" in self.refuses:
            raise Refused("NVML Shared Library Not Found")

    def nvmlSystemGetDriverVersion(self):
        return b"580.95.05"

    def nvmlDeviceGetHandleByPciBusId(self, name):
        self.opened.append(name)
        if "pci" in self.refuses:
            raise Refused("Not Found")
        return "a gpu"

    def nvmlDeviceGetHandleByUUID(self, name):
        self.opened.append(name)
        if "uuid" in self.refuses:
            raise Refused("Not Found")
        return "a gpu"


@pytest.fixture
def nvml(monkeypatch):
    def make(**words):
        fake = FakeNvml(**words)
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        return fake

    return make


PCI = "00000000:3b:00.0"


def test_readings_in_their_units(nvml):
    nvml(pids=[os.getpid(), 4711])
    meter = Meter(PCI, "0123")
    found = meter.readings(working=True)
    assert abs(found.pop("time_ns") - time.monotonic_ns()) < 5e9
    assert found == {
        "sm_mhz": 1980,
        "memory_mhz": 2619,
        "temperature_c": 41,
        "power_w": 312.5,
        "throttle": [],
        "other_processes": 1,
        "energy_mj": 5000,
    }
    assert meter.limits() == {
        "driver": "580.95.05",
        "power_limit_w": 700.0,
        "max_sm_mhz": 1980,
        "application_sm_mhz": None,  # the fake does not have it, as an old package might not
    }
    assert meter.note == ""


def test_what_is_refused_is_left_out(nvml):
    refuses = [name for name in FakeNvml().answers if name != "nvmlDeviceGetClockInfo"]
    nvml(refuses=refuses)
    assert set(Meter(PCI).readings(working=True)) == {"time_ns", "sm_mhz", "memory_mhz"}


def test_without_nvml_only_the_time(nvml, monkeypatch):
    nvml(refuses=["nvmlInit"])
    meter = Meter(PCI)
    assert set(meter.readings(working=True)) == {"time_ns"}
    assert set(meter.limits().values()) == {None}
    assert meter.note == ("NVML cannot be read, so clocks, power and energy are missing: NVML Shared Library Not Found")
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert set(Meter(PCI).readings(working=True)) == {"time_ns"}


def test_a_gpu_is_found_by_address_and_then_by_uuid(nvml):
    fake = nvml()
    assert Meter(PCI, "0123").note == ""
    assert fake.opened == [PCI]
    fake = nvml(refuses=["pci"])
    assert Meter(PCI, "0123").note == ""
    assert fake.opened == [PCI, "GPU-0123"]
    nvml(refuses=["pci", "uuid"])
    assert "Not Found" in Meter(PCI, "0123").note


@pytest.mark.parametrize(
    ("bits", "names"),
    [
        (0x01 | 0x02 | 0x10 | 0x100, []),  # idle, application clocks, sync boost, display clocks
        (0x04, ["sw_power_cap"]),
        (0x01 | 0x08 | 0x40, ["hw_slowdown", "hw_thermal"]),
        (0x20 | 0x80 | 0x200, ["sw_thermal", "hw_power_brake"]),
    ],
)
def test_reasons_that_matter_have_names(nvml, bits, names):
    nvml(nvmlDeviceGetCurrentClocksEventReasons=lambda: bits)
    assert Meter(PCI).readings(working=True)["throttle"] == names
    nvml(
        refuses=["nvmlDeviceGetCurrentClocksEventReasons"],  # a driver that knows only the old name
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda: bits,
    )
    assert Meter(PCI).readings(working=True)["throttle"] == names


@pytest.mark.parametrize(
    ("pids", "ours", "others"),
    [
        ([os.getpid()], True, 0),
        ([os.getpid(), 4711], False, 1),
        ([os.getpid(), os.getppid(), 4711], True, 1),  # a visit in a process of its own
        ([4711, 4712], True, None),  # a container that numbers as its host does: who is who?
        ([4711], False, 1),
        ([], False, 0),
        ([], True, None),  # we are there and not named, so others may be too
    ],
)
def test_other_processes_in_and_out_of_containers(nvml, pids, ours, others):
    nvml(pids=pids)
    assert Meter(PCI).readings(ours).get("other_processes") == others


def test_a_slice_is_not_charged_with_its_neighbours(nvml):
    nvml(nvmlDeviceGetMigMode=lambda: [1, 1])
    meter = Meter(PCI)
    assert not {"energy_mj", "other_processes"} & set(meter.readings(working=True))
    assert meter.readings(working=True)["sm_mhz"] == 1980
    assert "MIG is on" in meter.note


def test_energy_needs_two_readings_and_time():
    assert joules(1000, 3500, 1.0) == 2.5
    assert joules(None, 3500, 1.0) is joules(1000, None, 1.0) is None
    assert joules(1000, 3500, 0.09) is None
    assert joules(1000, 1000, 1.0) is None


def test_a_visit_tells_energy_and_every_reason_it_saw(nvml):
    clock = {"mj": 0, "asked": 0}

    def energy():
        clock["mj"] += 10_000
        return clock["mj"]

    def reasons():
        clock["asked"] += 1
        return 0x04 if clock["asked"] == 2 else 0x00  # in the first batch, and not in the ones after it

    nvml(nvmlDeviceGetTotalEnergyConsumption=energy, nvmlDeviceGetCurrentClocksEventReasons=reasons)
    device = Cuda(place="cpu")
    device.meter = Meter(PCI)
    handle = Handle(model="", run=lambda: time.sleep(0.004), rewind=lambda: None)
    found = device.measure(handle, TimingPlan(warmup=1, iterations=3, seconds=0.3))
    assert found.before["throttle"] == []
    assert found.after["throttle"] == ["sw_power_cap"]
    assert found.after["energy_mj"] > found.before["energy_mj"]
    whole = (found.after["energy_mj"] - found.before["energy_mj"] - 10_000) / 1000  # one reading lies between the two
    assert 0.8 * whole < found.energy_j < whole  # the untimed pass of each batch has its share
    assert found.energy_note == device.meter.energy_note(True)
    short = device.measure(handle, TimingPlan(warmup=0, iterations=1))
    assert (short.energy_j, short.energy_note) == (None, device.meter.energy_note(False))


def test_energy_says_what_it_is_of_or_why_there_is_none(nvml, monkeypatch):
    nvml()
    assert Meter(PCI).energy_note(True).startswith("whole GPU")
    assert "--preset paper" in Meter(PCI).energy_note(False)  # it tells, so the visit was too short
    nvml(refuses=["nvmlDeviceGetTotalEnergyConsumption"])
    assert Meter(PCI).energy_note(False) == "this GPU and its driver do not report energy"
    nvml(nvmlDeviceGetMigMode=lambda: [1, 1])
    assert "MIG" in Meter(PCI).energy_note(False)
    nvml(refuses=["nvmlInit"])
    assert "NVML cannot be read" in Meter(PCI).energy_note(False)
    assert Meter().energy_note(False) == ""  # the host in a GPU's place


def test_the_questions_are_those_of_the_real_package():
    pynvml = pytest.importorskip("pynvml")
    for name, answer in FakeNvml().answers.items():
        inspect.signature(getattr(pynvml, name)).bind("gpu", *inspect.signature(answer).parameters)
    for name in ("nvmlDeviceGetCurrentClocksThrottleReasons", "nvmlDeviceGetApplicationsClock"):
        assert callable(getattr(pynvml, name))
    for name in ("nvmlDeviceGetHandleByPciBusId", "nvmlDeviceGetHandleByUUID"):
        inspect.signature(getattr(pynvml, name)).bind("name")
    assert (SM, MEMORY, GPU_DIE) == (pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM, pynvml.NVML_TEMPERATURE_GPU)
    assert {
        "sw_power_cap": pynvml.nvmlClocksThrottleReasonSwPowerCap,
        "hw_slowdown": pynvml.nvmlClocksThrottleReasonHwSlowdown,
        "sw_thermal": pynvml.nvmlClocksThrottleReasonSwThermalSlowdown,
        "hw_thermal": pynvml.nvmlClocksThrottleReasonHwThermalSlowdown,
        "hw_power_brake": pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
    } == THROTTLE


def test_nothing_is_ever_set():
    """Only questions: no clock, limit or mode of the GPU is changed by this distribution."""
    import harness_cuda.nvml

    text = inspect.getsource(harness_cuda.nvml)
    assert "nvmlDeviceGet" in text
    assert not [word for word in ("nvmlDeviceSet", "nvmlDeviceReset", "nvmlDeviceClear") if word in text]
