"""Qualcomm's real compiler and its emulator of the NPU; a phone is played by this machine. Nothing enters a table."""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path

import pytest
from harness_qnn import htp
from harness_qnn.s23 import S23
from harness_qnn.x_plus import XPlus

from harness import Cut, TimingPlan, Unsupported, Workload
from harness.cli import cli
from harness.conformance import Conformance, fake_machine
from harness.devices.remote.agent_client import Agent
from harness.devices.remote.folder import Folder
from harness.devices.remote.local import Local
from harness.errors import HarnessError
from harness.models.export.onnx_graph import export

pytest.importorskip("onnxruntime_qnn", reason="prune-harness-qnn[compiler] is not installed")
PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture(autouse=True, scope="module")
def devices(tmp_path_factory):
    tools = {name: f"{{bin}}/{name}" for name in ("onnxruntime_perf_test", "qnn-net-run")}
    found = {"qnn-x-plus": {"python": sys.executable}, "qnn-s23": {"tools": tools}}
    with fake_machine.machine(tmp_path_factory.mktemp("qnn"), PROGRAMS, found) as home:
        for library in S23("perf-test").required_libraries():
            (home / "bin" / library).touch()
        yield home


@pytest.mark.slow  # the emulator takes minutes
class TestXPlus(Conformance):
    name = "qnn-x-plus"


@pytest.mark.slow
class TestS23(Conformance):
    name = "qnn-s23"


