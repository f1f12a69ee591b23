"""LLM-Pruner's scores against plain loops in float64, and its shapes against the published parameter counts."""

from __future__ import annotations

from functools import cache
from itertools import combinations
from typing import Any, ClassVar

import pytest
import torch
from harness_llm_pruner import ELEMENTS, PROTECT_FIRST, PROTECT_LAST, LlmPruner

from harness import Budget, Unsupported, plugins
from harness.conformance import Conformance
from harness.conformance.tiny_models import LLAMA31_8B, PLAIN, context, tiny, tokens
from harness.models.architectures.lookup import anatomy_of
from harness.models.loading.cards import card
from harness.pruning.allocate import open_layers

MODELS = ("llama, one KV head per head, tied", PLAIN, "qwen2", "qwen3", "gemma")
FOLDS = ("contiguous", "modulo")
SAMPLES, LENGTH = 3, 12


def sharp(name: str) -> tuple[Any, Any]:
    """A tiny model with large gradients, so that second-order terms matter."""
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
        log_likelihoods = model(row[None], use_cache=False).logits[0].log_softmax(-1)
        loss = -sum(log_likelihoods[at, row[at + 1]] for at in range(LENGTH - 1)) / (LENGTH - 1)
        for n, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            mean[n] += gradient / SAMPLES
            squares[n] += gradient**2 / SAMPLES
    return {n: w.detach() for n, w in weights.items()}, mean, squares


def line_score(importance: str, w: torch.Tensor, g: torch.Tensor, a: torch.Tensor) -> float:
    """The score of one row or one column."""
    if importance == "vectorize":
        return abs(float(torch.dot(w, g)))
    if importance == "param_first":
        return float((w * g).abs().sum())
    if importance == "param_second":
        return float((w * w * a).abs().sum())
    return float((w * g - w * w * a / 2).abs().sum())


