"""Exported graphs give in ONNX Runtime what eager torch gives: even and uneven, a prompt and a token at a context."""

from __future__ import annotations

import importlib.util
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from harness import Cut
from harness.api import Workload
from harness.devices import ort_session
from harness.errors import EnvironmentFault, Unsupported
from harness.models.architectures.lookup import anatomy_of
from harness.models.cut import check_cut
from harness.models.export import onnx_graph
from harness.models.surgery import apply

from ..families import difference, tiny

UNEVEN = {"layers.0.attention": [], "layers.1.mlp": [], "layers.2.mlp": range(7), "layers.2.attention": [0]}
NO_ATTENTION = {f"layers.{i}.attention": [] for i in range(3)}


@dataclass
class Case:
    model: Any
    workload: Workload
    exported: onnx_graph.Exported
    session: ort_session.Session


def made(family: str, keep: dict[str, Any], tied: bool = False):
    model, anatomy = tiny(family, tied)
    return apply(model, anatomy, check_cut(anatomy, Cut(keep=keep))) if keep else model


def eager(model, workload: Workload) -> tuple[dict[str, Any], torch.Tensor]:
    """Inputs of the graph with random tokens, and the logits that eager torch gives for them."""
    length = workload.size + (workload.kind == "decode")
    tokens = torch.randint(
        model.config.vocab_size, (workload.batch, length), generator=torch.Generator().manual_seed(3)
    )
    with torch.inference_mode():
        if workload.kind == "prefill":
            return {"input_ids": tokens.numpy()}, model(tokens, logits_to_keep=1).logits
        cache = DynamicCache(config=model.config)
        model(tokens[:, :-1], past_key_values=cache, use_cache=True)
        feed = {"input_ids": tokens[:, -1:].numpy()}
        for i, layer in enumerate(cache.layers):
            for kind in ("keys", "values"):
                if (kept := getattr(layer, kind, None)) is not None:
                    feed[f"input.past_key_values.layers.{i}.{kind}"] = kept.numpy().copy()
        return feed, model(tokens[:, -1:], past_key_values=cache, use_cache=True).logits


def slow(case: tuple[str, dict[str, Any], str, bool]) -> Any:
    return pytest.param(case, marks=pytest.mark.slow)


@pytest.fixture(
    scope="module",
    params=[
        ("llama", {}, "prefill:2x9", True),
        slow(("llama", {}, "decode:1x7", False)),
        slow(("llama", UNEVEN, "prefill:1x9", False)),
        ("llama", UNEVEN, "decode:2x7", True),
        ("mistral", UNEVEN, "prefill:2x9", False),  # longer than its window
        ("mistral", {}, "decode:1x5", False),  # just within it
        ("mistral", NO_ATTENTION, "decode:1x9", False),
        ("qwen3", UNEVEN, "decode:1x7", False),
        ("gemma", UNEVEN, "prefill:1x9", False),
    ],
    ids=lambda case: f"{case[0]} {['even', 'uneven'][bool(case[1])]} {case[2]}",
)
def case(request, tmp_path_factory):
    pytest.importorskip("onnxruntime")
    family, keep, words, tied = request.param
    model, workload = made(family, keep, tied), Workload.parse(words)
    folder = tmp_path_factory.mktemp("export")
    exported = onnx_graph.export(model, workload, folder)
    session = ort_session.Session(folder, threads=1)
    yield Case(model, workload, exported, session)
    session.close()


def test_logits_are_those_of_eager_torch(case):
    feed, expected = eager(case.model, case.workload)
    assert set(feed) == set(case.exported.inputs)
    assert {name: array.shape for name, array in feed.items()} == case.exported.inputs
    assert difference(torch.from_numpy(case.session.logits(feed)), expected) < 1e-4


def test_the_timed_pass_is_the_tested_one(case):
    case.session.run()
    assert (case.session.output("logits") == case.session.logits()).all()
    assert case.session.providers == ("CPUExecutionProvider",)


