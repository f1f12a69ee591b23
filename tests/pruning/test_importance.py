"""Shared importances against a plain loop over the model."""

from __future__ import annotations

import pytest
import torch

from harness.conformance import tiny_models
from harness.errors import HarnessError
from harness.pruning import importance, layerwise

from ..families import ALL, tiny

BATCHES = [torch.arange(8).view(1, 8) * 5 % 48, torch.arange(16).view(2, 8) * 11 % 48]


def test_magnitude_sums_the_coupled_group():
    for family in ALL:
        model, anatomy = tiny(family)
        found = importance.magnitude(anatomy, model.state_dict())
        mlp = model.model.layers[1].mlp
        channel = mlp.gate_proj.weight[3].pow(2).sum() + mlp.up_proj.weight[3].pow(2).sum()
        torch.testing.assert_close(
            found["layers.1.mlp"][3], (channel + mlp.down_proj.weight[:, 3].pow(2).sum()).detach()
        )
        attention, d = model.model.layers[2].self_attn, anatomy.config["head_dim"]
        group = anatomy.config["num_attention_heads"] // anatomy.config["num_key_value_heads"]
        rows = slice(group * d, 2 * group * d)  # the query heads of the second KV head stand together
        want = attention.q_proj.weight[rows].pow(2).sum() + attention.o_proj.weight[:, rows].pow(2).sum()
        for linear in (attention.k_proj, attention.v_proj):
            want = want + linear.weight[d : 2 * d].pow(2).sum()
        torch.testing.assert_close(found["layers.2.attention"][1], want.detach())


def test_output_magnitude_sums_column_norms():
    model, anatomy = tiny("llama")
    found = importance.output_magnitude(anatomy, model.state_dict())
    torch.testing.assert_close(found["layers.0.mlp"], model.model.layers[0].mlp.down_proj.weight.detach().norm(dim=0))
    columns = model.model.layers[0].self_attn.o_proj.weight.detach().norm(dim=0)
    torch.testing.assert_close(found["layers.0.attention"], columns.view(4, -1).sum(1))


def test_taylor_is_weight_times_gradient():
    model, anatomy = tiny("qwen3")
    found = importance.taylor(model, anatomy, BATCHES[:1])
    model.zero_grad()
    model(input_ids=BATCHES[0], labels=BATCHES[0]).loss.backward()
    mlp = model.model.layers[0].mlp
    parts = [(linear.weight * linear.weight.grad).abs() for linear in (mlp.gate_proj, mlp.up_proj)]
    want = sum(part.sum(1) for part in parts) + (mlp.down_proj.weight * mlp.down_proj.weight.grad).abs().sum(0)
    torch.testing.assert_close(found["layers.0.mlp"], want.detach(), rtol=1e-4, atol=1e-6)
    model.zero_grad()


def test_taylor_of_second_order_is_squared_weight_times_mean_squared_gradient():
    model, anatomy = tiny("qwen2")
    found = importance.taylor(model, anatomy, BATCHES, second_order=True)
    mlp, squares = model.model.layers[1].mlp, {}
    linears = {"gate": mlp.gate_proj, "up": mlp.up_proj, "down": mlp.down_proj}
    for batch in BATCHES:
        model.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        for name, linear in linears.items():
            squares[name] = squares.get(name, 0) + linear.weight.grad.double() ** 2 / len(BATCHES)
    model.zero_grad()
    parts = {name: linear.weight.detach().double() ** 2 * squares[name] for name, linear in linears.items()}
    want = parts["gate"].sum(1) + parts["up"].sum(1) + parts["down"].sum(0)
    torch.testing.assert_close(found["layers.1.mlp"].double(), want, rtol=1e-3, atol=1e-9)


def test_stream_sees_what_a_whole_forward_sees():
    for family in ALL:
        model, _ = tiny(family)
        seen = {}

        def note(module, args, seen=seen):
            squares = args[0].pow(2).flatten(0, -2).sum(0)
            seen["sum"] = seen.get("sum", 0) + squares

        hook = model.model.layers[2].mlp.down_proj.register_forward_pre_hook(note)
        with torch.no_grad():
            for batch in BATCHES:
                model(batch, use_cache=False)
        hook.remove()
        norms = {layer.index: layer.squares(settled=True) for layer in layerwise.forward(model, BATCHES)}
        torch.testing.assert_close(norms[2]["mlp.down_proj"], seen["sum"] / 3, rtol=1e-4, atol=1e-4)


def test_stream_lets_a_changed_layer_feed_the_next():
    model, _ = tiny("llama")
    before = {layer.index: layer.squares()["self_attn.q_proj"] for layer in layerwise.forward(model, BATCHES)}
    weight = model.model.layers[0].mlp.down_proj.weight
    kept = weight.detach().clone()
    after = {}
    for layer in layerwise.forward(model, BATCHES):
        after[layer.index] = layer.squares()["self_attn.q_proj"]
        if layer.index == 0:
            weight.data.zero_()
    weight.data.copy_(kept)
    torch.testing.assert_close(before[0], after[0])
    assert not torch.allclose(before[1], after[1])


