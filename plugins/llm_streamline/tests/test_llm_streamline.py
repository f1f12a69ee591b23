"""Tests of LLM-Streamline beyond the conformance checks."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from harness_llm_streamline import Streamline, bypassed, choose_block, record_pairs, similarity

from harness import Budget, Cut, HarnessError, Unsupported, plugins
from harness.conformance import Conformance, tiny_models
from harness.models import counting, surgery
from harness.models.architectures.lookup import anatomy_of
from harness.models.cut import check_cut
from harness.models.loading.cards import card
from harness.pruning.training import loop

# At ratio 0.5 this cosine chooses the block of layers 1 to 3, of which 2 and 3 are removed.
MIDDLE_BLOCK = {"cosine": torch.zeros(5, 5).index_put((torch.tensor(1), torch.tensor(4)), torch.tensor(1.0))}
HALF = Budget.ratio(0.5)


def small(**settings):
    return Streamline(**{"samples": 2, "length": 16, "train_samples": 10, "epochs": 3, "batch": 2, **settings})


def boundary_states(model, windows):
    """The residual stream at every boundary, one tensor per window."""
    model, windows_states = model.double(), []
    for window in windows.split(1):
        states: list[torch.Tensor] = []
        hooks = [m.register_forward_pre_hook(lambda _, args, s=states: s.append(args[0])) for m in model.model.layers]
        hooks.append(model.model.layers[-1].register_forward_hook(lambda _, args, out, s=states: s.append(out)))
        with torch.no_grad():
            model(window, use_cache=False)
        for hook in hooks:
            hook.remove()
        windows_states.append(torch.cat(states))
    return windows_states


def uneven():
    """A model whose layers differ: one without its MLP, one with half of it."""
    model, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    cut = check_cut(anatomy, Cut(keep={"layers.1.mlp": [], "layers.2.mlp": range(20)}))
    smaller = surgery.apply(model, anatomy, cut)
    return smaller, anatomy_of({**smaller.config.to_dict(), "model_type": smaller.config.model_type})


# --- choice of the block ------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny_models.MODELS)
def test_similarity_is_the_mean_over_tokens_for_every_two_boundaries(name):
    windows = tiny_models.tokens(3, 7, 2)
    model, _ = tiny_models.tiny(name)
    with torch.no_grad():
        model.model.norm.weight.uniform_(-30, 30)  # the last boundary lies before the norm: no effect
    matrix = similarity(model, windows)
    assert matrix.shape == (5, 5)
    states = [window.tolist() for window in boundary_states(model, windows)]
    for i in range(5):
        for j in range(5):
            values = []
            for window in states:
                for x, y in zip(window[i], window[j], strict=True):
                    dot = sum(a * b for a, b in zip(x, y, strict=True))
                    values.append(0.5 + 0.5 * dot / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y)))
            assert matrix[i, j].item() == pytest.approx(sum(values) / len(values), abs=2e-6)


def test_a_bad_layer_is_named():
    model, _ = tiny_models.tiny(tiny_models.PLAIN)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] = math.inf
    with pytest.raises(HarnessError, match="layer 2 gives values that are not finite"):
        similarity(model, tiny_models.tokens(1, 8))


@pytest.mark.parametrize("replacements", [0, 1])
@pytest.mark.parametrize("make_model", [lambda: tiny_models.tiny(tiny_models.PLAIN), uneven])
@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.2, 0.25, 0.3, 0.45, 0.5, 0.6])
def test_the_block_is_the_shortest_that_holds_enough_at_the_best_cosine(replacements, make_model, ratio):
    _, anatomy = make_model()
    size = [
        sum(math.prod(dims) for name, dims in anatomy.tensors.items() if f"layers.{layer}." in name)
        for layer in range(4)
    ]
    cosine = torch.rand(5, 5, generator=torch.Generator().manual_seed(int(100 * ratio))).tolist()
    block = choose_block(anatomy, ratio, cosine, replacements)
    options = [
        (n, -cosine[first][first + n + replacements], first)
        for n in range(1, 4)
        for first in range(4 - n - replacements + 1)
        if sum(size[first + replacements + k] for k in range(n)) >= ratio * sum(size)
    ]
    n, _, first = min(options)
    assert block == range(first, first + n + replacements)


def test_one_layer_stays_and_the_refusal_names_what_can_go():
    _, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    assert choose_block(anatomy, 0.75, torch.zeros(5, 5).tolist(), 1) == range(4)
    for replacements in (0, 1):
        with pytest.raises(Unsupported, match=r"of 4 layers one must stay, and the others hold 0\.75"):
            choose_block(anatomy, 0.76, torch.zeros(5, 5).tolist(), replacements)


@pytest.mark.parametrize(
    ("config", "ratio", "network", "layers", "of_all"),
    [
        ("llama2-7b", 0.25, "layer", 8, 24.0),
        (tiny_models.LLAMA31_8B, 0.25, "layer", 8, 21.7),
        ("llama2-7b", 0.28, "none", 9, 27.03),
        (tiny_models.LLAMA31_8B, 0.21, "none", 7, 19.01),
    ],
)
def test_published_layer_counts_are_these_shares_of_all_parameters(config, ratio, network, layers, of_all):
    anatomy = anatomy_of(card(config).config if isinstance(config, str) else config)
    replacements = int(network == "layer")
    removed = choose_block(anatomy, ratio, torch.zeros(33, 33).tolist(), replacements)[replacements:]
    assert len(removed) == layers
    shape = {site.name: 0 for site in anatomy.blocks() if site.layer in removed}
    assert 100 * counting.ratios(anatomy, shape)[1] == pytest.approx(of_all, abs=0.05)


def test_network_none_deletes_the_whole_block():
    model, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    cosine = torch.zeros(5, 5)
    cosine[2, 4] = 1
    cut = small(network="none").prune(model, HALF, tiny_models.context(anatomy), {"cosine": cosine})
    assert set(cut.keep) == {f"layers.{i}.{kind}" for i in (2, 3) for kind in ("attention", "mlp")}
    assert not any(cut.keep.values())
    assert not cut.rewrites


# --- the cut ------------------------------------------------------------------------------------


def test_a_ratio_of_zero_trains_nothing():
    model, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    cut = small().prune(model, Budget.ratio(0), tiny_models.context(anatomy), MIDDLE_BLOCK)
    assert not cut.keep
    assert not cut.rewrites
    dense, _ = tiny_models.tiny(tiny_models.PLAIN)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), dense.parameters(), strict=True))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", tiny_models.MODELS)
def test_the_first_layer_of_the_block_is_rewritten_and_nothing_else(name, dtype):
    model, anatomy = tiny_models.tiny(name, dtype)
    cut = small(epochs=1, lm_steps=1).prune(model, HALF, tiny_models.context(anatomy), MIDDLE_BLOCK)
    assert set(cut.keep) == {f"layers.{i}.{kind}" for i in (2, 3) for kind in ("attention", "mlp")}
    assert set(cut.rewrites) == {tensor for tensor in anatomy.tensors if tensor.startswith("model.layers.1.")}
    dense = surgery.dense_state(tiny_models.tiny(name, dtype)[0])
    assert all(value.isfinite().all() for value in cut.rewrites.values())
    assert {value.dtype for value in cut.rewrites.values()} == {torch.float32}  # small steps would be lost in bf16
    assert any(not torch.equal(value, dense[tensor].float()) for tensor, value in cut.rewrites.items())
    after = surgery.dense_state(model)
    assert all(torch.equal(after[tensor], dense[tensor]) for tensor in dense if tensor not in cut.rewrites)
    smaller = surgery.apply(tiny_models.tiny(name, dtype)[0], anatomy, check_cut(anatomy, cut))
    assert [layer.self_attn.layer_idx for layer in smaller.model.layers] == [0, 1]


def test_one_seed_one_result():
    results = []
    for _ in range(2):
        model, anatomy = tiny_models.tiny(tiny_models.PLAIN)
        results.append(small().prune(model, HALF, tiny_models.context(anatomy), MIDDLE_BLOCK).rewrites)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_uneven_models_train_too():
    model, anatomy = uneven()
    cut = small(lm_steps=1).prune(model, Budget.ratio(0.3), tiny_models.context(anatomy), MIDDLE_BLOCK)
    smaller = surgery.apply(uneven()[0], anatomy, check_cut(anatomy, cut))
    assert counting.count(smaller)[0] == anatomy.params(check_cut(anatomy, cut).shape)


# --- training -----------------------------------------------------------------------------------


def validation_losses(cut, stage):
    """The validation losses before and after one stage, from the text of the cut."""
    before, _, after = cut.why.split(f"validation {stage} loss ")[1].split(";")[0].split(" ")
    return float(before), float(after)


def test_the_layer_learns_what_the_block_does_as_the_smaller_model_shows():
    model, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    method = small(train_samples=20, epochs=20, lr=2e-3)
    cut = method.prune(model, HALF, tiny_models.context(anatomy), MIDDLE_BLOCK)
    held_out = tiny_models.tokens(20, 16)[18:]
    dense = boundary_states(tiny_models.tiny(tiny_models.PLAIN)[0], held_out)
    smaller = surgery.apply(tiny_models.tiny(tiny_models.PLAIN)[0], anatomy, check_cut(anatomy, cut))
    untrained = torch.stack([states[2] - states[4] for states in dense]).square().mean()
    pruned = boundary_states(smaller, held_out)
    trained = torch.stack([a[2] - b[4] for a, b in zip(pruned, dense, strict=True)]).square().mean()
    assert validation_losses(cut, "mse") == pytest.approx((float(untrained), float(trained)), rel=1e-3)
    assert trained < 0.8 * untrained


def test_language_loss_goes_down_end_to_end_as_the_smaller_model_shows():
    model, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    ctx = tiny_models.context(anatomy)
    ctx.calibration = lambda count, length: tiny_models.tokens(count, length) % 4  # a text with something to learn
    cut = small(epochs=0, lm_steps=30, lr=2e-3).prune(model, HALF, ctx, MIDDLE_BLOCK)
    assert "mse" not in cut.why
    held_out = ctx.calibration(10, 16)[9:]
    losses = []
    for rewrites in ({}, cut.rewrites):
        whole = check_cut(anatomy, Cut(keep=cut.keep, rewrites=rewrites))
        with torch.no_grad():
            logits = (
                surgery.apply(tiny_models.tiny(tiny_models.PLAIN)[0], anatomy, whole)(held_out)
                .logits.double()
                .log_softmax(-1)
            )
        losses.append(-sum(float(logits[0, t, held_out[0, t + 1]]) for t in range(15)) / 15)
    assert validation_losses(cut, "lm") == pytest.approx(losses, rel=1e-3)
    assert losses[1] < losses[0]


def test_training_pairs_are_the_input_and_the_output_of_the_block():
    model, _ = tiny_models.tiny(tiny_models.PLAIN)
    windows = tiny_models.tokens(35, 6)  # more than one chunk
    pairs = record_pairs(model, windows, range(1, 4), lambda *_: None)
    states = boundary_states(model, windows)
    assert len(pairs.entry) == len(pairs.exit) == 35
    for at in range(35):
        torch.testing.assert_close(pairs.entry[at][0].double(), states[at][1], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(pairs.exit[at][0].double(), states[at][4], atol=1e-4, rtol=1e-4)


def test_bypassed_layers_come_back():
    model, _ = tiny_models.tiny(tiny_models.PLAIN)
    ids = tiny_models.tokens(1, 8)
    before = model(ids).logits
    with bypassed(model.model.layers[i] for i in (0, 2)):
        assert not torch.equal(model(ids).logits, before)
    assert torch.equal(model(ids).logits, before)


def test_intended_rates_rise_for_one_percent_and_fall_by_half_a_cosine():
    method = Streamline(lr=2e-4)
    assert method.rate("mse", 0, 1000) == pytest.approx(2e-5)
    assert method.rate("mse", 9, 1000) == pytest.approx(2e-4)
    assert method.rate("mse", 10, 1000) == pytest.approx(2e-4)
    assert method.rate("mse", 505, 1000) == pytest.approx(1.25e-4)
    assert method.rate("mse", 999, 1000) == pytest.approx(5e-5, rel=1e-4)


def test_released_rates_end_where_the_released_code_ends():
    """The schedule covers half of all micro-batches but advances once in 16, so it ends after an eighth."""
    method = Streamline(lr=2e-4, lr_schedule="released")
    updates = 1000
    length = 16 * updates // 2
    warmup = length // 100
    progress = (updates - 1 - warmup) / (length - warmup)
    assert method.rate("mse", 999, updates) == pytest.approx(5e-5 + 1.5e-4 * (1 + math.cos(math.pi * progress)) / 2)
    assert method.rate("mse", 999, updates) == pytest.approx(1.95e-4, abs=5e-7)
    assert method.rate("lm", 999, updates) == pytest.approx(1.27e-4, rel=0.01)
    assert Streamline(lr=2e-4).rate("lm", 999, updates) == pytest.approx(5e-5, rel=1e-4)


def opposing_losses(validation_optimum):
    """A weight and its loss, which draws the weight to 10 in training and to another value in validation.

    Of ten windows the last two validate. The returned list collects the validation losses.
    """
    weight = torch.nn.Parameter(torch.zeros(1))
    validations = []

    def loss(rows):
        assert set(rows) <= set(range(8)) or set(rows) <= {8, 9}
        if rows[0] < 8:
            return (weight - 10).square().sum()
        validations.append(float((weight.detach() - validation_optimum).square()))
        return (weight - validation_optimum).square().sum()

    return weight, loss, validations


def test_the_best_weights_are_kept_as_a_copy():
    _, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    weight, loss, validations = opposing_losses(validation_optimum=3.0)
    before, after = small(lr=0.1, batch=2).fit("mse", [weight], loss, 100, 10, 2, tiny_models.context(anatomy))
    assert before == 9.0
    assert len(validations) == 11
    assert validations[-1] > min(validations)
    assert after == min(validations) == pytest.approx((weight.item() - 3) ** 2)


def test_without_a_better_validation_the_weights_are_restored():
    _, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    weight, loss, _ = opposing_losses(validation_optimum=-1.0)
    assert small(lr=0.1).fit("mse", [weight], loss, 20, 10, 2, tiny_models.context(anatomy)) == (1.0, 1.0)
    assert weight.item() == 0.0


def test_accumulated_passes_make_the_update_of_one_large_pass(monkeypatch):
    _, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    ends, slopes, clip = [], [], torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda w, most: slopes.append(w[0].grad.clone()) or clip(w, most)
    )
    for batch, accumulation in ((4, 1), (2, 2)):
        weight = torch.nn.Parameter(torch.zeros(3))
        data = torch.arange(15.0).reshape(5, 3) / 7

        def loss(rows, weight=weight, data=data):
            return (weight - data[rows]).square().mean()

        small(batch=batch, accumulation=accumulation).fit("mse", [weight], loss, 7, 5, 1, tiny_models.context(anatomy))
        ends.append(weight.detach())
    torch.testing.assert_close(ends[0], ends[1])
    assert ends[0].abs().min() > 0
    torch.testing.assert_close(slopes[:7], slopes[7:])


def test_published_settings_reach_the_optimiser(monkeypatch):
    _, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    optimisers, norms = [], []
    plain, clip = loop.optimiser, torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(loop, "optimiser", lambda *a, **k: optimisers.append(plain(*a, **k)) or optimisers[-1])
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda w, most: norms.append(most) or clip(w, most))
    for stage in ("mse", "lm"):
        weight, loss, _ = opposing_losses(validation_optimum=3.0)
        Streamline(lr=2e-4).fit(stage, [weight], loss, 1, 10, 2, tiny_models.context(anatomy))
    assert [m.defaults["betas"] for m in optimisers] == [(0.9, 0.999), (0.9, 0.95)]
    assert {m.defaults["weight_decay"] for m in optimisers} == {1e-3}
    assert {m.defaults["lr"] for m in optimisers} == {2e-4}
    assert norms == [5.0, 5.0]


def test_too_few_windows_are_refused():
    model, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    with pytest.raises(HarnessError, match="leave none to train on"):
        small(train_samples=1).prune(model, HALF, tiny_models.context(anatomy), MIDDLE_BLOCK)


def test_a_loss_that_is_not_finite_stops_training():
    _, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    weight = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(HarnessError, match="diverged at step 0"):
        small().fit("mse", [weight], lambda rows: weight.sum() * math.nan, 3, 10, 2, tiny_models.context(anatomy))


def test_paper_is_what_was_published():
    """The release: micro-batches of 8, 16 of them in an update, one epoch at 2e-4."""
    spec = plugins.registry().specs["pruner"]["llm-streamline"]
    published = {"length": 2048, "epochs": 1, "batch": 8, "accumulation": 16, "lr": 2e-4}
    assert {name: spec.parameters[name].default("paper") for name in published} == published


class TestLayer(Conformance):
    name = "llm-streamline"


class TestNone(Conformance):
    name = "llm-streamline"
    settings: ClassVar = {"network": "none"}
