"""DiLAP's parts against the same written down plainly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from harness_dilap.gates import Gates, Worth, ranked
from harness_dilap.inner import Compensated, Trained
from harness_dilap.price import Priced
from harness_dilap.project import filled, project, swaps, values

from harness.conformance.tiny_models import PLAIN, cost_model, depth_only, line, steps_of_eight, tiny, tokens
from harness.pruning.distance import Distance


def gates_of(units: dict[str, int], positions: list[float], softness: float = 0.2) -> Gates:
    chance = torch.Generator().manual_seed(0)
    ranks = {site: ranked(torch.rand(count, generator=chance)) for site, count in units.items()}
    return Gates(units, ranks, torch.tensor(positions), softness)


# --- gates ---


def test_as_many_units_are_open_as_the_position_says_the_most_valuable_first():
    gates = Gates({"a": 5}, {"a": ranked(torch.tensor([1.0, 9.0, 3.0, 7.0, 5.0]))}, torch.tensor([0.6]), 0.05)
    assert gates.open()["a"].tolist() == [0, 1, 0, 1, 1]
    assert gates.kept({"a": 2}) == {"a": [1, 3]}
    assert gates.shut({"a": 4})["a"].tolist() == [0, 1, 1, 1, 1]
    assert gates.counts(torch.tensor([-0.3])) == {"a": 0}


def test_slopes_are_those_of_a_straight_through_sigmoid():
    gates = gates_of({"a": 40, "b": 3}, [0.55, 0.4])
    pull = {"a": torch.randn(40), "b": torch.randn(3)}
    positions = gates.positions.clone().requires_grad_()
    total = torch.zeros(())
    for at, (site, units) in enumerate(gates.units.items()):
        inside = (positions[at] * units - gates.ranks[site] - 0.5) / max(0.2 * units, 0.5)
        soft = torch.sigmoid(inside)
        total = total + (pull[site] * ((inside > 0).float() + soft - soft.detach())).sum()
    (wanted,) = torch.autograd.grad(total, positions)
    assert torch.allclose(gates.slopes(pull), wanted, atol=1e-6)


def test_worth_is_signed_and_averaged():
    worth = Worth.of({"a": 2}, 0.9)
    worth.learn({"a": torch.tensor([-1.0, 0.5])})
    now = worth.now("a", torch.tensor([1.0, 0.0]), tokens=10)
    assert now.tolist() == pytest.approx([1.0 + 0.5 * 10 * 1.0, -0.5])
    worth.learn({"a": torch.tensor([-3.0, 0.5])})
    mean = (0.09 * 1 + 0.1 * 3) / 0.19
    assert worth.now("a", torch.zeros(2), 10)[0] == pytest.approx(mean)


# --- the price ---


def test_every_step_ends_on_its_budget_and_the_last_at_the_optimum():
    """Least sum of w (1 - p)^2 under c p <= B: 1 - p is lambda c / 2w."""
    weight, cost = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([3.0, 1.0, 2.0, 2.0])
    budget = 0.7 * float(cost.sum())
    positions = torch.ones(4)
    priced = Priced.of(positions, 0.02)
    for step in range(400):
        limit = max(budget, float(cost.sum()) * (1 - step / 100))
        gradient = -2 * weight * (1 - positions)
        positions = priced.step(positions, gradient, lambda p: (cost * p).sum(), limit)
        assert float((cost * positions).sum()) <= limit + 1e-4
    each = cost / weight
    wanted = 1 - each * (float(cost.sum()) - budget) / float((cost * each).sum())
    assert torch.allclose(positions, wanted, atol=0.03)


def test_no_price_where_the_budget_is_loose_and_no_less_than_the_least():
    priced = replace(Priced.of(torch.ones(2), 0.1), least=torch.tensor([0.25, 0.0]))
    assert priced.step(torch.ones(2), torch.full((2,), -1.0), lambda p: p.sum(), 5.0).tolist() == [1, 1]
    assert priced.price == 0
    found = torch.full((2,), 0.3)
    for _ in range(50):
        found = priced.step(found, torch.zeros(2), lambda p: p.sum(), 0.0)
    assert found.tolist() == pytest.approx([0.25, 0.0])


# --- projection ---


def test_the_worth_of_units_meets_their_cost_at_the_learned_position():
    worth = values(40, 0.5, 2.0)
    assert np.diff(worth)[19] > 2.0 > np.diff(worth)[20]
    assert worth[0] == 0
    assert (np.diff(worth, 2) < 0).all()


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


def test_what_swaps_leave_goes_to_who_wants_it_most():
    _, anatomy = tiny(PLAIN)
    cost, names = cost_model(anatomy, steps_of_eight), [site.name for site in anatomy.blocks()]
    shape = {name: 2 if name.endswith("attention") else 8 for name in names}
    limit = cost.time(shape) + 17  # an edge of a channel step is 5, a group 10
    found = filled(cost, shape, names[::-1], limit)
    assert {name: found[name] - shape[name] for name in names if found[name] != shape[name]} == {names[-1]: 24}
    assert limit - cost.time(found) < 5
    assert filled(cost, found, names, limit) == found


def test_swaps_take_from_the_least_worth():
    _, anatomy = tiny(PLAIN)
    cost = cost_model(anatomy, line)
    units = {site.name: site.units for site in anatomy.blocks()}
    gates, worth = gates_of(units, [0.5] * len(units)), Worth.of(units, 0.9)
    first, *_, last = units
    pull = {site: torch.zeros(count) for site, count in units.items()}
    pull[first] -= 5.0
    pull[last] += 5.0
    worth.learn(pull)
    shape = {site: count // 2 for site, count in units.items()}
    assert next(swaps(cost, shape, gates, worth, tokens=0)) == (first, last)


# --- the inner level ---


def bench(name=PLAIN, **settings):
    model, anatomy = tiny(name)
    model.requires_grad_(False)
    windows = tokens(8, 16)
    gates = {s.name: (torch.arange(s.units) < s.units - 1).float().requires_grad_() for s in anatomy.blocks()}
    return Distance(model, anatomy, windows, "kl", 1, "fp32"), gates


def test_the_loss_is_the_divergence_from_the_dense_model():
    distance, gates = bench()
    whole = {site: torch.ones_like(gate) for site, gate in gates.items()}
    assert float(distance([0, 1], whole)) == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        dense = torch.log_softmax(distance.model(distance.windows[:2]).logits, -1)
        loss = distance([0, 1], gates)
        for module, cut in ((layer, ["self_attn.o_proj", "mlp.down_proj"]) for layer in distance.model.model.layers):
            for at, name in enumerate(cut):
                linear = module.get_submodule(name)
                block = linear.in_features // (4, 40)[at]
                linear.weight[:, -block:] = 0
        ours = torch.log_softmax(distance.model(distance.windows[:2]).logits, -1)
    wanted = (dense.exp() * (dense - ours)).sum(-1).mean()
    assert float(loss) == pytest.approx(float(wanted), rel=1e-3)


def test_the_unrolled_gradient_is_that_of_the_loss_one_step_ahead():
    distance, gates = bench()
    inner = Trained(distance, "full", 0.002, 4, unrolled=True)
    validation, training = [0, 1, 2], [3, 4, 5]
    inner._require(True)
    slopes = torch.autograd.grad(distance(training, gates), inner.weights)
    inner._require(False)
    size = sum(slope.numel() for slope in slopes)
    pace = 0.002 * size**0.5 / float(torch.cat([slope.flatten() for slope in slopes]).norm())
    inner.outer(lambda: distance(validation, gates), gates, lambda: distance(training, gates))
    found = {site: gate.grad.clone() for site, gate in gates.items()}

    def ahead(shifted):
        before = [weight.detach().clone() for weight in inner.weights]
        inner._require(True)
        slopes = torch.autograd.grad(distance(training, shifted), inner.weights)
        inner._shift(before, slopes, -pace)
        with torch.no_grad():
            value = float(distance(validation, shifted))
        inner._shift(before, slopes, 0.0)
        inner._require(False)
        return value

    chance = torch.Generator().manual_seed(1)
    along = {site: torch.randn(len(gate), generator=chance) for site, gate in gates.items()}
    reach = 0.01
    sides = [ahead({s: (g + sign * reach * along[s]).detach() for s, g in gates.items()}) for sign in (1, -1)]
    wanted = (sides[0] - sides[1]) / (2 * reach)
    assert sum(float((found[s] * along[s]).sum()) for s in found) == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_what_the_inner_level_learned_can_be_laid_aside(kind):
    distance, gates = bench()
    dense = float(distance([0, 1], gates).detach())
    inner = Trained(distance, kind, 0.01, 4, unrolled=False)
    losses = [inner.step([2, 3], gates, step) for step in range(15)]
    assert losses[-1] < losses[0]
    learned = float(distance([0, 1], gates).detach())
    with inner.judged(merge=False):
        assert float(distance([0, 1], gates).detach()) == pytest.approx(dense, rel=1e-5)
    with inner.judged(merge=True):
        assert float(distance([0, 1], gates).detach()) == pytest.approx(learned, rel=1e-5)
    assert float(distance([0, 1], gates).detach()) == pytest.approx(learned, rel=1e-5)
    assert abs(learned - dense) > 1e-6


def test_weights_in_closed_form_help_and_those_for_other_gates_leave_no_trace():
    distance, gates = bench()
    half = {site: (torch.arange(len(g)) < len(g) // 2).float() for site, g in gates.items()}
    dense = float(distance(list(range(8)), half))
    inner = Compensated(distance, distance.windows, ridge=0.1)
    inner.refresh(half)
    helped = float(distance(list(range(8)), half))
    assert helped < dense
    inner.refresh(gates)
    inner.refresh(half)
    assert float(distance(list(range(8)), half)) == pytest.approx(helped, rel=1e-5)
