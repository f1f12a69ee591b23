"""Tests of magnitude pruning beyond the conformance checks."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from harness_magnitude import Magnitude, n_of_m, shares, smallest

from harness import Budget, Unsupported
from harness.conformance import Conformance
from harness.conformance.tiny_models import PLAIN, context, tiny


def weights():
    torch.manual_seed(0)
    return {"a": torch.randn(6, 8), "b": torch.randn(10, 4), "c": torch.randn(3, 12)}


@pytest.mark.parametrize("goal", [0, 1, 17, 62, 123, 124])
def test_shares_add_up_to_the_goal(goal):
    counts = shares(weights(), goal)
    assert sum(counts.values()) == goal
    for name, weight in weights().items():
        assert abs(counts[name] - goal * weight.numel() / 124) < 1


def test_more_zeros_than_weights_are_refused():
    with pytest.raises(Unsupported, match="125 weights cannot become zero"):
        shares(weights(), 125)


def test_the_smallest_of_each_matrix_become_zero():
    for name, mask in smallest(weights(), 60).items():
        weight = weights()[name].abs()
        assert weight[~mask].max() <= weight[mask].min()


def test_ties_become_zero_from_the_left():
    assert smallest({"a": torch.ones(3, 4)}, 5)["a"].flatten().tolist() == [False] * 5 + [True] * 7


def by_loops(model, name, score, p):
    """The score of each unit in float64, from the positions of its weights."""
    config, w = model.config, {n: t.detach().double() for n, t in model.named_parameters()}
    size, shared = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    scores = {}
    for layer in range(config.num_hidden_layers):
        at = {n.split(".")[-2]: t for n, t in w.items() if f"layers.{layer}." in n and n.endswith("_proj.weight")}
        channels = range(config.intermediate_size)
        groups = [
            (range(g * size, (g + 1) * size), range(g * shared * size, (g + 1) * shared * size))
            for g in range(config.num_key_value_heads)
        ]
        if score == "output":
            scores[f"layers.{layer}.mlp"] = [float(at["down_proj"][:, c].pow(2).sum().sqrt()) for c in channels]
            scores[f"layers.{layer}.attention"] = [
                sum(float(at["o_proj"][:, c].pow(2).sum().sqrt()) for c in heads) for _, heads in groups
            ]
            continue
        scores[f"layers.{layer}.mlp"] = [
            sum(float(t.abs().pow(p).sum()) for t in (at["gate_proj"][c], at["up_proj"][c], at["down_proj"][:, c]))
            for c in channels
        ]
        scores[f"layers.{layer}.attention"] = [
            sum(float(at[n][list(own)].abs().pow(p).sum()) for n in ("k_proj", "v_proj"))
            + float(at["q_proj"][list(heads)].abs().pow(p).sum())
            + float(at["o_proj"][:, list(heads)].abs().pow(p).sum())
            for own, heads in groups
        ]
    return scores


@pytest.mark.parametrize("name", [PLAIN, "llama, one KV head per head, tied", "qwen2"])
@pytest.mark.parametrize(("score", "norm"), [("group", 1), ("group", 2), ("output", 2)])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_the_units_of_least_magnitude_are_removed(name, score, norm, allocation):
    model, anatomy = tiny(name)
    with torch.no_grad():  # layers of different scale, or the global ranking would be the uniform one
        for at, layer in enumerate(model.model.layers):
            for parameter in layer.parameters():
                parameter *= 1 + 0.2 * at
    method = Magnitude(score=score, norm=norm, allocation=allocation)
    state = method.prepare(model, context(anatomy))
    expected = by_loops(model, name, score, norm)
    for site, scores in expected.items():
        assert state[site].tolist() == pytest.approx(scores, rel=1e-5)
    keep = method.prune(model, Budget("ratio", 0.4), context(anatomy), state).keep
    removed = {site: set(range(len(scores))) - set(keep[site]) for site, scores in expected.items()}
    assert any(removed.values())
    if allocation == "uniform":
        for site, scores in expected.items():
            lowest = sorted(range(len(scores)), key=scores.__getitem__)[: len(removed[site])]
            assert sorted(removed[site]) == sorted(lowest)
        return
    per_parameter = {
        site: [score / anatomy.unit_params(anatomy.sites[site]) for score in scores]
        for site, scores in expected.items()
    }
    highest_removed = max(per_parameter[site][unit] for site, units in removed.items() for unit in units)
    remaining = [per_parameter[site][unit] for site, units in keep.items() for unit in units if len(units) > 1]
    assert highest_removed <= min(remaining)
    assert len({len(units) for site, units in removed.items() if site.endswith("mlp")}) > 1


def test_n_of_m_zeroes_the_smallest_of_each_group_and_adds_the_missing_ones():
    masks = n_of_m(weights(), 2, 4, goal=66)
    assert sum(int((~mask).sum()) for mask in masks.values()) == 66
    for name, mask in masks.items():
        zeros = (~mask).view(-1, 4).sum(1)
        assert int(zeros.min()) == 2
        groups, stays = weights()[name].abs().view(-1, 4), mask.view(-1, 4)
        exact = zeros == 2
        assert (groups.masked_fill(stays, 0).amax(1) <= groups.masked_fill(~stays, torch.inf).amin(1))[exact].all()


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(Unsupported, match="multiple of 4"):
        n_of_m({"a": torch.ones(2, 6)}, 2, 4, goal=6)


class TestStructured(Conformance):
    name = "magnitude"


class TestGlobal(Conformance):
    name = "magnitude"
    settings: ClassVar = {"allocation": "global", "score": "output"}


class TestUnstructured(Conformance):
    name = "magnitude"
    settings: ClassVar = {"granularity": "unstructured"}


class TestPattern(Conformance):
    name = "magnitude"
    settings: ClassVar = {"granularity": "2:4"}
