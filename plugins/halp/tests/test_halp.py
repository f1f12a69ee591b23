"""HALP's program against a plain version of its rules and the exact solver, and its importances in float64."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from harness_halp import (
    Halp,
    augmented_knapsack,
    balance_kinds,
    group_size,
    marginal_costs,
    ranked_groups,
    solve,
    unit_importance,
)

from harness import Budget, Unsupported
from harness.conformance import Conformance
from harness.conformance.tiny_models import (
    PLAIN,
    context,
    cost_model,
    depth_only,
    steps_of_128,
    steps_of_eight,
    tiny,
    tokens,
)


def instance(seed: int, kind: str, sites: int, items: int):
    """Random values and costs of each site's items, the most important first, and a budget."""
    rng = np.random.default_rng(seed)
    values = [sorted(rng.random(items).tolist(), reverse=True) for _ in range(sites)]
    costs = []
    for scale in rng.integers(1, 9, sites):
        row = [float(scale)] * items
        if "stairs" in kind:
            tread = int(rng.integers(2, 5))
            row = [float(scale * tread) if item % tread == 0 else 0.0 for item in range(items)]
        if "fixed" in kind:
            row[0] += 2.0 * scale
        costs.append(row)
    return values, costs, float(rng.uniform(0.2, 0.9)) * sum(map(sum, costs))


def total(rows, counts):
    """The sum of the first `counts` items of each row."""
    return sum(sum(row[:count]) for row, count in zip(rows, counts, strict=True))


def by_rules(values, costs, budget):
    """The same program with dictionaries: what is kept at each capacity, whole numbers only."""
    best = dict.fromkeys(range(int(budget) + 1), (0.0, ()))
    for row, prices in zip(values, costs, strict=True):
        states = {capacity: (value_sum, chosen, 0) for capacity, (value_sum, chosen) in best.items()}
        for item, (value, price) in enumerate(zip(row, prices, strict=True)):
            new = {}
            for capacity, (value_sum, chosen, count) in states.items():
                new[capacity] = (value_sum, chosen, count)
                before = states.get(capacity - int(price))
                if before is not None and before[2] == item and before[0] + value >= value_sum:
                    new[capacity] = (before[0] + value, before[1], item + 1)
            states = new
        best = {capacity: (value_sum, (*chosen, count)) for capacity, (value_sum, chosen, count) in states.items()}
    return list(best[int(budget)][1])


KINDS = ["line", "stairs", "fixed", "stairs, fixed"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(10))
def test_the_program_is_the_one_of_the_rules(kind, seed):
    values, costs, budget = instance(seed, kind, 4, 5)
    assert augmented_knapsack(values, costs, budget, 1.0) == by_rules(values, costs, budget)


def test_the_heuristic_is_never_better_than_the_exact_solver_and_neither_spends_more():
    loss = {kind: [] for kind in KINDS}
    for seed in range(50):
        for kind in KINDS:
            values, costs, budget = instance(seed, kind, 12, 8)
            heuristic = augmented_knapsack(values, costs, budget, 1.0)
            exact = solve("mckp", values, costs, budget, 1.0)
            assert total(costs, heuristic) <= budget
            assert total(costs, exact) <= budget + 1e-9
            loss[kind].append(1 - total(values, heuristic) / total(values, exact))
    assert min(map(min, loss.values())) > -1e-9
    assert max(loss["line"]) < 1e-9  # exact for linear costs
    assert max(loss["stairs, fixed"]) > 0.005  # worse for others


def test_a_dip_makes_room():
    """Three groups are faster than two, so the third group pays for itself."""
    values, costs = [[3.0, 2.0, 1.0], [2.5]], [[4.0, 3.0, -2.0], [4.0]]
    assert augmented_knapsack(values, costs, 9.0, 1.0) == [3, 1]
    assert solve("mckp", values, costs, 9.0, 1.0) == [3, 1]


def test_nothing_is_kept_where_nothing_fits():
    assert augmented_knapsack([[1.0], [2.0]], [[5.0], [6.0]], 4.0, 1.0) == [0, 0]