def test_layers_with_attention_return_keys_and_values(case):
    grown = case.workload.size + (case.workload.kind == "decode")
    with_attention = [i for i, layer in enumerate(case.model.model.layers) if layer.self_attn is not None]
    prefix = "output." if case.workload.kind == "decode" else ""
    names = [f"{prefix}past_key_values.layers.{i}.{kind}" for i in with_attention for kind in ("keys", "values")]
    assert set(case.exported.outputs) == {"logits", *names}
    assert case.exported.outputs["logits"] == (case.workload.batch, 1, case.model.config.vocab_size)
    if not getattr(case.model.config, "sliding_window", None):  # before 5.23 such layers return their window's only
        assert all(case.exported.outputs[name][2] == grown for name in names)
    assert f"keys and values of {len(with_attention)} layers" in case.exported.description


def test_weights_are_written_once_and_the_model_stays(case):
    size = (case.exported.path.parent / "model.onnx.data").stat().st_size
    stored = 4 * sum(parameter.numel() for parameter in case.model.parameters())
    assert size < stored + 4 * case.model.lm_head.weight.numel()  # a tied head is not there twice
    assert "forward" not in vars(case.model)


def test_a_session_of_its_own_leaves_nothing(monkeypatch, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = made("llama", NO_ATTENTION)
    session = ort_session.Session.from_model(model, Workload.parse("prefill:1x3"))
    assert list(tmp_path.iterdir()) == []
    session.run()
    with torch.inference_mode():
        expected = model(torch.ones(1, 3, dtype=torch.long), logits_to_keep=1).logits
    assert difference(torch.from_numpy(session.output("logits")), expected) < 1e-4
    session.close()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("family", "workload", "said"),
    [("mistral", "decode:1x6", "slides over 6 tokens"), ("llama", "image:1x224", "no image workload")],
)
def test_what_has_no_graph_is_named(family, workload, said, tmp_path):
    pytest.importorskip("onnxscript")
    with pytest.raises(Unsupported, match=said):
        onnx_graph.export(made(family, {}), Workload.parse(workload), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_graph_is_one_line(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(Unsupported, match="cannot open the graph") as caught:
        ort_session.Session(tmp_path)
    assert "\n" not in caught.value.cause


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime", "transformers.exporters"])
def test_missing_packages_are_one_line(missing, monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name) or True)
    assert ort_session.why_unavailable().startswith("transformers" if "." in missing else missing)
    fault = Unsupported if "." in missing else EnvironmentFault
    with pytest.raises(fault) as caught:
        ort_session.Session(tmp_path) if missing == "onnxruntime" else onnx_graph.export(
            None, Workload.parse("prefill:1x3"), tmp_path
        )
    assert "pip install" in caught.value.remedy


@pytest.mark.slow
@pytest.mark.parametrize("words", ["prefill:1x128", "decode:1x128"])
def test_a_pruned_smollm2_gives_in_onnx_runtime_what_it_gives_in_torch(words):
    """Layers without attention, without MLP, and no two widths alike; timed as any device times."""
    pytest.importorskip("onnxruntime")
    from harness import TimingPlan, plugins
    from harness.models.loading import weights
    from harness.models.saved import folders

    card = plugins.registry().get("model", "smollm2-135m")
    there, why = weights.on_this_machine(card)
    if not there:
        pytest.skip(f"no weights of SmolLM2: {why}")
    model, anatomy = folders.read(weights.locate(card)[0], "fp32"), anatomy_of(card.config)
    keep = {}
    for site in anatomy.blocks():
        if site.layer is not None and site.layer % 2:
            keep[site.name] = (
                range(site.layer % 3) if site.name.endswith("attention") else range(64 * (site.layer % 11))
            )
    pruned = apply(model, anatomy, check_cut(anatomy, Cut(keep=keep)))
    workload = Workload.parse(words)
    with tempfile.TemporaryDirectory() as folder:
        onnx_graph.export(pruned, workload, Path(folder))
        session = ort_session.Session(Path(folder), threads=1)
    feed, expected = eager(pruned, workload)
    assert (torch.from_numpy(session.logits(feed)) - expected).abs().max() < 1e-3
    samples = plugins.registry().device("cpu", "onnxruntime").measure(session, TimingPlan(iterations=3))
    assert len(samples.cpu_ns) == 3
    assert samples.before["fallback"] == []
    session.close()
