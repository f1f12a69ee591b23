"""The budget rule: at least the asked share goes, and less than one coarsest step more."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import best, plugins, ranked, uniform
from harness.errors import Unsupported
from harness.models.architectures.lookup import anatomy_of
from harness.models.counting import ratios
from harness.pruning.allocate import knapsack, to_remove

from ..families import ALL, tiny

RATIOS = st.floats(0, 0.9, allow_nan=False)


def step(anatomy) -> float:
    """The coarsest unit with the norm and biases that go with a site's last one."""
    return max(
        anatomy.site_params(s, s.units) - anatomy.site_params(s, s.units - 1)
        if s.units > 1
        else anatomy.site_params(s, 1)
        for s in anatomy.blocks()
    ) + max(anatomy.site_params(s, 1) - anatomy.unit_params(s) for s in anatomy.blocks())


def cards():
    return [card.config for card in plugins.registry().specs["model"].values()]


@given(RATIOS, st.sampled_from(range(4)))
def test_uniform_obeys_the_rule_on_real_shapes(ratio, which):
    anatomy = anatomy_of(cards()[which])
    shape = uniform(anatomy, ratio)
    gone = anatomy.params() - anatomy.params(shape)
    assert to_remove(anatomy, ratio) <= gone < to_remove(anatomy, ratio) + step(anatomy)


@pytest.mark.parametrize("family", ALL)
@given(RATIOS)
def test_uniform_obeys_the_rule_on_tiny_shapes(family, ratio):
    _, anatomy = tiny(family)
    gone = anatomy.params() - anatomy.params(uniform(anatomy, ratio))
    assert to_remove(anatomy, ratio) <= gone < to_remove(anatomy, ratio) + step(anatomy)


@pytest.mark.parametrize("family", [*ALL, "smollm2"])
@given(RATIOS, RATIOS)
def test_a_larger_ratio_never_leaves_more(family, one, other):
    anatomy = anatomy_of(cards()[1]) if family == "smollm2" else tiny(family)[1]
    low, high = sorted((one, other))
    assert anatomy.params(uniform(anatomy, high)) <= anatomy.params(uniform(anatomy, low))


def test_zero_cuts_nothing():
    anatomy = anatomy_of(cards()[1])
    assert uniform(anatomy, 0) == {s.name: s.units for s in anatomy.blocks()}


def test_uniform_leaves_equal_layers_where_the_rule_allows():
    anatomy = anatomy_of(cards()[1])
    shape = uniform(anatomy, 0.2)
    assert len({units for name, units in shape.items() if name.endswith("mlp")}) == 1
    assert ratios(anatomy, shape)[0] == pytest.approx(0.2, abs=1e-3)


@pytest.mark.parametrize("family", ALL)
@given(st.floats(0, 0.7), st.integers(0, 2**31))
def test_ranked_obeys_the_rule(family, ratio, seed):
    _, anatomy = tiny(family)
    torch.manual_seed(seed)
    scores = {s.name: torch.rand(s.units) for s in anatomy.blocks()}
    try:
        keep = ranked(anatomy, ratio, scores)
    except Unsupported:
        full = {s.name: 1 for s in anatomy.blocks()}
        assert anatomy.params() - anatomy.params(full) < to_remove(anatomy, ratio)
        return
    gone = anatomy.params() - anatomy.params({name: len(units) for name, units in keep.items()})
    assert to_remove(anatomy, ratio) <= gone < to_remove(anatomy, ratio) + step(anatomy)
    assert all(keep.values())


def test_ranked_takes_the_cheapest_first():
    _, anatomy = tiny("llama")
    scores = {s.name: torch.ones(s.units) * 1e6 for s in anatomy.blocks()}
    scores["layers.1.mlp"] = torch.arange(20.0)
    keep = ranked(anatomy, 5 * 98 / anatomy.params(prunable=True), scores)
    assert keep["layers.1.mlp"] == list(range(5, 20))
    assert all(len(units) == anatomy.sites[name].units for name, units in keep.items() if name != "layers.1.mlp")


