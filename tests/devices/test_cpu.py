"""The CPU as a device: what names it, which clock ranks, and processes of their own."""

from __future__ import annotations

import resource
import subprocess
import sys

import psutil
import pytest
import torch

import harness
from harness.api import TimingPlan, Workload
from harness.devices.cpu import Cpu
from harness.errors import EnvironmentFault, HarnessError
from harness.latency import fresh_process, timing
from harness.models.loading.cards import card
from harness.models.loading.weights import locate
from harness.plugins import registry
from harness.system import process

from ..families import tiny

WORKLOAD = Workload("prefill", 1, 8)


def test_threads_and_wait_policy_are_part_of_the_name(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("HARNESS_CPU_THREADS", raising=False)
    one = Cpu().probe().fingerprint
    assert one["threads"] == 1
    monkeypatch.setenv("HARNESS_CPU_THREADS", "2")
    two = Cpu().probe().fingerprint
    assert two["threads"] == 2
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    active = Cpu().probe().fingerprint
    assert active["wait_policy"] == "ACTIVE"
    assert len({str(name) for name in (one, two, active)}) == 3


@pytest.mark.parametrize(("name", "value"), [("HARNESS_CPU_THREADS", "many"), ("HARNESS_CPU_CLOCK", "sun")])
def test_settings_that_cannot_be_meant_make_it_unusable(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    info = Cpu().probe()
    assert not info.usable
    assert name in info.reason


def test_the_ranked_clock_is_cpu_time_unless_asked(monkeypatch):
    monkeypatch.delenv("HARNESS_CPU_CLOCK", raising=False)
    assert Cpu().probe().clock == "cpu"
    monkeypatch.setenv("HARNESS_CPU_CLOCK", "wall")
    assert Cpu().probe().clock == "wall"
    monkeypatch.setenv("HARNESS_CPU_CLOCK", "auto")
    for waited, clock in ((0.0, "wall"), (0.5, "cpu"), (None, "cpu")):
        monkeypatch.setattr("harness.devices.cpu.pressure", lambda waited=waited: waited)
        assert Cpu().probe().clock == clock


def test_a_visit_has_both_clocks_and_leaves_torch_its_threads():
    model, _ = tiny("llama")
    device = Cpu()
    before = torch.get_num_threads()
    handle = device.prepare(model, WORKLOAD)
    samples = device.measure(handle, TimingPlan(warmup=1, iterations=4))
    assert len(samples.wall_ns) == len(samples.cpu_ns) == 4
    assert min(samples.wall_ns) > 0
    assert samples.after["time_ns"] > samples.before["time_ns"]
    assert torch.get_num_threads() == before
    longer = device.measure(handle, TimingPlan(warmup=0, iterations=1, seconds=0.2))
    assert sum(longer.wall_ns) > 0.15e9
    device.close(handle)


def test_time_grows_with_work():
    """By a wide margin: three times the tokens of a model a hundred times as large."""
    device = Cpu()
    small, _ = tiny("llama")
    folder, _ = locate(card("tiny"))
    large = harness.load(folder)
    times = [
        min(device.measure(device.prepare(model, Workload("prefill", 1, size)), TimingPlan(2, 5)).cpu_ns)
        for model, size in ((small, 8), (large, 1024))
    ]
    assert times[1] > 2 * times[0]


def test_every_visit_has_a_process_of_its_own():
    folder, _ = locate(card("tiny"))
    server = fresh_process.TimingServer("fp32")
    opener = fresh_process.visit_opener(server, folder, "cpu", "eager", "fp32", WORKLOAD)
    for passes in (3, 2):
        visit = opener()
        assert len(visit.measure(TimingPlan(0, passes)).cpu_ns) == passes
        assert len(visit.measure(TimingPlan(0, 1)).cpu_ns) == 1
        visit.close()
    server.close()
    assert server.fork_server.process.returncode == 0


def test_a_visit_that_fails_says_why_and_leaves_the_next_alone(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    folder, _ = locate(card("tiny"))
    server = fresh_process.TimingServer("fp32")
    for _ in range(2):
        with pytest.raises(HarnessError, match="no anatomy"):
            fresh_process.visit_opener(server, tmp_path, "cpu", "eager", "fp32", WORKLOAD)()
    visit = fresh_process.visit_opener(server, folder, "cpu", "eager", "fp32", WORKLOAD)()
    with pytest.raises(HarnessError, match="TypeError"):
        visit.server.request(plan={"nonsense": 1})
    visit.close()
    again = fresh_process.visit_opener(server, folder, "cpu", "eager", "fp32", WORKLOAD)()
    assert again.measure(TimingPlan(0, 1)).wall_ns
    server.close()


def test_a_process_that_was_killed_says_so():
    folder, _ = locate(card("tiny"))
    server = fresh_process.TimingServer("fp32")
    visit = fresh_process.visit_opener(server, folder, "cpu", "eager", "fp32", WORKLOAD)()
    psutil.Process(server.fork_server.process.pid).children()[0].kill()
    with pytest.raises(HarnessError, match="was ended"):
        visit.measure(TimingPlan(0, 1))
    visit.close()
    fresh_process.visit_opener(server, folder, "cpu", "eager", "fp32", WORKLOAD)().close()
    server.fork_server.process.kill()
    with pytest.raises(HarnessError, match="ended"):
        fresh_process.visit_opener(server, folder, "cpu", "eager", "fp32", WORKLOAD)()
    server.close()


def test_measure_takes_the_protocol_of_its_preset(monkeypatch):
    short = timing.TimingProtocol(rounds=2, warmup=0, iterations=2, seconds=0, fresh=True)
    monkeypatch.setitem(timing.PROTOCOLS, "quick", short)
    folder, _ = locate(card("tiny"))
    found = harness.measure(folder, "prefill:1x8")
    assert found.processes == 3 * found.rounds


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["magnitude", "random"])
def test_a_budget_is_met_on_this_cpu(runs, pruner):
    """The whole way on a real model: at most 0.70 of dense, and at least 0.67."""
    record = harness.run(pruner, latency="0.7x", evaluators="footprint")
    assert record.status == "ok", record.reason
    assert record.latency["prefill:1x128"].clock == "cpu"
    assert 0.67 <= record.budget.achieved <= 0.70
    assert record.budget.achieved_ci95


# --- bf16 on machines that announce what they do not allow ---


@pytest.fixture
def amx(monkeypatch, tmp_path):
    """A CPU that announces AMX, and an interpreter that stands for what happens when it is used."""
    monkeypatch.setattr(process, "announces_amx", lambda: True)
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.delitem(sys.modules, "torch")

    def stand_in(script):
        interpreter = tmp_path / "python"
        interpreter.write_text(f"#!/bin/sh\necho tried >> {tmp_path}/tries\n{script}\n")
        interpreter.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(interpreter))
        return tmp_path / "tries"

    return stand_in


def test_bf16_that_kills_is_tried_once_elsewhere_and_avoided(amx, monkeypatch):
    tries = amx("kill -ILL $$")
    process.prepare("bf16")
    info = Cpu().probe()
    assert info.fingerprint["isa_limit"] == process.TAMED_ISA
    assert "AMX" in info.notes[0]
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    process.prepare("bf16")
    assert Cpu().probe().fingerprint["isa_limit"] == process.TAMED_ISA
    assert tries.read_text().count("tried") == 1


def test_bf16_that_works_is_left_alone(amx):
    amx("exit 0")
    process.prepare("bf16")
    assert Cpu().probe().fingerprint["isa_limit"] == ""


def test_fp32_is_not_tried(amx):
    tries = amx("kill -ILL $$")
    process.prepare("fp32")
    assert not tries.exists()


FAULTS = """
import resource
from harness.system import process
process.prepare(keep=KEEP)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def touched():
    before = faults()
    for _ in range(3):
        bytes_ = b"x" * (64 << 20)
        del bytes_
    return faults() - before
first, second = touched(), touched()
process.return_freed_memory()
print(first, second, touched())
"""


@pytest.mark.skipif(process.glibc() is None, reason="glibc's allocator, or somebody has told it how to allocate")
def test_a_process_that_times_keeps_what_it_frees_until_a_stage_is_over():
    def faults(keep):
        script = FAULTS.replace("KEEP", str(keep))
        found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        return [int(word) for word in found.stdout.split()]

    pages = (64 << 20) // resource.getpagesize()
    first, second, later = faults(True)
    assert first > pages / 2
    assert second < pages / 100
    assert later > pages / 2
    assert faults(False)[1] > 2 * pages


def test_an_unusable_device_is_refused_by_measure(monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_CPU_CLOCK", "sun")
    folder, _ = locate(card("tiny"))
    with pytest.raises(EnvironmentFault, match="not usable"):
        harness.measure(folder)
    assert registry().get("device", "cpu").in_process