def test_costs_are_rounded_up():
    values, costs = [[1.0]] * 10, [[0.15]] * 10
    counts = augmented_knapsack(values, costs, 1.0, 0.1)
    assert total(costs, counts) <= 1.0
    assert sum(counts) == 5


def test_many_small_groups_of_a_site_are_not_each_rounded_up():
    values, costs = [[1.0] * 100, [1.0] * 100], [[0.11] * 100, [0.11] * 100]
    counts = augmented_knapsack(values, costs, 11.0, 0.1)
    assert total(costs, counts) <= 11.0
    assert sum(counts) >= 98


def test_groups_are_the_most_important_first():
    scores, alive = torch.tensor([5.0, 1.0, 4.0, 3.0, 9.0, 2.0]), torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 1.0])
    assert ranked_groups(scores, alive, 2) == [(0, 2), (3, 5), (1,)]
    times = [0.0, 10.0, 10.0, 20.0, 20.0, 25.0, 25.0]
    assert marginal_costs(times, [(0, 2), (3, 5), (1,)]) == [10.0, 10.0, 5.0]


def test_the_step_of_the_device_is_the_group():
    stairs = [math.ceil(units / 128) * 5.0 for units in range(1025)]
    assert group_size(stairs, 64) == 128
    assert group_size([float(units) for units in range(1025)], 64) == 64
    assert group_size([0.0, 1.0, 2.0, 3.0], 64) == 1
    dipped = [float(units) for units in range(1025)]
    dipped[512:640] = dipped[512:640][::-1]  # noise, which a monotone curve flattens
    assert group_size(dipped, 64) == 64


@pytest.mark.parametrize("name", [PLAIN, "qwen2"])
def test_importance_is_the_sum_of_weight_times_gradient_by_batch(name):
    model, anatomy = tiny(name)
    batches = list(tokens(4, 12).split(2))
    scores = unit_importance(model, context(anatomy), batches)
    model = model.double()
    expected = {}
    for batch in batches:
        model.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        for at, layer in enumerate(model.model.layers):
            for site, sums in by_hand(layer, model.config).items():
                expected[at, site] = expected.get((at, site), 0.0) + sums.abs() / 2
    assert len(expected) == len(scores) == 2 * len(model.model.layers)
    for (at, site), values in expected.items():
        assert scores[f"layers.{at}.{site}"].tolist() == pytest.approx(values.tolist(), rel=1e-3, abs=1e-9)


def by_hand(layer, config):
    """The sum of weight times gradient of each unit, over its rows and over its columns of the last linear."""

    def sums(linear, units, dim):
        return (linear.weight * linear.weight.grad).detach().sum(1 - dim).view(units, -1).sum(1)

    groups, mlp, attention = config.num_key_value_heads, layer.mlp, layer.self_attn
    heads = [sums(linear, groups, 0) for linear in (attention.q_proj, attention.k_proj, attention.v_proj)]
    channels = [sums(linear, config.intermediate_size, 0) for linear in (mlp.gate_proj, mlp.up_proj)]
    return {
        "attention": sum(heads) + sums(attention.o_proj, groups, 1),
        "mlp": sum(channels) + sums(mlp.down_proj, config.intermediate_size, 1),
    }


def test_the_scores_of_each_kind_add_up_to_its_time():
    _, anatomy = tiny(PLAIN)
    sites = list(anatomy.blocks())
    torch.manual_seed(0)
    raw = {site.name: torch.rand(site.units) * (1000 if site.kind == "mlp" else 1) for site in sites}
    alive = {site.name: (torch.arange(site.units) % 3 > 0).float() for site in sites}
    times = {site.name: [float(units * (2 if site.kind == "mlp" else 5)) for units in range(99)] for site in sites}
    scores = balance_kinds(raw, sites, alive, times)
    for kind, unit_time in (("mlp", 2), ("attention", 5)):
        names = [site.name for site in sites if site.kind == kind]
        assert sum(float((scores[n] * alive[n]).sum()) for n in names) == pytest.approx(
            unit_time * sum(float(alive[n].sum()) for n in names)
        )
        ratios = torch.cat([scores[n] / raw[n] for n in names])
        assert float(ratios.max() / ratios.min()) == pytest.approx(1, rel=1e-5)


