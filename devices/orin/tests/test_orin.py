"""An Orin without an Orin: this machine plays it, with programs that take its words. Its figures enter no table."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from harness_orin.cpu import OrinCpu
from harness_orin.gpu import OrinGpu
from harness_orin.jetson import Jetson, mean_power_w, parse_line

from harness import TimingPlan, Unsupported, Workload
from harness.cli import cli
from harness.conformance import Conformance, fake_machine
from harness.errors import HarnessError

PROGRAMS = Path(__file__).parent / "programs"
NANO = (
    "RAM 2272/7620MB (lfb 4x4MB) SWAP 221/3810MB (cached 0MB) CPU [0%@729,0%@729,off,off,0%@729,0%@729] "
    "EMC_FREQ 0% GR3D_FREQ 87% cpu@54.9C soc2@55.5C soc0@56.1C gpu@55.4C tj@56.6C soc1@56.6C "
    "VDD_IN 4673mW/4700mW VDD_CPU_GPU_CV 527mW/530mW VDD_SOC 1339mW/1340mW"
)
AGX = (
    "03-12-2026 09:14:02 RAM 3120/30536MB (lfb 6x4MB) CPU [2%@2201,1%@2201] GR3D_FREQ 99% cpu@48.1C tboard@38.2C "
    "gpu@96.5C cv0@-256C VDD_GPU_SOC 4800mW/4200mW VDD_CPU_CV 1200mW/1100mW VIN_SYS_5V0 3600mW/3500mW"
)


@pytest.fixture(autouse=True, scope="module")
def orin(tmp_path_factory):
    """Both devices by files that name this machine, which has the programs of a Jetson first in its path."""
    devices = {"orin-cpu": {"python": sys.executable}, "orin-gpu": {"tools": {"trtexec": "{bin}/trtexec"}}}
    with fake_machine.machine(tmp_path_factory.mktemp("orin"), PROGRAMS, devices) as home:
        yield home


class TestOrinGpu(Conformance):
    name = "orin-gpu"


@pytest.mark.slow  # like every device by ONNX Runtime; the CPU of this machine passes in tests/test_conformance.py
class TestOrinCpu(Conformance):
    name = "orin-cpu"


@pytest.fixture(scope="module")
def model():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 64}
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes)).eval().to(torch.float16)


def left(folder: str) -> list[str]:
    return [path.name for path in Path(folder).rglob("*") if path.is_file()]


@pytest.mark.parametrize("device", [OrinGpu, OrinCpu])
def test_what_plays_an_orin_is_not_one(device):
    found = device()
    info = found.probe()
    assert info.usable, info.reason
    assert info.provenance == "simulated"
    assert any("its figures enter no table" in note for note in info.notes)
    assert info.fingerprint["power_mode"] == "MAXN"
    found.folder.end()


@pytest.mark.slow
@pytest.mark.parametrize(("device", "words"), [("orin-gpu", ["--dtype", "fp16"]), ("orin-cpu", [])])
def test_a_run_meets_a_latency_on_it(device, words, tmp_path):
    record = fake_machine.profile_and_run(cli, device, tmp_path, *words, profile=False)
    assert record["status"] in ("ok", "unstable", "over_budget"), record["reason"]  # here a stand-in is timed
    assert record["budget"]["achieved"] < 0.75 or record["status"] != "ok"
    assert record["latency"]["prefill:1x16"]["provenance"] == "simulated"


def test_an_engine_is_built_timed_and_taken_away(model):
    gpu = OrinGpu("tensorrt")
    info = gpu.probe()
    assert info.fingerprint["tensorrt"] == "10.3.0"
    assert 50 < info.state["temperatures_c"]["tj"] < 100
    handle = gpu.prepare(model, Workload.parse("prefill:1x16"))
    there = gpu.folder.path
    assert sorted(left(there)) == ["model.plan", "tegrastats.log"]
    found = gpu.measure(handle, TimingPlan(warmup=1, iterations=4))
    assert len(found.device_ns) == len(found.wall_ns) >= 4
    assert all(device < wall for device, wall in zip(found.device_ns, found.wall_ns, strict=True))
    assert found.energy_j == pytest.approx(4.673 * sum(found.device_ns) / 1e9)
    assert found.told == {"engine_bytes": handle.details["engine_bytes"]}
    assert found.told["engine_bytes"] > 10_000
    assert found.memory["peak"] > 4096
    assert found.before["throttle"] == []
    assert found.after["ram_peak_mb"] >= found.after["ram_mb"] > 2000
    assert found.after["temperatures_c"]["gpu"] >= found.before["temperatures_c"]["gpu"]
    gpu.close(handle)
    gpu.close(handle)
    with pytest.raises(HarnessError, match="this handle is closed"):
        gpu.measure(handle, TimingPlan())
    gpu.folder.end()
    assert not Path(there).exists()


def test_what_cannot_be_built_says_why_and_leaves_nothing(model, monkeypatch):
    gpu = OrinGpu("tensorrt")
    monkeypatch.setattr(type(gpu), "help", "--loadEngine --skipInference")  # a version that knows no precision
    with pytest.raises(HarnessError, match="Network has FP16 tensors"):
        gpu.prepare(model, Workload.parse("prefill:1x16"))
    assert left(gpu.folder.path) == []
    gpu.folder.end()


def test_a_dtype_that_a_device_does_not_run_is_unsupported(model):
    with pytest.raises(Unsupported, match="orin-cpu runs no fp16 models"):
        OrinCpu().prepare(model, Workload.parse("prefill:1x16"))


def test_clocks_and_their_units(orin, monkeypatch):
    """As jetson_clocks shows them: those of CPUs in kHz, the others in Hz."""
    cpu = OrinCpu()
    cpu.probe()
    assert cpu.facts["clocks_locked"] is None  # there is no jetson_clocks, or no right to ask it
    monkeypatch.setattr(Jetson, "_output", lambda self, *words: CLOCKS if "jetson_clocks" in words else "")
    assert cpu.jetson.clocks() == {
        "cpu0": (729_600_000, 2_201_600_000, 2_112_000_000),
        "GPU": (306_000_000, 1_300_500_000, 306_000_000),
        "EMC": (204_000_000, 3_199_000_000, 3_199_000_000),
    }
    assert cpu.jetson.power()["clocks_locked"] is False
    locked = re.sub(r"MinFreq=\d+ MaxFreq=(\d+)", r"MinFreq=\1 MaxFreq=\1", CLOCKS)
    monkeypatch.setattr(Jetson, "_output", lambda self, *words: locked if "jetson_clocks" in words else "")
    assert cpu.jetson.power()["clocks_locked"] is True
    cpu.folder.end()


CLOCKS = """SOC family:tegra234  Machine:NVIDIA Orin
cpu0: Online=1 Governor=schedutil MinFreq=729600 MaxFreq=2201600 CurrentFreq=2112000 IdleStates: WFI=1 c7=1
GPU MinFreq=306000000 MaxFreq=1300500000 CurrentFreq=306000000
EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=3199000000 FreqOverride=0
"""


def test_words_that_mean_nothing_to_a_device_are_refused(orin, monkeypatch, tmp_path):
    for device, words in (
        (OrinGpu, {"threads": 2}),
        (OrinGpu, {"clock": "cpu"}),
        (OrinCpu, {"tools": {"trtexec": "/t"}}),
    ):
        (tmp_path / f"{device.name}.yaml").write_text(json.dumps({"transport": "local", **words}))
        monkeypatch.setenv("HARNESS_DEVICES", str(tmp_path))
        assert f"{device.name} " in device().probe().reason
        assert "has no field" in device().probe().reason or "has no cpu clock" in device().probe().reason


def test_an_old_tensorrt_is_said_to_be_too_old(monkeypatch):
    monkeypatch.setattr(OrinGpu, "help", "&&&& RUNNING TensorRT.trtexec [TensorRT v8502] --loadEngine")
    assert "TensorRT 8.5.2 reads no graph" in OrinGpu().probe().reason


def test_another_power_mode_than_asked_for_is_refused(orin, monkeypatch, tmp_path):
    words = json.loads((orin / "orin-gpu.yaml").read_text())
    (tmp_path / "orin-gpu.yaml").write_text(json.dumps({**words, "power_mode": "15W"}))
    monkeypatch.setenv("HARNESS_DEVICES", str(tmp_path))
    gpu = OrinGpu("tensorrt")
    steps = list(gpu.walk())
    assert [step.name for step in steps] == ["file", "reach", "folder", "trtexec", "power mode"]
    assert [step.ok for step in steps] == [True] * 4 + [False]
    assert "is in power mode MAXN, not 15W" in steps[-1].detail
    assert gpu.probe().reason == steps[-1].detail
    gpu.folder.end()


def test_no_trtexec_is_said_so(orin, monkeypatch, tmp_path):
    words = json.loads((orin / "orin-gpu.yaml").read_text())
    (tmp_path / "orin-gpu.yaml").write_text(json.dumps({**words, "tools": {"trtexec": "/no/trtexec"}}))
    monkeypatch.setenv("HARNESS_DEVICES", str(tmp_path))
    assert "has no trtexec at /no/trtexec" in OrinGpu().probe().reason


def test_lines_of_tegrastats():
    nano, agx = parse_line(NANO), parse_line(AGX)
    assert (nano["ram_mb"], nano["ram_total_mb"], nano["gpu_busy"], nano["power_mw"]) == (2272, 7620, 87, 4673)
    assert nano["temperatures_c"]["tj"] == 56.6
    assert nano["throttle"] == []
    assert agx["power_mw"] == 4800 + 1200 + 3600
    assert "cv0" not in agx["temperatures_c"]
    assert agx["throttle"] == ["gpu is hot"]
    assert mean_power_w([nano, {**agx, "gpu_busy": 3}]) == 4.673
    assert mean_power_w([{**nano, "gpu_busy": 0}]) is None
    assert parse_line("") == {}
