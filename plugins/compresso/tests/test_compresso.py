"""Compresso's formulas in plain Python, its masks against the harness's surgery, and its budgets."""

from __future__ import annotations

import math

import pytest
import torch
from harness_compresso import PROMPT, choose, gates
from harness_compresso.method import Compresso, adapted
from harness_compresso.text import training_text

from harness import Budget, Cut, Unsupported, plugins, to_remove
from harness.conformance import Conformance, tiny_models
from harness.models import counting, surgery
from harness.models.architectures.lookup import anatomy_of
from harness.models.cut import check_cut
from harness.models.loading.cards import card
from harness.pruning.training import loop

QUICK = {"samples": 2, "length": 12, "prune_epochs": 2, "ramp_epochs": 1}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def open_probability(log_alpha: float) -> float:
    """P(z > 0) by hand."""
    return 1 - min(max(sigmoid(2 / 3 * math.log(0.1 / 1.1) - log_alpha), 1e-6), 1 - 1e-6)


def random_log_alpha(anatomy, seed=0, spread=2.0):
    """Values of log alpha as a training might leave them."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (spread * torch.randn(site.units, generator=generator) + 1.5).clamp(math.log(0.01), math.log(100))
        for name, site in anatomy.sites.items()
    }


def random_masks(anatomy, seed=0, share=0.3):
    """A random choice of the units that stay in every site, the hidden width included."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, site in anatomy.sites.items():
        masks[name] = torch.rand(site.units, generator=generator) >= share
        masks[name][0] = True
    return masks


def cut_of(anatomy, masks, **more):
    """The checked cut that keeps the units where the masks are True."""
    keep = {name: units.nonzero().flatten().tolist() for name, units in masks.items()}
    return check_cut(anatomy, Cut(keep, **more))


# --- gates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_alpha", [-4.6, -1.2, 0.0, 0.7, 2.5, 4.6])
@pytest.mark.parametrize("u", [1e-6, 0.03, 0.4, 0.5, 0.81, 1 - 1e-6])
def test_a_hard_concrete_sample(log_alpha, u):
    s = sigmoid((math.log(u) - math.log(1 - u) + log_alpha) / (2 / 3))
    expected = min(max(s * (1.1 + 0.1) - 0.1, 0.0), 1.0)
    gate = gates.hard_concrete(torch.tensor([log_alpha], dtype=torch.float64), torch.tensor([u], dtype=torch.float64))
    assert gate.item() == pytest.approx(expected, abs=1e-12)


