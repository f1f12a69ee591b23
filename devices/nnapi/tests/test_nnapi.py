"""A phone is played by this machine; the conversion is the real one, in the slow tests."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from harness_nnapi.phone import Nnapi

from harness import TimingPlan, Unsupported, Workload
from harness.cli import cli
from harness.conformance import Conformance, fake_machine
from harness.errors import HarnessError
from harness.models.export import isolated_env, tflite_model

PROGRAMS = Path(__file__).parent / "programs"
SMALL = Workload.parse("prefill:1x16")


@pytest.fixture
def phone(tmp_path):
    """By what its file says; this machine has the programs of a phone first in its path."""
    with fake_machine.machine(
        tmp_path, PROGRAMS, {"nnapi": {"tools": {"benchmark_model": "{bin}/benchmark_model"}}}
    ) as home:
        words = json.loads((home / "nnapi.yaml").read_text())

        def made(**more):
            (home / "nnapi.yaml").write_text(json.dumps({**words, **more}))
            return Nnapi("tflite")

        yield made


@pytest.fixture
def converted(monkeypatch):
    """A graph in name: as many bytes as the model takes multiplications, or so."""

    def export(model, workload, folder):
        size = sum(weight.numel() for weight in model.parameters()) * workload.batch * workload.size // 16
        (folder / tflite_model.FILE).write_bytes(bytes(size))
        return folder / tflite_model.FILE

    monkeypatch.setattr(tflite_model, "export", export)


class TestNnapi(Conformance):
    name = "nnapi"

    @pytest.fixture(autouse=True)
    def at_hand(self, phone, converted):
        phone()


def linear(wide: int):
    import torch

    return torch.nn.Linear(wide, wide)


def decoder():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 64}
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes)).eval()


def test_a_graph_is_pushed_timed_and_taken_away(phone, converted):
    found = phone()
    info = found.probe()
    assert info.usable, info.reason
    assert info.fingerprint["model"] == "SM-S911B SM8550"
    assert any("deprecated" in note for note in info.notes)
    assert info.provenance == "simulated"  # no phone: adb does not reach it, and it has no version of Android
    found.facts["sdk"] = "34"
    assert found.provenance() == "simulated"
    found.target = found.target.model_copy(update={"transport": "adb"})
    assert found.provenance() == ""
    del found.facts["sdk"]
    assert found.provenance() == "simulated"
    found.facts["emulated"] = True
    assert found.provenance() == "emulator"
    handle = found.prepare(linear(100), SMALL)
    there = Path(found.folder.path) / handle.name
    assert os.listdir(there) == [tflite_model.FILE]
    samples = found.measure(handle, TimingPlan(warmup=1, iterations=3))
    assert samples.wall_ns == [101_000] * 3
    assert samples.memory["peak"] == 138_800_000
    found.close(handle)
    assert not there.exists()
    found.folder.end()
    assert not there.parent.exists()


@pytest.mark.slow
def test_the_commands_profile_it_and_meet_a_latency_on_it(phone, converted, tmp_path):
    phone()
    record = fake_machine.profile_and_run(cli, "nnapi", tmp_path / "runs")
    assert record["status"] in ("ok", "unstable", "over_budget"), record["reason"]  # here a stand-in is timed
    assert record["budget"]["achieved"] < 0.75 or record["status"] != "ok"
    assert record["latency"]["prefill:1x16"]["provenance"] == "simulated"


def test_a_fall_back_to_the_cpu_is_an_error(phone, converted):
    found = phone(accelerator="refuse")
    handle = found.prepare(linear(10), SMALL)
    with pytest.raises(Unsupported, match="not all of it runs on NNAPI: the graph: NNAPI took it and gave it back"):
        found.measure(handle, TimingPlan(iterations=1))
    found.folder.end()


def test_a_program_that_dies_is_no_verdict_on_the_model(phone, converted):
    found = phone(accelerator="crash")
    handle = found.prepare(linear(10), SMALL)
    with pytest.raises(HarnessError, match="benchmark_model: it was ended by SIGKILL") as error:
        found.measure(handle, TimingPlan(iterations=1))
    assert not isinstance(error.value, Unsupported)
    found.folder.end()


def test_what_is_missing_is_said(phone):
    assert "names no benchmark_model" in phone(tools={}).probe().reason
    assert "No such file" in phone(tools={"benchmark_model": "/no/benchmark_model"}).probe().reason


def test_decoding_is_unsupported():
    with pytest.raises(Unsupported, match="decode workloads cannot be exported"):
        tflite_model.export(decoder(), Workload.parse("decode:1x16"), Path("/no"))
    with pytest.raises(Unsupported, match="this model has no decode workload"):
        tflite_model.export(linear(4), Workload.parse("decode:1x16"), Path("/no"))


def test_an_environment_that_cannot_be_made_says_so_and_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    packages = ["no-such-package-of-harness==1.0"]
    with pytest.raises(Exception, match="the environment of broken cannot be created"):
        isolated_env.interpreter("broken", packages)
    assert not isolated_env.is_ready("broken", packages)


@pytest.mark.slow
def test_what_is_converted_computes_the_same(tmp_path):
    import torch

    network = torch.nn.Sequential(torch.nn.Conv2d(3, 13, 3, 2, 1), torch.nn.ReLU6(), torch.nn.Conv2d(13, 7, 1)).eval()
    model, tokens, pixels = decoder(), torch.arange(16)[None], torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        wanted = {"prefill:1x16": model(tokens).logits[:, -1:], "image:1x32": network(pixels)}
    for made, given, workload in ((network, pixels, "image:1x32"), (model, tokens, "prefill:1x16")):
        path = tflite_model.export(made, Workload.parse(workload), tmp_path / workload[:5])
        done = subprocess.run(
            [
                isolated_env.interpreter(tflite_model.NAME, tflite_model.PACKAGES),
                "-c",
                RUN,
                path,
                json.dumps(given.tolist()),
            ],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        found = torch.tensor(json.loads(done.stdout.strip().splitlines()[-1]))
        assert (found - wanted[workload]).abs().max() < 1e-4


RUN = """
import json, sys, numpy
from ai_edge_litert.interpreter import Interpreter
made = Interpreter(sys.argv[1])
made.allocate_tensors()
given = made.get_input_details()[0]
made.set_tensor(given["index"], numpy.array(json.loads(sys.argv[2]), given["dtype"]))
made.invoke()
print(json.dumps(made.get_tensor(made.get_output_details()[0]["index"]).tolist()))
"""