@pytest.fixture(scope="module")
def decoder():
    """Three layers, no two alike once they are cut."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from harness.models.architectures import modeling
    from harness.models.architectures.lookup import anatomy_of
    from harness.models.cut import check_cut
    from harness.models.surgery import apply

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": 128, "head_dim": 16}
    torch.manual_seed(0)
    made = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes)).eval()
    anatomy = anatomy_of(modeling.config_dict(made))
    cut = Cut(keep={"layers.1.attention": [1], "layers.1.mlp": range(40), "layers.2.mlp": range(32, 96)})
    return apply(made, anatomy, check_cut(anatomy, cut)).eval().to(torch.float16)


def by_torch(decoder, given: dict):
    """In fp32, with the keys and values that the graph was given."""
    import torch
    from transformers import DynamicCache

    model = copy.deepcopy(decoder).float()
    cache = DynamicCache(config=model.config)
    for layer in range(len(model.model.layers)):
        kinds = [f"input.past_key_values.layers.{layer}.{kind}" for kind in ("keys", "values")]
        if kinds[0] in given:
            cache.update(*(torch.tensor(given[kind]).float() for kind in kinds), layer)
    with torch.no_grad():
        tokens = torch.tensor(given["input_ids"])
        return model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits.numpy()


@pytest.fixture(scope="module")
def network():
    """Inverted residuals of uneven widths, as pruning leaves them."""
    import torch
    from torch import nn

    def block(wide: int, narrow: int, out: int) -> list:
        deep = nn.Conv2d(narrow, narrow, 3, padding=1, groups=narrow)
        return [nn.Conv2d(wide, narrow, 1), nn.ReLU6(), deep, nn.ReLU6(), nn.Conv2d(narrow, out, 1)]

    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 13, 3, 2, 1), nn.ReLU6(), *block(13, 37, 19), *block(19, 53, 22)]
    made = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(22, 10)).eval()
    for weight in made.parameters():  # large, so that what is in a picture reaches the end
        nn.init.kaiming_normal_(weight) if weight.dim() > 1 else nn.init.zeros_(weight)
    return made


@pytest.fixture
def agent(tmp_path):
    found = Agent(Folder(Local(), str(tmp_path / "agent")), sys.executable)
    yield found
    found.folder.end()


def outputs(agent: Agent, model: str, soc: str, given: dict, folder: Path) -> list:
    import numpy

    numpy.savez(folder / "in.npz", **given)
    asked = {"inputs": str(folder / "in.npz"), "outputs": str(folder / "out.npz")}
    assert agent.request("run", model=model, provider=htp.provider(soc), **asked)["fallback"] == []
    with numpy.load(folder / "out.npz") as known:
        return [known[name] for name in known.files]


@pytest.mark.parametrize("soc", [htp.S23, htp.X_PLUS])
@pytest.mark.parametrize("workload", ["prefill:1x16", "decode:1x16"])
def test_uneven_layers_compile_and_compute_the_same(agent, decoder, tmp_path, soc, workload):
    import numpy

    graph = export(decoder, Workload.parse(workload), tmp_path / "graph")
    compiled = str(tmp_path / "compiled.onnx")
    found = htp.compile(agent, str(graph.path), compiled, soc, "npu", 120)
    assert found["parts"] == 1
    assert found["bytes"] == sum(path.stat().st_size for path in tmp_path.glob("compiled*.bin")) > 10_000
    random = numpy.random.default_rng(0)
    given = {
        name: random.integers(0, 128, shape) if name == "input_ids" else random.standard_normal(shape).astype("float16")
        for name, shape in graph.inputs.items()
    }
    logits, wanted = outputs(agent, compiled, soc, given, tmp_path)[0], by_torch(decoder, given)
    assert logits.shape == wanted.shape
    assert numpy.abs(logits - wanted).max() < 0.02 * numpy.abs(wanted).max()


@pytest.mark.parametrize("soc", [htp.S23, htp.X_PLUS])
def test_an_uneven_network_compiles_and_computes_the_same(agent, network, tmp_path, soc):
    import numpy
    import torch

    graph = export(network, Workload.parse("image:1x32"), tmp_path / "graph")
    compiled = str(tmp_path / "compiled.onnx")
    assert htp.compile(agent, str(graph.path), compiled, soc, "npu", 120)["parts"] == 1
    pictures = numpy.random.default_rng(0).standard_normal((2, 1, 3, 32, 32)).astype("float32")
    pictures[1, :, 0] += 2.0
    found = [outputs(agent, compiled, soc, {"pixels": pixels}, tmp_path)[0] for pixels in pictures]
    with torch.no_grad():
        wanted = [network(torch.tensor(pixels)).numpy() for pixels in pictures]
    near = 0.02 * numpy.abs(wanted).max()
    assert numpy.abs(wanted[0] - wanted[1]).max() > 5 * near  # else it would say little
    assert numpy.abs(numpy.array(found) - numpy.array(wanted)).max() < near


def test_what_does_not_lower_is_named(agent, tmp_path):
    """A determinant has no place on an NPU."""
    import onnx
    from onnx import TensorProto, helper

    sides = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 4]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1]),
    ]
    nodes = [helper.make_node("Relu", ["x"], ["r"], "warm"), helper.make_node("Det", ["r"], ["y"], "determinant")]
    graph = helper.make_graph(nodes, "g", sides[:1], sides[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(made, tmp_path / "graph.onnx")
    with pytest.raises(Unsupported, match=r"npu: \d of its nodes would run elsewhere: .*Det determinant"):
        htp.compile(agent, str(tmp_path / "graph.onnx"), str(tmp_path / "c.onnx"), htp.S23, "npu", 120)


def test_a_phone_gets_what_was_compiled_here(devices, decoder):
    for runtime in ("perf-test", "net-run"):
        phone = S23(runtime)
        info = phone.probe()
        assert info.usable, info.reason
        assert info.fingerprint["onnxruntime_qnn"]
        handle = phone.prepare(decoder, Workload.parse("prefill:1x16"))
        there = Path(phone.folder.path) / handle.name
        assert {"model_ctx.onnx", "model_ctx_qnn.bin"} <= set(os.listdir(there))
        found = phone.measure(handle, TimingPlan(warmup=1, iterations=3))
        assert len(found.wall_ns) == 3
        assert found.told == {"qnn_partitions": 1, "qnn_binary_bytes": (there / "model_ctx_qnn.bin").stat().st_size}
        assert info.provenance == "simulated"  # it calls itself an SM8550, but no adb reaches it
        if runtime == "net-run":
            assert found.wall_ns == [2_952_000] * 3
        else:
            assert found.memory["peak"] == 36696064
        phone.close(handle)
        phone.folder.end()
        assert not there.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("device", "provenance"), [("qnn-s23", "simulated"), ("qnn-x-plus", "emulator")])
def test_a_run_meets_a_latency_on_it(device, provenance, tmp_path):
    """By the emulator of the NPU."""
    record = fake_machine.profile_and_run(cli, device, tmp_path, "--dtype", "fp16", profile=False)
    assert record["status"] in ("ok", "unstable", "over_budget"), record["reason"]  # here a stand-in is timed
    assert record["budget"]["achieved"] < 0.8 or record["status"] != "ok"
    assert record["latency"]["prefill:1x16"]["provenance"] == provenance


def test_a_phone_without_the_program_says_which(devices, tmp_path, monkeypatch):
    words = json.loads((devices / "qnn-s23.yaml").read_text())
    (tmp_path / "qnn-s23.yaml").write_text(json.dumps({**words, "tools": {}}))
    monkeypatch.setenv("HARNESS_DEVICES", str(tmp_path))
    assert "names no qnn-net-run" in S23("net-run").probe().reason


def test_a_phone_without_a_library_says_which(devices):
    (devices / "bin" / "libQnnHtpV73Skel.so").rename(devices / "bin" / "away")
    try:
        assert "libQnnHtpV73Skel.so not in " in S23("perf-test").probe().reason
    finally:
        (devices / "bin" / "away").rename(devices / "bin" / "libQnnHtpV73Skel.so")


def test_a_chip_that_is_not_known_is_refused(devices, tmp_path, monkeypatch):
    words = json.loads((devices / "qnn-s23.yaml").read_text())
    (tmp_path / "qnn-s23.yaml").write_text(json.dumps({**words, "soc": "1"}))
    monkeypatch.setenv("HARNESS_DEVICES", str(tmp_path))
    assert "the version of its HTP is not known" in S23("net-run").probe().reason


@pytest.mark.parametrize("soc", sorted(htp.ARCHS))
def test_every_chip_that_is_known_is_compiled_for(agent, network, tmp_path, soc):
    graph = export(network, Workload.parse("image:1x32"), tmp_path / "graph")
    assert htp.compile(agent, str(graph.path), str(tmp_path / "c.onnx"), soc, "npu", 120)["parts"] == 1


def test_an_emulator_is_no_device():
    found = XPlus("onnxruntime")
    info = found.probe()
    assert info.provenance == "emulator"
    assert any("no NPU (QNN offers" in step.detail for step in found.walk())
    with pytest.raises(Unsupported, match="runs no fp32 models"):
        found.prepare(__import__("torch").nn.Linear(2, 2), Workload.parse("prefill:1x16"))
    found.folder.end()


@pytest.mark.parametrize(
    ("said", "genuine"),
    [
        ("Snapdragon(R) X Plus - X1P64100 - Qualcomm(R) Oryon(TM) CPU", True),
        ("Snapdragon(R) X Plus - X1P42100 - Qualcomm(R) Oryon(TM) CPU", True),
        ("Snapdragon(R) X Elite - X1E80100 - Qualcomm(R) Oryon(TM) CPU", False),
        ("ARMv8 (64-bit) Family 8 Model 1 Revision 201, Qualcomm Technologies Inc", False),
    ],
)
def test_which_laptop_is_meant(said, genuine):
    found = XPlus("onnxruntime")
    found.facts = {"model": said}
    assert found.provenance() == ("" if genuine else "simulated")


def test_what_is_not_of_qnn_stays_an_error():
    assert isinstance(
        htp.as_unsupported(HarnessError("this machine: EPFail: Failed to finalize QNN graph"), "npu"), Unsupported
    )
    lost = HarnessError("gone")
    assert htp.as_unsupported(lost, "npu") is lost