def test_samples_are_finite_and_follow_their_seed():
    log_alpha = {"a": torch.zeros(5000), "b": torch.full((3,), -20.0)}
    first, again = (gates.sample_gates(log_alpha, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert bool(first["a"].isfinite().all())
    assert 0 < int((first["a"] == 0).sum()) < 5000
    assert 0 < int((first["a"] == 1).sum()) < 5000
    assert first["b"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("log_alpha", [-30.0, -4.605, -1.0, 0.0, 1.3, 4.605, 10.0, 30.0])
def test_the_probability_that_a_gate_is_open(log_alpha):
    probability = gates.open_probability(torch.tensor([log_alpha], dtype=torch.float64)).item()
    assert probability == pytest.approx(open_probability(log_alpha), abs=1e-12)


def test_gates_begin_open_and_are_clamped():
    _, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    log_alpha = gates.initial_gates(anatomy, 1)
    assert set(log_alpha) == set(anatomy.sites)
    for name, values in log_alpha.items():
        middle = math.log(0.99 / 0.01) if name.endswith("mlp") else 10.0
        assert len(values) == anatomy.sites[name].units
        assert float((values - middle).abs().max()) < 0.06
        assert float(values.std()) == pytest.approx(0.01, rel=0.9)
    values = {"a": torch.tensor([-9.0, 0.3, 9.0])}
    gates.clamp(values)
    assert values["a"].tolist() == pytest.approx([math.log(0.01), 0.3, math.log(100)])


@pytest.mark.parametrize("name", ["llama, grouped", "gemma", "qwen3", "qwen2"])
def test_the_expected_sparsity_by_loops(name):
    """Sums over single weights of attention and MLP. Qwen3 has no hidden gates, so its width stays."""
    _, anatomy = tiny_models.tiny(name)
    config = anatomy.config
    names = ("hidden_size", "head_dim", "intermediate_size", "num_key_value_heads")
    h, d, channels, kv = (config[key] for key in names)
    g = config["num_attention_heads"] // kv
    log_alpha = {n: v.double() for n, v in random_log_alpha(anatomy, 4).items()}
    width = [open_probability(float(a)) for a in log_alpha["hidden"]] if "hidden" in log_alpha else [1.0] * h
    size = total = 0.0
    for layer in range(config["num_hidden_layers"]):
        for i in range(h):
            for group in range(kv):
                size += (
                    width[i] * open_probability(float(log_alpha[f"layers.{layer}.attention"][group])) * 2 * d * (g + 1)
                )
                total += 2 * d * (g + 1)
            for channel in range(channels):
                size += width[i] * open_probability(float(log_alpha[f"layers.{layer}.mlp"][channel])) * 3
                total += 3
    sparsity = gates.sparsity(anatomy, {n: gates.open_probability(v) for n, v in log_alpha.items()})
    assert float(sparsity) == pytest.approx(1 - size / total, abs=1e-9)


def test_llama_7b_at_5_4_billion_is_a_prunable_sparsity_of_0_207():
    anatomy = anatomy_of(card("llama2-7b").config)
    weights = sum(gates.unit_weights(anatomy, site) * site.units for site in anatomy.blocks())
    assert weights == pytest.approx(6.476e9, rel=1e-4)
    head = next(anatomy.blocks())
    assert gates.unit_weights(anatomy, head) == 4 * 4096 * 128  # one query head per group: the published 4hd
    share = {name: torch.ones(site.units, dtype=torch.float64) for name, site in anatomy.sites.items()}
    for remaining, sparsity in ((5.4e9, 0.207), (5.0e9, 0.268), (4.5e9, 0.346)):
        kept_share = 1 - (anatomy.params() - remaining) / weights
        for site in anatomy.blocks():
            share[site.name].fill_(kept_share)
        assert float(gates.sparsity(anatomy, share)) == pytest.approx(sparsity, abs=6e-4)
    share = {name: torch.full_like(units, 0.89) for name, units in share.items()}  # each weight has two gates
    assert float(gates.sparsity(anatomy, share)) == pytest.approx(1 - 0.89**2, abs=1e-9)


def test_the_target_ramps_and_stays():
    assert [gates.target(step, 4, 0.2) for step in range(7)] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2, 0.2, 0.2])
    assert gates.target(0, 0, 0.2) == 0.2


def test_the_multipliers_maximise_the_penalty():
    """Adam upwards, by hand. Below the target the first multiplier becomes negative and so rewards sparsity."""
    constraint, lr = gates.Constraint(0.1), 0.1
    differences = [-0.2, -0.15, -0.1, 0.05, 0.02]
    values, first, second = [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]
    for step, difference in enumerate(differences, 1):
        penalty = constraint.penalty(torch.tensor(difference))
        assert penalty.item() == pytest.approx(values[0] * difference + values[1] * difference**2, abs=1e-6)
        constraint.optimiser.zero_grad()
        penalty.backward()
        constraint.optimiser.step()
        for i, gradient in enumerate((difference, difference**2)):
            first[i] = 0.9 * first[i] + 0.1 * gradient
            second[i] = 0.999 * second[i] + 0.001 * gradient**2
            values[i] += lr * (first[i] / (1 - 0.9**step)) / (math.sqrt(second[i] / (1 - 0.999**step)) + 1e-8)
        assert constraint.multipliers.tolist() == pytest.approx(values, abs=1e-5)
    assert values[0] < 0 < values[1]


# --- masks in a model -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(tiny_models.MODELS))
@pytest.mark.parametrize("adapters", [False, True], ids=["as it is", "with adapters"])
def test_a_masked_model_is_the_sliced_one(name, adapters):
    """Under masks norms divide by the full width, and after the cut by the remaining width; the logits are equal."""
    model, anatomy = tiny_models.tiny(name)
    masks, ids = random_masks(anatomy), tiny_models.tokens(2, 12)
    with torch.no_grad(), adapted(model) as lora:
        for weight in lora.parameters():
            torch.nn.init.normal_(weight, std=0.2 if adapters else 0.0)
        with gates.masked(model, anatomy, {n: units.float() for n, units in masks.items()}):
            expected = model(ids, use_cache=False).logits
        merged = {n: lora.merged(n) for n in lora.linears}
    fresh, _ = tiny_models.tiny(name)
    sliced = surgery.apply(fresh, anatomy, cut_of(anatomy, masks, rewrites=merged))
    pruned, dense = sliced(ids, use_cache=False).logits, fresh(ids, use_cache=False).logits
    assert float((pruned - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
    assert float((pruned - dense).abs().max()) > 1e-2 * float(expected.abs().max())


def test_soft_masks_multiply_at_the_published_places():
    """One layer by hand: groups at the output projection, channels before the activation and at the up projection."""
    model, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    generator = torch.Generator().manual_seed(2)
    z = {n: torch.rand(site.units, generator=generator) for n, site in anatomy.sites.items()}
    mlp, x = model.model.layers[1].mlp, torch.randn(3, 48, generator=generator)
    gate, up = x @ mlp.gate_proj.weight.T * z["layers.1.mlp"], x @ mlp.up_proj.weight.T * z["layers.1.mlp"]
    inner = gate * torch.sigmoid(gate) * up
    projection = model.model.layers[1].self_attn.o_proj
    heads = torch.randn(3, 64, generator=generator)
    groups = torch.stack([heads[:, i] * z["layers.1.attention"][i // 16] for i in range(64)], dim=1)
    with torch.no_grad():
        with gates.masked(model, anatomy, z):
            assert torch.allclose(mlp(x), inner @ mlp.down_proj.weight.T * z["hidden"], atol=1e-5)
            assert torch.allclose(projection(heads), groups @ projection.weight.T * z["hidden"], atol=1e-5)
            embedded = model.model.embed_tokens(torch.tensor([[3, 7]]))
        assert torch.allclose(embedded, model.model.embed_tokens.weight[[3, 7]] * z["hidden"])
        assert not torch.allclose(
            projection(heads), groups @ projection.weight.T * z["hidden"]
        )  # the hooks are removed


# --- from gates to a budget -----------------------------------------------------------------------


def test_as_many_zeros_as_expected_where_log_alpha_is_lowest():
    _, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    log_alpha = random_log_alpha(anatomy, 9)
    for name, mask in choose.expected_units(anatomy, log_alpha).items():
        values = log_alpha[name].tolist()
        zeros = round(len(values) - sum(open_probability(a) for a in values))
        removed = sorted(range(len(values)), key=lambda i: values[i])[: min(zeros, len(values) - 1)]
        assert zeros > 0 or "attention" in name
        assert (~mask).nonzero().flatten().tolist() == sorted(removed)


def test_every_site_keeps_a_unit_and_the_hidden_width_that_of_a_head():
    _, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    closed = {name: torch.full((site.units,), -30.0) for name, site in anatomy.sites.items()}
    counts = {name: int(units.sum()) for name, units in choose.expected_units(anatomy, closed).items()}
    assert counts == {name: 8 if name == "hidden" else 1 for name in anatomy.sites}


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.3, 0.4, 0.5])
@pytest.mark.parametrize("name", list(tiny_models.MODELS))
@pytest.mark.parametrize("spread", [0.3, 2.0], ids=["too little learned", "much learned"])
def test_the_budget_is_met_to_less_than_a_channel(name, ratio, spread):
    _, anatomy = tiny_models.tiny(name)
    log_alpha = random_log_alpha(anatomy, 6, spread)
    learned = choose.expected_units(anatomy, log_alpha)
    masks = choose.to_budget(anatomy, log_alpha, learned, to_remove(anatomy, ratio))
    cut = cut_of(anatomy, masks)
    if "hidden" in anatomy.sites and (spread > 1 or ratio >= 0.3):
        assert len(cut.keep["hidden"]) < anatomy.sites["hidden"].units
    removed, channel = counting.ratios(anatomy, cut.shape)[0], 3 * 48 / anatomy.params(prunable=True)
    assert ratio <= removed < ratio + channel


def test_the_best_units_come_back_and_the_worst_are_removed():
    """Within a site no unit that comes back scores below one that stays removed, and the reverse."""
    _, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    log_alpha = random_log_alpha(anatomy, 6)
    learned = choose.expected_units(anatomy, log_alpha)
    removed = choose.Tally(anatomy, learned).removed
    for goal in (removed // 2, removed + 5000):
        masks = choose.to_budget(anatomy, log_alpha, learned, goal)
        for name, values in log_alpha.items():
            returned, still_removed = masks[name] & ~learned[name], ~masks[name] & ~learned[name]
            newly_removed, remaining = learned[name] & ~masks[name], learned[name] & masks[name]
            assert not (returned.any() and newly_removed.any())
            if returned.any() and still_removed.any():
                assert values[returned].min() >= values[still_removed].max()
            if newly_removed.any() and remaining.any():
                assert values[newly_removed].max() <= values[remaining].min()
        assert any(bool((masks[name] != learned[name]).any()) for name in log_alpha)


def test_a_learned_cut_that_meets_the_budget_is_not_changed():
    _, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    log_alpha = random_log_alpha(anatomy, 6)
    learned = choose.expected_units(anatomy, log_alpha)
    masks = choose.to_budget(anatomy, log_alpha, learned, choose.Tally(anatomy, learned).removed - 10)
    assert all(torch.equal(masks[name], learned[name]) for name in learned)


@pytest.mark.parametrize("name", list(tiny_models.MODELS))
def test_the_tally_counts_as_the_harness_does(name):
    _, anatomy = tiny_models.tiny(name)
    tally = choose.Tally(anatomy, {n: torch.ones(s.units, dtype=torch.bool) for n, s in anatomy.sites.items()})
    generator, sites = torch.Generator().manual_seed(0), list(anatomy.sites)
    for step in range(60):
        site = sites[int(torch.randint(len(sites), (1,), generator=generator))]
        if tally.counts[site] > 1:
            tally.change(site, int(tally.keep[site].nonzero()[0]), False)
        elif step % 3 == 0:
            tally.change(site, int((~tally.keep[site]).nonzero()[0]), True)
        assert tally.removed == tally.dense - anatomy.params(tally.counts, prunable=True)


# --- the method -----------------------------------------------------------------------------------


def test_nothing_is_trained_for_ratio_zero_or_for_one_out_of_reach():
    model, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    ctx = tiny_models.context(anatomy, calibration=None)
    cut = Compresso().prune(model, Budget("ratio", 0.0), ctx, None)
    assert not cut.keep
    assert not cut.rewrites
    with pytest.raises(Unsupported, match=r"0\.999 of the prunable .* at most 0\.9\d+ can"):
        Compresso().prune(model, Budget("ratio", 0.999), ctx, None)


def test_the_model_is_unchanged_afterwards():
    model, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    ctx, method = tiny_models.context(anatomy), Compresso(**QUICK)
    cut = method.prune(model, Budget("ratio", 0.2), ctx, method.prepare(model, ctx))
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert set(cut.rewrites) == {n for n in before if n.endswith(("q_proj.weight", "v_proj.weight"))}
    assert any(not torch.equal(value, before[name]) for name, value in cut.rewrites.items())


def test_sparsity_is_learned_and_useless_units_are_removed_first():
    """The text is the model's own, so that losing useful units costs likelihood; most channels add nothing."""
    model, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[:, :10] *= 4
            layer.mlp.down_proj.weight[:, 10:] = 0
    with loop.seeded(1):
        ids = tiny_models.tokens(16, 1)
        for _ in range(31):
            probabilities = model(ids, use_cache=False).logits[:, -1].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(probabilities, 1)], dim=1)
    ctx = tiny_models.context(anatomy)
    ctx.calibration = lambda count, length: ids[:count, :length]
    method = Compresso(samples=16, length=32, batch=8, prune_epochs=50, ramp_epochs=25, lr=0.0, multiplier_lr=0.1)
    with adapted(model) as adapters:
        text = training_text(ctx, method.samples, method.length, "")
        log_alpha = method.learn(model, adapters, text, 0.2, ctx)
    share = {name: gates.open_probability(values) for name, values in log_alpha.items()}
    channels = torch.stack([share[f"layers.{i}.mlp"] for i in range(4)])
    assert abs(float(gates.sparsity(anatomy, share)) - 0.2) < 0.03
    assert float(channels[:, 10:].mean()) < float(channels[:, :10].mean()) - 0.1


class WordTokenizer:
    """A tokenizer with one token per word."""

    def __call__(self, text, **_):
        return type("Encoding", (), {"input_ids": [100 + len(word) for word in text.split()]})


@pytest.mark.parametrize("name", [tiny_models.PLAIN, "gemma"])
def test_a_prompt_is_read_and_not_learned(name):
    model, anatomy = tiny_models.tiny(name)
    ctx = tiny_models.context(anatomy, tokenizer=WordTokenizer())
    text, plain = training_text(ctx, 3, 10, "you are pruned"), tiny_models.tokens(3, 10)
    prompt = torch.tensor([103, 103, 106]).expand(3, -1)
    bos = 1 if name == "gemma" else 0
    assert torch.equal(text.rows, torch.cat([plain[:, :bos], prompt, plain[:, bos:]], dim=1))
    with torch.no_grad():
        logits = model(text.rows, use_cache=False).logits.double().log_softmax(-1)
        loss = float(text.loss(model, text.rows, 0))
    losses = [-float(logits[row, at, text.rows[row, at + 1]]) for row in range(3) for at in range(3, 12)]
    assert loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_a_prompt_needs_a_tokenizer():
    _, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    with pytest.raises(Unsupported, match="tokenizer"):
        training_text(tiny_models.context(anatomy), 2, 8, PROMPT)


def test_accumulation_reduces_the_number_of_steps():
    method = Compresso(samples=6, batch=2, tune_epochs=4, tune_accumulation=3)
    text = training_text(tiny_models.context(tiny_models.tiny(tiny_models.PLAIN)[1]), 6, 8, "")
    assert (method.epoch(text), method.tune_steps(text)) == (3, 4)


def test_paper_is_what_was_published():
    """One epoch of LoRA, seven of masks with a ramp of four, windows of at most 1024 tokens."""
    spec = plugins.registry().specs["pruner"]["compresso"]
    published = {
        "samples": 52_000,
        "length": 1024,
        "batch": 1,
        "lora_epochs": 1,
        "prune_epochs": 7,
        "ramp_epochs": 4,
        "lr": 5e-5,
        "mask_lr": 0.1,
        "multiplier_lr": 0.1,
    }
    assert {name: spec.parameters[name].default("paper") for name in published} == published


class TestConforms(Conformance):
    name = "compresso"
