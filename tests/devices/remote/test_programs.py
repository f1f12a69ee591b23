"""What programs on other machines print, over their versions, and what is read from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.api import TimingPlan
from harness.devices.remote.programs import benchmark_model, net_run, perf_test, trtexec
from harness.devices.remote.programs.parsing import BadOutput, number

OUTPUTS = Path(__file__).parent.parent.parent / "outputs"
PLAN = TimingPlan(warmup=2, iterations=20, seconds=2.0)


def said(name: str) -> str:
    return (OUTPUTS / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "value"),
    [("1.5", 1.5), ("1,5", 1.5), ("1,234.5", 1234.5), ("1.234,5", 1234.5), ("1.24e+06", 1.24e6), ("1,24E-3", 1.24e-3)],
)
def test_numbers_of_every_locale(words, value):
    assert number(words) == value


@pytest.mark.parametrize("words", ["1,234,567", "1.2.3", "-"])
def test_numbers_that_say_two_things_are_none(words):
    with pytest.raises(BadOutput, match="no number that can be read one way only"):
        number(words)


def test_trtexec_over_its_versions():
    old, new = trtexec.parse_output(said("trtexec-8.2"), 0), trtexec.parse_output(said("trtexec-10.3"), 0)
    assert (old["version"], new["version"]) == ("8.2.1", "10.3.0")
    assert old["GPU Compute Time"]["median"] == 4_679_690
    assert "percentile(90%)" not in old["Latency"]
    assert old["End-to-End Host Latency"]["percentile(99%)"] == 5_300_000
    assert new["Latency"]["max"] == 12_000_000
    assert new["GPU Compute Time"]["percentile(90%)"] == 1_000_000
    assert new["memory"] == {
        "device persistent": 1981952,
        "scratch": 42735104,
        "activation": 467884032,
        "weights": 238797908,
    }


def test_trtexec_that_fails_says_why():
    for code in (0, 1):
        with pytest.raises(BadOutput, match="reshape changes volume"):
            trtexec.parse_output(said("trtexec-failed"), code)
    cut_off = said("trtexec-8.2").rpartition("&&&& PASSED")[0]
    with pytest.raises(BadOutput):
        trtexec.parse_output(cut_off, 0)
    with pytest.raises(BadOutput, match="it printed nothing"):
        trtexec.parse_output("", 127)


def test_raw_times_of_trtexec_old_and_new():
    old = [{"startInMs": 0, "endInMs": 0, "inMs": 0, "computeMs": 4.5, "outMs": 0, "latencyMs": 4.75, "endToEndMs": 5}]
    new = [{"startEnqMs": 1.0, "endEnqMs": 1.1, "h2dMs": 0.5, "computeMs": 1e-7, "d2hMs": 0.25, "latencyMs": 0.75}]
    assert trtexec.samples(json.dumps(old * 2)) == ([4_500_000] * 2, [4_750_000] * 2)
    assert trtexec.samples(json.dumps(new)) == ([1], [750_000])
    for words in ("[]", "{}", "[{}]", "[1]", '[{"computeMs": 1', "null"):
        with pytest.raises(BadOutput):
            trtexec.samples(words)


def test_words_for_trtexec():
    words = trtexec.timing_command("/t/trtexec", "m.plan", PLAN, "times.json", "--useCudaGraph")
    assert words[:2] == ["/t/trtexec", "--loadEngine=m.plan"]
    assert {"--warmUp=2000", "--duration=2", "--iterations=20", "--exportTimes=times.json"} <= set(words)
    assert "--useCudaGraph" in words
    old, new = "--fp16 --buildOnly", "--stronglyTyped --skipInference --timingCacheFile"
    assert trtexec.build_command("trtexec", "m.onnx", "/f/m/m.plan", "fp16", old)[3:] == ["--buildOnly", "--fp16"]
    built = trtexec.build_command("trtexec", "m.onnx", "/f/m/m.plan", "fp16", new)[3:]
    assert built == ["--skipInference", "--stronglyTyped", "--timingCacheFile=/f/m/../timing.cache"]
    assert trtexec.build_command("trtexec", "m.onnx", "/f/m/m.plan", "fp32", old)[3:] == ["--buildOnly"]


def test_perf_test_over_its_versions():
    old, new = perf_test.parse_output(said("perf_test-1.17"), 0), perf_test.parse_output(said("perf_test-1.23"), 0)
    assert old["P90 Latency"] == 1_880_000
    assert old["Peak working set size"] == 36696064
    assert old["Total inference requests"] == 100
    assert "P90 Latency" not in new
    assert new["Average inference time cost"] == 98_961_997
    assert new["Min Latency"] == 95_820_400
    for code in (0, 1):
        with pytest.raises(BadOutput, match="fallback to CPU EP has been explicitly disabled"):
            perf_test.parse_output(said("perf_test-failed"), code)


def test_raw_times_of_perf_test():
    rows = "m.onnx,0.0018,36696064,96,0\nm.onnx,1.9e-03,36696064,96,1\n"
    assert perf_test.samples(rows) == [1_800_000, 1_900_000]
    assert perf_test.samples("model,seconds,peak,cpu,run\n" + rows) == [1_800_000, 1_900_000]
    with pytest.raises(BadOutput):
        perf_test.samples("")


def test_words_for_perf_test():
    plain = perf_test.timing_command("p", "m.onnx", "r.csv", TimingPlan(iterations=7), 2)
    assert " ".join(plain).endswith("-m times -r 7 -e cpu m.onnx r.csv")
    given = {"name": "QNNExecutionProvider", "library": "libqnn.so", "options": {"backend_type": "htp", "a": "b"}}
    plugged = perf_test.timing_command("p", "m.onnx", "r.csv", PLAN, 1, given)
    assert " ".join(plugged).endswith("-C session.disable_cpu_ep_fallback|1 m.onnx r.csv")
    assert "QNNExecutionProvider|libqnn.so" in plugged
    assert "backend_type|htp a|b" in plugged
    assert "-e" not in plugged


def test_net_run_and_its_viewer():
    net_run.check_finished(said("net_run"), 0)
    with pytest.raises(BadOutput, match="Skel lib id mismatch"):
        net_run.check_finished(said("net_run-failed"), 1)
    with pytest.raises(BadOutput):
        net_run.check_finished(said("net_run").replace("Finished", "Stopped"), 0)
    found = net_run.parse_output(said("viewer-2.51"))
    assert found["average"]["NetRun"] == 2_952_000
    assert found["average"]["Backend (Accelerator (execute) time)"] == 2_492_000
    assert found["average"]["Backend (Accelerator (execute) time (cycles))"] == {"cycles": 4643728.0}
    assert (found["min"]["NetRun"], found["max"]["NetRun"]) == (2_900_000, 3_411_000)
    with pytest.raises(BadOutput, match="reports no execution"):
        net_run.parse_output(said("viewer-empty"))


def test_benchmark_model_over_its_versions():
    old, new = (
        benchmark_model.parse_output(said("benchmark_model-2.6"), 0),
        benchmark_model.parse_output(said("benchmark_model-2.20"), 0),
    )
    assert (old["count"], old["avg"], old["peak_bytes"]) == (260, 3_756_870, 63_400_000)
    assert "median" not in old
    assert (new["avg"], new["median"], new["max"]) == (120_000_000, 79_000_000, 1_240_000_000)
    assert new["peak_bytes"] == 138_800_000
    with pytest.raises(BadOutput, match="ANEURALNETWORKS_OP_FAILED"):
        benchmark_model.parse_output(said("benchmark_model-undone"), 139)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("2.6", ""),
        ("2.20", ""),
        ("refused", "took it and gave it back"),
        ("partial", "59 nodes, which TfLiteXNNPackDelegate took"),
        ("undone", "took it and gave it back"),
    ],
)
def test_a_silent_fallback_is_heard(name, told):
    found = benchmark_model.fallback(said(f"benchmark_model-{name}"))
    assert bool(found) == bool(told)
    assert told in " ".join(found)


def test_what_says_nothing_of_the_accelerator_is_not_trusted():
    assert benchmark_model.fallback("INFO: count=50 avg=9000")
    reference = said("benchmark_model-2.20").replace("[synap-npu]", "[nnapi-reference]", 1)
    assert "is the CPU" in benchmark_model.fallback(reference)[0]