def test_a_walk_back_gives_the_gradients_of_the_whole():
    for family in ALL:
        model, _ = tiny(family)
        model.zero_grad()
        for batch in BATCHES:
            (model(input_ids=batch, labels=batch).loss / len(BATCHES)).backward()
        wanted = {name: p.grad for name, p in model.named_parameters() if name.startswith("model.layers.")}
        found = {}
        for gradients in layerwise.backward(model, BATCHES, squares=True):
            found |= gradients.mean
            assert all(bool((gradients.squares[n] * 1.001 + 1e-9 >= g**2).all()) for n, g in gradients.mean.items())
        assert set(found) == set(wanted)
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)
        model.zero_grad()


def test_what_is_not_finite_is_named_with_its_layer():
    model, _ = tiny("llama")
    weight = model.model.layers[1].mlp.up_proj.weight
    kept = weight.detach().clone()
    weight.data[0, 0] = float("nan")
    for going in (layerwise.forward, layerwise.backward):
        with pytest.raises(HarnessError, match="layer 1 gives values that are not finite") as error:
            list(going(model, BATCHES))
        assert "fp32" in error.value.remedy
    weight.data.copy_(kept)


def test_activation_scores_every_unit():
    model, anatomy = tiny("gemma")
    found = importance.activation(model, anatomy, BATCHES)
    assert {name: len(score) for name, score in found.items()} == {s.name: s.units for s in anatomy.blocks()}
    entered = {}
    linear = model.model.layers[1].self_attn.o_proj
    hook = linear.register_forward_pre_hook(lambda _, args: entered.setdefault("all", []).append(args[0].double()))
    with torch.no_grad():
        for batch in BATCHES:
            model(batch, use_cache=False)
    hook.remove()
    sequences = sum(len(x) for x in entered["all"])
    loud = (sum(x.pow(2).sum(dim=(0, 1)) for x in entered["all"]) / sequences).sqrt()
    columns = (linear.weight.detach().double().abs() * loud).mean(dim=0)
    want = columns.view(anatomy.sites["layers.1.attention"].units, -1).sum(dim=1)
    torch.testing.assert_close(found["layers.1.attention"].double(), want, rtol=1e-4, atol=1e-9)


def test_the_compensated_order_is_what_least_squares_cannot_give_back():
    model, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    batches = [tiny_models.tokens(64, 16)]
    found = importance.compensated(model, anatomy, batches)["layers.0.mlp"]
    seen = []
    linear = model.model.layers[0].mlp.down_proj
    hook = linear.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().flatten(0, 1).double()))
    model(batches[0])
    hook.remove()
    x, weight = seen[0][:: importance.EVERY], linear.weight.detach().double()
    ridge = 0.01 * (x**2).sum(0).mean()
    for unit in (0, 7, 39):
        rest = [u for u in range(40) if u != unit]
        aim = x @ weight.T
        a = torch.cat([x[:, rest], ridge.sqrt() * torch.eye(40, dtype=torch.float64)[:, rest]])
        shift = torch.cat([aim, ridge.sqrt() * weight.T])
        solution = torch.linalg.lstsq(a, shift).solution
        lost = ((a @ solution - shift) ** 2).sum()
        assert float(found[unit]) == pytest.approx(float(lost), rel=1e-3)


def test_what_a_block_of_inputs_loses_is_its_own_part_of_the_inverse():
    chance = torch.Generator().manual_seed(2)
    root = torch.randn(12, 30, generator=chance).double()
    inverse, weight = torch.linalg.inv(root @ root.T), torch.randn(5, 12, generator=chance).double()
    found = importance.uncompensated(weight, inverse, 4)
    for unit in range(3):
        at = slice(4 * unit, 4 * unit + 4)
        wanted = torch.trace(weight[:, at] @ torch.linalg.inv(inverse[at, at]) @ weight[:, at].T)
        assert float(found[unit]) == pytest.approx(float(wanted), rel=1e-5)


def test_the_compensated_order_of_many_units():
    """A batched LU of so many single numbers dies in MKL where there are two threads."""
    inverse, weight = torch.diag(torch.arange(1.0, 1537.0)).double(), torch.ones(2, 1536, dtype=torch.float64)
    assert torch.allclose(importance.uncompensated(weight, inverse, 1), 2 / torch.arange(1.0, 1537.0))


def test_the_compensated_order_of_dead_units_and_of_broken_layers():
    model, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    up = model.model.layers[1].mlp.up_proj.weight.data
    assert importance.compensated(model, anatomy, [tiny_models.tokens(4, 16)])["layers.1.mlp"].min() > 0
    up.fill_(0.0)
    assert importance.compensated(model, anatomy, [tiny_models.tokens(4, 16)])["layers.1.mlp"].max() < 1e-20
    up.fill_(float("nan"))
    with pytest.raises(HarnessError, match="layer 1 gives values that are not finite"):
        importance.compensated(model, anatomy, [tiny_models.tokens(4, 16)])
