"""DiLAP's parts against plain versions of the same computations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from harness_dilap.gates import Gates, UnitValues, ranks_of
from harness_dilap.inner import Compensated, Trained
from harness_dilap.price import PricedSteps
from harness_dilap.project import fill, project, swap_pairs, values_of_counts

from harness.conformance.tiny_models import PLAIN, cost_model, depth_only, line, steps_of_eight, tiny, tokens
from harness.pruning.distance import Distance


def gates_of(units: dict[str, int], positions: list[float], softness: float = 0.2) -> Gates:
    generator = torch.Generator().manual_seed(0)
    ranks = {site: ranks_of(torch.rand(count, generator=generator)) for site, count in units.items()}
    return Gates(units, ranks, torch.tensor(positions), softness)


# --- gates ---


def test_a_position_opens_the_most_valuable_units():
    gates = Gates({"a": 5}, {"a": ranks_of(torch.tensor([1.0, 9.0, 3.0, 7.0, 5.0]))}, torch.tensor([0.6]), 0.05)
    assert gates.open()["a"].tolist() == [0, 1, 0, 1, 1]
    assert gates.keep({"a": 2}) == {"a": [1, 3]}
    assert gates.of_shape({"a": 4})["a"].tolist() == [0, 1, 1, 1, 1]
    assert gates.counts(torch.tensor([-0.3])) == {"a": 0}


def test_position_gradients_are_those_of_a_straight_through_sigmoid():
    gates = gates_of({"a": 40, "b": 3}, [0.55, 0.4])
    gate_gradients = {"a": torch.randn(40), "b": torch.randn(3)}
    positions = gates.positions.clone().requires_grad_()
    total = torch.zeros(())
    for at, (site, units) in enumerate(gates.units.items()):
        inside = (positions[at] * units - gates.ranks[site] - 0.5) / max(0.2 * units, 0.5)
        soft = torch.sigmoid(inside)
        total = total + (gate_gradients[site] * ((inside > 0).float() + soft - soft.detach())).sum()
    (expected,) = torch.autograd.grad(total, positions)
    assert torch.allclose(gates.position_gradients(gate_gradients), expected, atol=1e-6)


def test_unit_values_are_signed_and_averaged():
    values = UnitValues.of({"a": 2}, 0.9)
    values.update({"a": torch.tensor([-1.0, 0.5])})
    first = values.of_site("a", torch.tensor([1.0, 0.0]), tokens=10)
    assert first.tolist() == pytest.approx([1.0 + 0.5 * 10 * 1.0, -0.5])
    values.update({"a": torch.tensor([-3.0, 0.5])})
    mean = (0.09 * 1 + 0.1 * 3) / 0.19
    assert values.of_site("a", torch.zeros(2), 10)[0] == pytest.approx(mean)


# --- the price ---


def test_every_step_ends_on_its_budget_and_the_last_at_the_optimum():
    """The minimum of the sum of w (1 - p)^2 under c p <= B has 1 - p = lambda c / 2w."""
    weight, cost = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([3.0, 1.0, 2.0, 2.0])
    budget = 0.7 * float(cost.sum())
    positions = torch.ones(4)
    priced = PricedSteps.of(positions, 0.02)
    for step in range(400):
        limit = max(budget, float(cost.sum()) * (1 - step / 100))
        gradient = -2 * weight * (1 - positions)
        positions = priced.step(positions, gradient, lambda p: (cost * p).sum(), limit)
        assert float((cost * positions).sum()) <= limit + 1e-4
    ratios = cost / weight
    expected = 1 - ratios * (float(cost.sum()) - budget) / float((cost * ratios).sum())
    assert torch.allclose(positions, expected, atol=0.03)


def test_a_loose_budget_has_no_price_and_positions_keep_their_lower_bound():
    priced = replace(PricedSteps.of(torch.ones(2), 0.1), lowest=torch.tensor([0.25, 0.0]))
    assert priced.step(torch.ones(2), torch.full((2,), -1.0), lambda p: p.sum(), 5.0).tolist() == [1, 1]
    assert priced.price == 0
    positions = torch.full((2,), 0.3)
    for _ in range(50):
        positions = priced.step(positions, torch.zeros(2), lambda p: p.sum(), 0.0)
    assert positions.tolist() == pytest.approx([0.25, 0.0])


# --- projection ---


def test_the_value_of_a_unit_is_its_cost_at_the_learned_position():
    values = values_of_counts(40, 0.5, 2.0)
    assert np.diff(values)[19] > 2.0 > np.diff(values)[20]
    assert values[0] == 0
    assert (np.diff(values, 2) < 0).all()


@pytest.mark.parametrize("limit", [0.8, 0.5])
@pytest.mark.parametrize("curve", [line, depth_only, steps_of_eight])
def test_projection_stays_within_the_limit_and_wastes_no_step(curve, limit):
    _, anatomy = tiny(PLAIN)
    cost = cost_model(anatomy, curve)
    units = {site.name: site.units for site in anatomy.blocks()}
    gates = gates_of(units, torch.linspace(0.2, 1.0, len(units)).tolist())
    shape = project(cost, gates, gates.positions, limit * cost.dense)
    assert cost.time(shape) <= limit * cost.dense + 1e-6
    step = max(np.diff(cost.site_times(site)).max() for site in units)
    assert cost.time(shape) > limit * cost.dense - step or all(n == units[s] for s, n in shape.items())


def test_on_a_line_the_projection_is_the_learned_position():
    _, anatomy = tiny(PLAIN)
    cost = cost_model(anatomy, line)
    units = {site.name: site.units for site in anatomy.blocks()}
    gates = gates_of(units, [0.5] * len(units))
    shape = project(cost, gates, gates.positions, cost.floor + 0.5 * (cost.dense - cost.floor))
    assert shape == {site: count // 2 for site, count in units.items()}


def test_remaining_time_goes_to_the_first_site_of_the_order():
    _, anatomy = tiny(PLAIN)
    cost, names = cost_model(anatomy, steps_of_eight), [site.name for site in anatomy.blocks()]
    shape = {name: 2 if name.endswith("attention") else 8 for name in names}
    limit = cost.time(shape) + 17  # a step of channels takes 5, a group 10
    filled_shape = fill(cost, shape, names[::-1], limit)
    changes = {name: filled_shape[name] - shape[name] for name in names if filled_shape[name] != shape[name]}
    assert changes == {names[-1]: 24}
    assert limit - cost.time(filled_shape) < 5
    assert fill(cost, filled_shape, names, limit) == filled_shape


def test_swaps_take_from_the_least_valuable_units():
    _, anatomy = tiny(PLAIN)
    cost = cost_model(anatomy, line)
    units = {site.name: site.units for site in anatomy.blocks()}
    gates, values = gates_of(units, [0.5] * len(units)), UnitValues.of(units, 0.9)
    first, *_, last = units
    gradients = {site: torch.zeros(count) for site, count in units.items()}
    gradients[first] -= 5.0
    gradients[last] += 5.0
    values.update(gradients)
    shape = {site: count // 2 for site, count in units.items()}
    assert next(swap_pairs(cost, shape, gates, values, tokens=0)) == (first, last)


# --- the inner level ---


def distance_and_gates(name=PLAIN):
    """The distance of a tiny model from its dense self, and gates that close the last unit of each site."""
    model, anatomy = tiny(name)
    model.requires_grad_(False)
    windows = tokens(8, 16)
    gates = {s.name: (torch.arange(s.units) < s.units - 1).float().requires_grad_() for s in anatomy.blocks()}
    return Distance(model, anatomy, windows, "kl", 1, "fp32"), gates


def test_the_loss_is_the_divergence_from_the_dense_model():
    distance, gates = distance_and_gates()
    whole = {site: torch.ones_like(gate) for site, gate in gates.items()}
    assert float(distance([0, 1], whole)) == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        dense = torch.log_softmax(distance.model(distance.windows[:2]).logits, -1)
        loss = distance([0, 1], gates)
        for layer in distance.model.model.layers:
            for name, units in (("self_attn.o_proj", 4), ("mlp.down_proj", 40)):
                linear = layer.get_submodule(name)
                linear.weight[:, -(linear.in_features // units) :] = 0
        pruned = torch.log_softmax(distance.model(distance.windows[:2]).logits, -1)
    expected = (dense.exp() * (dense - pruned)).sum(-1).mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-3)


def test_the_unrolled_gradient_is_that_of_the_loss_one_step_ahead():
    distance, gates = distance_and_gates()
    inner = Trained(distance, "full", 0.002, 4, unrolled=True)
    validation, training = [0, 1, 2], [3, 4, 5]
    inner._require(True)
    weight_gradients = torch.autograd.grad(distance(training, gates), inner.weights)
    inner._require(False)
    size = sum(gradient.numel() for gradient in weight_gradients)
    norm = float(torch.cat([gradient.flatten() for gradient in weight_gradients]).norm())
    step_size = 0.002 * size**0.5 / norm
    inner.outer(lambda: distance(validation, gates), gates, lambda: distance(training, gates))
    gradients = {site: gate.grad.clone() for site, gate in gates.items()}

    def loss_one_step_ahead(shifted):
        before = [weight.detach().clone() for weight in inner.weights]
        inner._require(True)
        weight_gradients = torch.autograd.grad(distance(training, shifted), inner.weights)
        inner._shift(before, weight_gradients, -step_size)
        with torch.no_grad():
            value = float(distance(validation, shifted))
        inner._shift(before, weight_gradients, 0.0)
        inner._require(False)
        return value

    generator = torch.Generator().manual_seed(1)
    directions = {site: torch.randn(len(gate), generator=generator) for site, gate in gates.items()}
    difference = 0.01
    plus, minus = (
        loss_one_step_ahead({s: (g + sign * difference * directions[s]).detach() for s, g in gates.items()})
        for sign in (1, -1)
    )
    expected = (plus - minus) / (2 * difference)
    assert sum(float((gradients[s] * directions[s]).sum()) for s in gradients) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_learned_weights_can_be_replaced_by_dense_ones(kind):
    distance, gates = distance_and_gates()
    dense = float(distance([0, 1], gates).detach())
    inner = Trained(distance, kind, 0.01, 4, unrolled=False)
    losses = [inner.step([2, 3], gates, step) for step in range(15)]
    assert losses[-1] < losses[0]
    learned = float(distance([0, 1], gates).detach())
    with inner.result_weights(merge=False):
        assert float(distance([0, 1], gates).detach()) == pytest.approx(dense, rel=1e-5)
    with inner.result_weights(merge=True):
        assert float(distance([0, 1], gates).detach()) == pytest.approx(learned, rel=1e-5)
    assert float(distance([0, 1], gates).detach()) == pytest.approx(learned, rel=1e-5)
    assert abs(learned - dense) > 1e-6


def test_least_squares_lowers_the_loss_and_does_not_depend_on_earlier_gates():
    distance, gates = distance_and_gates()
    half = {site: (torch.arange(len(g)) < len(g) // 2).float() for site, g in gates.items()}
    dense = float(distance(list(range(8)), half))
    inner = Compensated(distance, distance.windows, ridge=0.1)
    inner.refresh(half)
    compensated = float(distance(list(range(8)), half))
    assert compensated < dense
    inner.refresh(gates)
    inner.refresh(half)
    assert float(distance(list(range(8)), half)) == pytest.approx(compensated, rel=1e-5)