def test_ranked_says_when_it_cannot():
    _, anatomy = tiny("llama")
    with pytest.raises(Unsupported, match="keeping 1 unit"):
        ranked(anatomy, 0.999, {s.name: torch.ones(s.units) for s in anatomy.blocks()})


def test_best_keeps_the_highest_and_breaks_ties_low():
    assert best({"a": 2, "b": 2}, {"a": [1.0, 3.0, 2.0], "b": [1.0, 1.0, 1.0]}) == {"a": [1, 2], "b": [0, 1]}


def test_a_narrower_stream_counts_its_blocks_only():
    """What the embedding loses is not prunable: half the width is half the blocks, and more of the whole."""
    anatomy = anatomy_of(cards()[1])
    blocks, total = ratios(anatomy, {"hidden": 288})
    assert blocks == pytest.approx(0.5, abs=1e-3)
    assert total == pytest.approx(0.5, abs=1e-3)
    assert ratios(anatomy, {"layers.0.mlp": 0})[0] == pytest.approx(
        (3 * 576 * 1536 + 576) / anatomy.params(prunable=True)
    )


@given(data=st.data())
@settings(max_examples=200)
def test_the_knapsack_is_as_good_as_trying_all(data):
    """Random groups, with equal costs and values among them."""
    number = st.one_of(st.integers(0, 4).map(float), st.floats(0, 1, allow_subnormal=False))
    groups = data.draw(st.lists(st.lists(st.tuples(number, number), min_size=1, max_size=5), min_size=1, max_size=5))
    values, costs = [[v for v, _ in group] for group in groups], [[c for _, c in group] for group in groups]
    budget = data.draw(st.floats(0, sum(map(max, costs)) + 0.1))
    fitting = [
        sum(row[level] for row, level in zip(values, levels, strict=True))
        for levels in itertools.product(*(range(len(group)) for group in groups))
        if sum(row[level] for row, level in zip(costs, levels, strict=True)) <= budget
    ]
    if not fitting:
        with pytest.raises(Unsupported, match="cheapest level"):
            knapsack(values, costs, budget)
        return
    found = knapsack(values, costs, budget)
    assert sum(row[level] for row, level in zip(costs, found, strict=True)) <= budget + 1e-9
    assert sum(row[level] for row, level in zip(values, found, strict=True)) == pytest.approx(max(fitting), abs=1e-9)


def test_the_knapsack_takes_the_cheapest_where_nothing_else_fits():
    """A budget that is the cheapest levels' sum, added up in one order or the other."""
    for costs in ([0.1] * 10, [0.1, 0.7, 0.2, 1e-3, 3.3]):
        for budget in (sum(costs), math.fsum(costs), sum(reversed(costs))):
            found = knapsack([[1.0, 9.0]] * len(costs), [[cost, 2 * cost] for cost in costs], budget)
            assert found == [0] * len(costs)
    assert knapsack([[0.0, 5.0]], [[0.0, 0.0]], 0.0) == [1]


def test_the_knapsack_solves_a_real_size():
    """Sixty groups of up to 1537 levels with steps and a cost of being there at all; doing nothing scores nothing."""
    rng = np.random.default_rng(0)
    values, costs = [], []
    for group in range(60):
        x = np.arange(1537 if group % 2 else 4) / (1536 if group % 2 else 3)
        values.append(rng.random() * x ** rng.uniform(0.3, 1.2) + 0.01 * rng.random(len(x)))
        costs.append(np.ceil(x * 12) * 1e5 + 2e5 * (x > 0))
    total = sum(row[-1] for row in costs)
    before = 0.0
    for share in (0.2, 0.5, 0.65, 0.8, 1.0):
        found = knapsack(values, costs, share * total)
        assert sum(row[level] for row, level in zip(costs, found, strict=True)) <= share * total
        value = sum(row[level] for row, level in zip(values, found, strict=True))
        assert value > before
        before = value