def prune(method, curve, limit, name=PLAIN, **sizes):
    """The shape that the method leaves at a latency limit, after a check that it uses the limit well."""
    model, anatomy = tiny(name, **sizes)
    table = cost_model(anatomy, curve)
    cut = method.prune(model, Budget("latency", limit, "x"), context(anatomy, latency=table), None)
    shape = {site: len(units) for site, units in cut.keep.items()}
    assert table.time(shape) <= limit * table.dense + 1e-6
    largest = max(table.site_times(site.name)[-1] for site in anatomy.blocks())
    assert table.time(shape) > limit * table.dense - largest
    return shape, anatomy, table


@pytest.mark.parametrize("solver", ["augmented", "mckp"])
@pytest.mark.parametrize("limit", [0.9, 0.6, 0.3])
def test_no_budget_is_exceeded(solver, limit):
    prune(Halp(solver, 3, 1, 1, 12, 8), steps_of_eight, limit)


@pytest.mark.parametrize("limit", [0.8, 0.5])
def test_where_only_depth_pays_whole_sub_layers_go(limit):
    """With the exact solver, a site that remains keeps all its units."""
    shape, anatomy, _ = prune(Halp("mckp", 3, 1, 1, 12, 8), depth_only, limit)
    assert {units / anatomy.sites[name].units for name, units in shape.items()} == {0.0, 1.0}


@pytest.mark.parametrize("solver", ["augmented", "mckp"])
def test_widths_lie_on_the_edges_of_steps(solver):
    shape, _, _ = prune(Halp(solver, 3, 1, 1, 12, 1), steps_of_eight, 0.6)
    assert {units % 8 for name, units in shape.items() if name.endswith("mlp")} == {0}


@pytest.mark.parametrize("solver", ["augmented", "mckp"])
def test_wide_widths_lie_on_the_edges_of_steps_of_128(solver):
    shape, _, _ = prune(Halp(solver, 3, 1, 1, 12, 1), steps_of_128, 0.6, intermediate_size=640)
    assert {units % 128 for name, units in shape.items() if name.endswith("mlp")} == {0}


def test_the_budget_tightens_exponentially_and_removed_units_stay_removed(monkeypatch):
    import harness_halp

    from harness.pruning import gates

    limits, plain = [], harness_halp.solve
    monkeypatch.setattr(harness_halp, "solve", lambda *a: limits.append((a[3], sum(map(len, a[1])))) or plain(*a))
    alive_by_step, plain_gated = [], gates.gated

    def recorded(model, anatomy, alive):
        alive_by_step.append({(name, int(unit)) for name, values in alive.items() for unit in values.nonzero()})
        return plain_gated(model, anatomy, alive)

    monkeypatch.setattr(gates, "gated", recorded)
    _, _, table = prune(Halp("augmented", 4, 1, 1, 12, 8), steps_of_eight, 0.4)
    dense = table.dense
    assert [limit + table.floor for limit, _ in limits] == pytest.approx([dense * 0.4 ** (t / 4) for t in (1, 2, 3, 4)])
    groups = [count for _, count in limits]
    assert groups == sorted(groups, reverse=True)
    assert groups[-1] < groups[0]
    assert all(later < earlier for earlier, later in pairwise(alive_by_step))


def test_an_impossible_limit_is_refused_and_a_loose_one_cuts_nothing():
    model, anatomy = tiny(PLAIN)
    ctx = context(anatomy, latency=cost_model(anatomy, steps_of_eight), calibration=None)
    with pytest.raises(Unsupported, match="without any layer"):
        Halp().prune(model, Budget("latency", 0.01, "x"), ctx, None)
    assert not Halp().prune(model, Budget("latency", 1.0, "x"), ctx, None).keep


class TestHalp(Conformance):
    name = "halp"


class TestExact(Conformance):
    name = "halp-mckp"


class TestOneshot(Conformance):
    name = "halp-oneshot"