@cache
def reference(name: str, importance: str, fold: str) -> dict[str, torch.Tensor]:
    """The scores of all units of the tiny model `name`, by plain loops."""
    model, _ = tiny(name)
    config, d = model.config, model.config.head_dim
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    parts = gradients(name)

    def line(tensor: str, dim: int, at: int) -> float:
        return line_score(importance, *(part[tensor].select(dim, at) for part in parts))

    expected = {}
    for layer in range(config.num_hidden_layers):
        mlp, attention = f"model.layers.{layer}.mlp.", f"model.layers.{layer}.self_attn."
        expected[f"layers.{layer}.mlp"] = torch.tensor(
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
        expected[f"layers.{layer}.attention"] = torch.tensor(units)
    return expected


def scores(name: str, tmp_path: Any, **settings: Any) -> dict[str, torch.Tensor]:
    model, anatomy = sharp(name)
    return LlmPruner(samples=SAMPLES, length=LENGTH, **settings).prepare(model, context(anatomy))


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("importance", ELEMENTS)
@pytest.mark.parametrize("name", MODELS)
def test_units_score_what_the_formula_says(name, importance, fold, tmp_path):
    state = scores(name, tmp_path, importance=importance, compat_fold=fold)
    expected = reference(name, importance, fold)
    assert set(state) == set(expected)
    for site, values in expected.items():
        torch.testing.assert_close(state[site].double(), values.double(), rtol=2e-3, atol=2e-4 * float(values.max()))


def test_the_formulas_and_the_folds_differ():
    """The references of the test above differ, so that a wrong formula cannot pass."""
    for site in ("layers.1.mlp", "layers.2.attention"):
        references = [reference(PLAIN, importance, "contiguous")[site] for importance in ELEMENTS]
        for first, second in combinations(references, 2):
            assert float(((second - first) / second).abs().max()) > 0.05
    for name, differ in ((PLAIN, True), (MODELS[0], False)):
        contiguous, modulo = (reference(name, "param_first", fold)["layers.1.attention"] for fold in FOLDS)
        assert (float(((contiguous - modulo) / contiguous).abs().max()) > 0.05) == differ


def test_one_sample_is_one_backward_pass(tmp_path):
    """Squares are taken of the gradients of each sample, not of the batch."""
    weights, mean, squares = gradients(PLAIN)
    name = "model.layers.1.mlp.up_proj.weight"
    assert float((squares[name] / mean[name] ** 2).median()) > 1.5
    per_sample = scores(PLAIN, tmp_path, importance="param_second")["layers.1.mlp"]
    batch = sum(
        (weights[n] ** 2 * mean[n] ** 2).sum(dim)
        for n, dim in ((name, 1), (name.replace("up", "gate"), 1), (name.replace("up", "down"), 0))
    )
    assert not torch.allclose(per_sample.double(), batch, rtol=0.1)


@pytest.mark.parametrize(("fold", "expected"), [("contiguous", [11, 1100]), ("modulo", [1 + 1e4, 10 + 1e5])])
def test_heads_count_for_their_own_group(fold, expected):
    """Head h scores 10^h. The published folding gives a KV group the heads of other groups."""
    model, anatomy = tiny(PLAIN)
    site, d = anatomy.sites["layers.0.attention"], anatomy.config["head_dim"]
    slopes = {m.tensor: torch.zeros(anatomy.tensors[m.tensor]) for m in site.members}
    output = model.model.layers[0].self_attn.o_proj.weight
    for head in range(8):
        slopes["model.layers.0.self_attn.o_proj.weight"][0, head * d] = 10.0**head / output[0, head * d].item()
    units = LlmPruner(compat_fold=fold).score(model, anatomy, site, slopes, {})
    torch.testing.assert_close(units[:2], torch.tensor(expected, dtype=torch.float32))
    assert len(units) == 4


@pytest.mark.parametrize("name", MODELS)
def test_the_least_units_of_unprotected_layers_go(name, tmp_path):
    model, anatomy = sharp(name)
    pruner = LlmPruner(samples=SAMPLES, length=LENGTH, protect_first=1, protect_last=0.25)
    ctx = context(anatomy)
    cut = pruner.prune(model, Budget("ratio", 0.2), ctx, pruner.prepare(model, ctx))
    expected = reference(name, "param_first", "contiguous")
    assert {site.split(".")[1] for site in cut.keep} == {"1", "2"}
    for site, units in cut.keep.items():
        assert len(units) == pruner.shape(anatomy, 0.2)[site]
        removed = sorted(set(range(anatomy.sites[site].units)) - set(units))
        if removed:
            assert float(expected[site][removed].max()) <= float(expected[site][list(units)].min()) * 1.001
    assert any(len(units) < anatomy.sites[site].units for site, units in cut.keep.items())


def test_global_ranks_all_units_by_score_per_parameter(tmp_path):
    model, anatomy = sharp(PLAIN)
    pruner = LlmPruner(allocation="global", samples=SAMPLES, length=LENGTH, protect_first=1)
    ctx = context(anatomy)
    cut = pruner.prune(model, Budget("ratio", 0.2), ctx, pruner.prepare(model, ctx))
    cost = {"attention": 48 * 8 * (2 + 1 + 1 + 2), "mlp": 3 * 48}
    expected = reference(PLAIN, "param_first", "contiguous")
    order = sorted(
        (float(score) / cost[site.split(".")[2]], site, unit)
        for site, values in expected.items()
        if not site.startswith("layers.0")
        for unit, score in enumerate(values)
    )
    removed: dict[str, set[int]] = {}
    remaining = 0.2 * sum(4 * cost["attention"] + 40 * cost["mlp"] + 2 * 48 for _ in range(4))
    for _, site, unit in order:
        if remaining > 0:
            removed.setdefault(site, set()).add(unit)
            remaining -= cost[site.split(".")[2]]
    assert {s: set(range(anatomy.sites[s].units)) - set(u) for s, u in cut.keep.items() if removed.get(s)} == removed


def test_samples_and_length_are_those_of_the_settings(tmp_path):
    model, anatomy = tiny(PLAIN)
    requests: list = []
    LlmPruner().prepare(model, context(anatomy, calibration=lambda *window: requests.append(window) or tokens(*window)))
    assert requests == [(10, 64)]


def test_a_ratio_out_of_reach_names_the_protected_layers():
    with pytest.raises(Unsupported, match=r"layers 0-3, 30-31 are protected: at most 0\.81"):
        LlmPruner().shape(anatomy_of(card("llama2-7b").config), 0.9)


def published_shape(anatomy: Any, rho: float) -> dict[str, int]:
    """The shape that the published code leaves at its own ratio `rho`.

    The number of remaining channels is rounded down; what that removes is rounded down to whole heads.
    """
    layers, shape = open_layers(anatomy, PROTECT_FIRST, PROTECT_LAST), {}
    for site in (s for s in anatomy.blocks() if s.layer in layers):
        width = anatomy.config["head_dim"] if site.kind == "attention" else 1
        channels = site.units * width
        shape[site.name] = site.units - (channels - int(channels * (1 - rho))) // width
    return shape


@pytest.mark.parametrize(
    ("config", "dense", "remaining", "kept_units"),
    [
        (card("llama2-7b").config, 6_738_415_616, 5_422_977_024, (24, 8256)),
        (LLAMA31_8B, 8_030_261_248, 6_612_586_496, (6, 10752)),
    ],
    ids=["llama2-7b", "llama3.1-8b"],
)
def test_a_quarter_is_the_published_model(config, dense, remaining, kept_units):
    anatomy = anatomy_of(config)
    shape = published_shape(anatomy, 0.25)
    assert anatomy.params() == dense
    assert anatomy.params(shape) == remaining
    for layer in range(32):
        units = tuple(shape.get(f"layers.{layer}.{kind}") for kind in ("attention", "mlp"))
        assert units == (kept_units if 4 <= layer < 30 else (None, None))


@pytest.mark.parametrize("config", [card("llama2-7b").config, LLAMA31_8B], ids=["llama2-7b", "llama3.1-8b"])
def test_a_ratio_of_the_harness_gives_the_published_shape(config):
    anatomy = anatomy_of(config)
    shape = published_shape(anatomy, 0.25)
    ratio = (anatomy.params() - anatomy.params(shape)) / anatomy.params(prunable=True)
    assert LlmPruner().shape(anatomy, ratio) == shape


def test_removed_channels_are_rounded_down_to_whole_heads():
    """At 0.3 the code leaves 2867 of 4096 channels: 1229 go, so nine heads of 128. Of 11008 it leaves 7705."""
    shape = published_shape(anatomy_of(card("llama2-7b").config), 0.3)
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
