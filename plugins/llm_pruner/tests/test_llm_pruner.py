"""LLM-Pruner's scores against plain loops in float64, its shapes against the published parameter counts."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

import pytest
import torch
from harness_llm_pruner import ELEMENTS, LlmPruner, own_shape

from harness import Budget, Unsupported, plugins
from harness.conformance import Conformance
from harness.conformance.tiny_models import LLAMA31_8B, PLAIN, context, tiny, tokens
from harness.models.architectures.lookup import anatomy_of
from harness.models.loading.cards import card

MODELS = ("llama, one KV head per head, tied", PLAIN, "qwen2", "qwen3", "gemma")
FOLDS = ("contiguous", "modulo")
SAMPLES, LENGTH = 3, 12


def sharp(name: str) -> tuple[Any, Any]:
    """A tiny model with large gradients, so that second-order terms weigh something."""
    model, anatomy = tiny(name)
    model.model.norm.weight.data *= 300
    return model, anatomy


@cache
def gradients(name: str) -> tuple[dict, dict, dict]:
    """Weights, gradients of the mean loss and mean squared gradients per sample, by autograd over the whole model."""
    model = sharp(name)[0].double()
    weights = {n: w for n, w in model.named_parameters() if n.startswith("model.layers.") and n.endswith(".weight")}
    mean = {n: torch.zeros_like(w) for n, w in weights.items()}
    squares = {n: torch.zeros_like(w) for n, w in weights.items()}
    for row in tokens(SAMPLES, LENGTH):
        told = model(row[None], use_cache=False).logits[0].log_softmax(-1)
        loss = -sum(told[at, row[at + 1]] for at in range(LENGTH - 1)) / (LENGTH - 1)
        for n, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            mean[n] += gradient / SAMPLES
            squares[n] += gradient**2 / SAMPLES
    return {n: w.detach() for n, w in weights.items()}, mean, squares


def line_score(importance: str, w: torch.Tensor, g: torch.Tensor, a: torch.Tensor) -> float:
    """One row or one column."""
    if importance == "vectorize":
        return abs(float(torch.dot(w, g)))
    if importance == "param_first":
        return float((w * g).abs().sum())
    if importance == "param_second":
        return float((w * w * a).abs().sum())
    return float((w * g - w * w * a / 2).abs().sum())


@cache
def reference(name: str, importance: str, fold: str) -> dict[str, torch.Tensor]:
    model, _ = tiny(name)
    config, d = model.config, model.config.head_dim
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    parts = gradients(name)

    def line(tensor: str, dim: int, at: int) -> float:
        return line_score(importance, *(part[tensor].select(dim, at) for part in parts))

    found = {}
    for layer in range(config.num_hidden_layers):
        mlp, attention = f"model.layers.{layer}.mlp.", f"model.layers.{layer}.self_attn."
        found[f"layers.{layer}.mlp"] = torch.tensor(
            [
                line(f"{mlp}gate_proj.weight", 0, c)
                + line(f"{mlp}up_proj.weight", 0, c)
                + line(f"{mlp}down_proj.weight", 1, c)
                for c in range(config.intermediate_size)
            ]
        )
        units = []
        for k in range(groups):
            own = [h for h in range(heads) if (h // (heads // groups) if fold == "contiguous" else h % groups) == k]
            total = 0.0
            for i in range(d):
                total += line(f"{attention}k_proj.weight", 0, k * d + i) + line(
                    f"{attention}v_proj.weight", 0, k * d + i
                )
                for h in own:
                    total += line(f"{attention}q_proj.weight", 0, h * d + i)
                    total += line(f"{attention}o_proj.weight", 1, h * d + i)
            units.append(total)
        found[f"layers.{layer}.attention"] = torch.tensor(units)
    return found


def scores(name: str, tmp_path: Any, **settings: Any) -> dict[str, torch.Tensor]:
    model, anatomy = sharp(name)
    return LlmPruner(samples=SAMPLES, length=LENGTH, **settings).prepare(model, context(anatomy))


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("importance", ELEMENTS)
@pytest.mark.parametrize("name", MODELS)
def test_units_score_what_the_formula_says(name, importance, fold, tmp_path):
    found = scores(name, tmp_path, importance=importance, compat_fold=fold)
    want = reference(name, importance, fold)
    assert set(found) == set(want)
    for site, values in want.items():
        torch.testing.assert_close(found[site].double(), values.double(), rtol=2e-3, atol=2e-4 * float(values.max()))


def test_the_formulas_and_the_folds_differ():
    """What the tests above compare would not pass for one another."""
    for site in ("layers.1.mlp", "layers.2.attention"):
        found = [reference(PLAIN, importance, "contiguous")[site] for importance in ELEMENTS]
        for i, one in enumerate(found):
            for other in found[:i]:
                assert float(((one - other) / one).abs().max()) > 0.05
    for name, differ in ((PLAIN, True), (MODELS[0], False)):
        one, other = (reference(name, "param_first", fold)["layers.1.attention"] for fold in FOLDS)
        assert (float(((one - other) / one).abs().max()) > 0.05) == differ


def test_one_sample_is_one_backward_pass(tmp_path):
    """Squares are of each sample's gradients, not of the batch's."""
    weights, mean, squares = gradients(PLAIN)
    name = "model.layers.1.mlp.up_proj.weight"
    assert float((squares[name] / mean[name] ** 2).median()) > 1.5
    found = scores(PLAIN, tmp_path, importance="param_second")["layers.1.mlp"]
    batch = sum(
        (weights[n] ** 2 * mean[n] ** 2).sum(dim)
        for n, dim in ((name, 1), (name.replace("up", "gate"), 1), (name.replace("up", "down"), 0))
    )
    assert not torch.allclose(found.double(), batch, rtol=0.1)


@pytest.mark.parametrize(("fold", "want"), [("contiguous", [11, 1100]), ("modulo", [1 + 1e4, 10 + 1e5])])
def test_heads_stand_with_their_own_group(fold, want):
    """Head h scores 10^h: the published folding gives a KV group the heads of others."""
    model, anatomy = tiny(PLAIN)
    site, d = anatomy.sites["layers.0.attention"], anatomy.config["head_dim"]
    slopes = {m.tensor: torch.zeros(anatomy.tensors[m.tensor]) for m in site.members}
    output = model.model.layers[0].self_attn.o_proj.weight
    for head in range(8):
        slopes["model.layers.0.self_attn.o_proj.weight"][0, head * d] = 10.0**head / output[0, head * d].item()
    found = LlmPruner(compat_fold=fold).scored(model, anatomy, site, slopes, {})
    torch.testing.assert_close(found[:2], torch.tensor(want, dtype=torch.float32))
    assert len(found) == 4


@pytest.mark.parametrize("name", MODELS)
def test_the_least_of_the_open_layers_go(name, tmp_path):
    model, anatomy = sharp(name)
    pruner = LlmPruner(samples=SAMPLES, length=LENGTH, protect_first=1, protect_last=0.25)
    ctx = context(anatomy)
    cut = pruner.prune(model, Budget("ratio", 0.2), ctx, pruner.prepare(model, ctx))
    want = reference(name, "param_first", "contiguous")
    assert {site.split(".")[1] for site in cut.keep} == {"1", "2"}
    for site, units in cut.keep.items():
        assert len(units) == pruner.shape(anatomy, 0.2)[site]
        gone = sorted(set(range(anatomy.sites[site].units)) - set(units))
        if gone:
            assert float(want[site][gone].max()) <= float(want[site][list(units)].min()) * 1.001
    assert any(len(units) < anatomy.sites[site].units for site, units in cut.keep.items())


def test_global_ranks_all_units_by_score_per_parameter(tmp_path):
    model, anatomy = sharp(PLAIN)
    pruner = LlmPruner(allocation="global", samples=SAMPLES, length=LENGTH, protect_first=1)
    ctx = context(anatomy)
    cut = pruner.prune(model, Budget("ratio", 0.2), ctx, pruner.prepare(model, ctx))
    cost = {"attention": 48 * 8 * (2 + 1 + 1 + 2), "mlp": 3 * 48}
    want = reference(PLAIN, "param_first", "contiguous")
    order = sorted(
        (float(score) / cost[site.split(".")[2]], site, unit)
        for site, values in want.items()
        if not site.startswith("layers.0")
        for unit, score in enumerate(values)
    )
    gone: dict[str, set[int]] = {}
    left = 0.2 * sum(4 * cost["attention"] + 40 * cost["mlp"] + 2 * 48 for _ in range(4))
    for _, site, unit in order:
        if left > 0:
            gone.setdefault(site, set()).add(unit)
            left -= cost[site.split(".")[2]]
    assert {s: set(range(anatomy.sites[s].units)) - set(u) for s, u in cut.keep.items() if gone.get(s)} == gone


def test_samples_and_length_are_what_is_asked_for(tmp_path):
    model, anatomy = tiny(PLAIN)
    asked: list = []
    LlmPruner().prepare(model, context(anatomy, calibration=lambda *window: asked.append(window) or tokens(*window)))
    assert asked == [(10, 64)]


def test_a_ratio_out_of_reach_names_the_protected_layers():
    with pytest.raises(Unsupported, match=r"layers 0-3, 30-31 are protected: at most 0\.81"):
        LlmPruner().shape(anatomy_of(card("llama2-7b").config), 0.9)


@pytest.mark.parametrize(
    ("config", "dense", "left", "kept"),
    [
        (card("llama2-7b").config, 6_738_415_616, 5_422_977_024, (24, 8256)),
        (LLAMA31_8B, 8_030_261_248, 6_612_586_496, (6, 10752)),
    ],
    ids=["llama2-7b", "llama3.1-8b"],
)
def test_a_quarter_is_the_published_model(config, dense, left, kept):
    anatomy = anatomy_of(config)
    shape = own_shape(anatomy, 0.25)
    assert anatomy.params() == dense
    assert anatomy.params(shape) == left
    for layer in range(32):
        units = tuple(shape.get(f"layers.{layer}.{kind}") for kind in ("attention", "mlp"))
        assert units == (kept if 4 <= layer < 30 else (None, None))


@pytest.mark.parametrize("config", [card("llama2-7b").config, LLAMA31_8B], ids=["llama2-7b", "llama3.1-8b"])
def test_a_ratio_of_the_harness_gives_the_published_shape(config):
    anatomy = anatomy_of(config)
    shape = own_shape(anatomy, 0.25)
    ratio = (anatomy.params() - anatomy.params(shape)) / anatomy.params(prunable=True)
    assert LlmPruner().shape(anatomy, ratio) == shape


def test_channels_are_cut_short_and_floored_to_whole_heads():
    """At 0.3 the code leaves 2867 of 4096 channels: 1229 go, nine heads of 128. Of 11008 it leaves 7705, not 7706."""
    shape = own_shape(anatomy_of(card("llama2-7b").config), 0.3)
    assert (shape["layers.4.attention"], shape["layers.4.mlp"]) == (32 - 9, 7705)


def test_paper_is_what_was_published():
    """The shipped script: ten windows of 64 tokens, first order, layers 4 to 29 of 32."""
    spec = plugins.registry().specs["pruner"]["llm-pruner"]
    published = {
        "importance": "param_first",
        "samples": 10,
        "length": 64,
        "protect_first": 4 / 32,
        "protect_last": 2 / 32,
    }
    assert {name: spec.parameters[name].default("paper") for name in published} == published


class TestUniform(Conformance):
    name = "llm-pruner"


class TestGlobalMixed(Conformance):
    name = "llm-pruner"
    settings: ClassVar = {"allocation": "global", "importance": "param_mix", "compat_fold": "modulo"}
