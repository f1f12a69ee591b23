"""What LLM-Streamline promises beyond the harness's own checks."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from harness_llm_streamline import Streamline, bypassed, cached, chosen, likeness

from harness import Budget, Cut, HarnessError, Unsupported, plugins
from harness.conformance import Conformance, tiny_models
from harness.models import counting, surgery
from harness.models.architectures.lookup import anatomy_of
from harness.models.cut import check_cut
from harness.models.loading.cards import card
from harness.pruning.training import loop

# A block of three layers, 1 to 3, of which 2 and 3 go at ratio 0.5.
FAVOURITE = {"cosine": torch.zeros(5, 5).index_put((torch.tensor(1), torch.tensor(4)), torch.tensor(1.0))}
HALF = Budget.ratio(0.5)


def small(**changed):
    return Streamline(**{"samples": 2, "length": 16, "train_samples": 10, "epochs": 3, "batch": 2, **changed})


def raw(model, windows):
    """The residual stream at every boundary, one tensor per window."""
    model, found = model.double(), []
    for window in windows.split(1):
        states: list[torch.Tensor] = []
        hooks = [m.register_forward_pre_hook(lambda _, args, s=states: s.append(args[0])) for m in model.model.layers]
        hooks.append(model.model.layers[-1].register_forward_hook(lambda _, args, out, s=states: s.append(out)))
        with torch.no_grad():
            model(window, use_cache=False)
        for hook in hooks:
            hook.remove()
        found.append(torch.cat(states))
    return found


def uneven():
    """A model whose layers differ: one without its MLP, one with half of it."""
    model, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    cut = check_cut(anatomy, Cut(keep={"layers.1.mlp": [], "layers.2.mlp": range(20)}))
    smaller = surgery.apply(model, anatomy, cut)
    return smaller, anatomy_of({**smaller.config.to_dict(), "model_type": smaller.config.model_type})


# --- which block --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny_models.MODELS)
def test_likeness_is_the_mean_over_tokens_for_every_two_boundaries(name):
    windows = tiny_models.tokens(3, 7, 2)
    model, _ = tiny_models.tiny(name)
    with torch.no_grad():
        model.model.norm.weight.uniform_(-30, 30)  # the last boundary is raw: this must not be seen
    told = likeness(model, windows)
    assert told.shape == (5, 5)
    states = [window.tolist() for window in raw(model, windows)]
    for i in range(5):
        for j in range(5):
            alike = []
            for window in states:
                for x, y in zip(window[i], window[j], strict=True):
                    dot = sum(a * b for a, b in zip(x, y, strict=True))
                    alike.append(0.5 + 0.5 * dot / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y)))
            assert told[i, j].item() == pytest.approx(sum(alike) / len(alike), abs=2e-6)


def test_a_bad_layer_is_named():
    model, _ = tiny_models.tiny(tiny_models.PLAIN)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] = math.inf
    with pytest.raises(HarnessError, match="layer 2 gives values that are not finite"):
        likeness(model, tiny_models.tokens(1, 8))


@pytest.mark.parametrize("stays", [0, 1])
@pytest.mark.parametrize("made", [lambda: tiny_models.tiny(tiny_models.PLAIN), uneven])
@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.2, 0.25, 0.3, 0.45, 0.5, 0.6])
def test_the_block_is_the_shortest_that_holds_enough_at_the_best_cosine(stays, made, ratio):
    _, anatomy = made()
    size = [
        sum(math.prod(dims) for name, dims in anatomy.tensors.items() if f"layers.{layer}." in name)
        for layer in range(4)
    ]
    cosine = torch.rand(5, 5, generator=torch.Generator().manual_seed(int(100 * ratio))).tolist()
    found = chosen(anatomy, ratio, cosine, stays)
    options = [
        (n, -cosine[first][first + n + stays], first)
        for n in range(1, 4)
        for first in range(4 - n - stays + 1)
        if sum(size[first + stays + k] for k in range(n)) >= ratio * sum(size)
    ]
    n, _, first = min(options)
    assert found == range(first, first + n + stays)


def test_one_layer_stays_and_the_refusal_names_what_can_go():
    _, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    assert chosen(anatomy, 0.75, torch.zeros(5, 5).tolist(), 1) == range(4)
    for stays in (0, 1):
        with pytest.raises(Unsupported, match=r"of 4 layers one stays, and the others hold 0\.75"):
            chosen(anatomy, 0.76, torch.zeros(5, 5).tolist(), stays)


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
    stays = int(network == "layer")
    gone = chosen(anatomy, ratio, torch.zeros(33, 33).tolist(), stays)[stays:]
    assert len(gone) == layers
    shape = {site.name: 0 for site in anatomy.blocks() if site.layer in gone}
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


def test_nothing_asked_nothing_trained():
    model, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    cut = small().prune(model, Budget.ratio(0), tiny_models.context(anatomy), FAVOURITE)
    assert not cut.keep
    assert not cut.rewrites
    dense, _ = tiny_models.tiny(tiny_models.PLAIN)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), dense.parameters(), strict=True))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", tiny_models.MODELS)
def test_the_first_layer_of_the_block_is_rewritten_and_nothing_else(name, dtype):
    model, anatomy = tiny_models.tiny(name, dtype)
    cut = small(epochs=1, lm_steps=1).prune(model, HALF, tiny_models.context(anatomy), FAVOURITE)
    assert set(cut.keep) == {f"layers.{i}.{kind}" for i in (2, 3) for kind in ("attention", "mlp")}
    assert set(cut.rewrites) == {tensor for tensor in anatomy.tensors if tensor.startswith("model.layers.1.")}
    dense = surgery.dense_state(tiny_models.tiny(name, dtype)[0])
    assert all(value.isfinite().all() for value in cut.rewrites.values())
    assert {value.dtype for value in cut.rewrites.values()} == {torch.float32}  # small steps do not get lost
    assert any(not torch.equal(value, dense[tensor].float()) for tensor, value in cut.rewrites.items())
    after = surgery.dense_state(model)
    assert all(torch.equal(after[tensor], dense[tensor]) for tensor in dense if tensor not in cut.rewrites)
    smaller = surgery.apply(tiny_models.tiny(name, dtype)[0], anatomy, check_cut(anatomy, cut))
    assert [layer.self_attn.layer_idx for layer in smaller.model.layers] == [0, 1]


def test_one_seed_one_result():
    told = []
    for _ in range(2):
        model, anatomy = tiny_models.tiny(tiny_models.PLAIN)
        told.append(small().prune(model, HALF, tiny_models.context(anatomy), FAVOURITE).rewrites)
    assert all(torch.equal(told[0][name], told[1][name]) for name in told[0])


def test_uneven_models_train_too():
    model, anatomy = uneven()
    cut = small(lm_steps=1).prune(model, Budget.ratio(0.3), tiny_models.context(anatomy), FAVOURITE)
    smaller = surgery.apply(uneven()[0], anatomy, check_cut(anatomy, cut))
    assert counting.count(smaller)[0] == anatomy.params(check_cut(anatomy, cut).shape)


# --- training -----------------------------------------------------------------------------------


def told(cut, stage):
    """Both figures of one stage, as the cut's line has them."""
    before, _, after = cut.why.split(f"validation {stage} loss ")[1].split(";")[0].split(" ")
    return float(before), float(after)


def test_the_layer_learns_what_the_block_does_as_the_smaller_model_shows():
    model, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    method = small(train_samples=20, epochs=20, lr=2e-3)
    cut = method.prune(model, HALF, tiny_models.context(anatomy), FAVOURITE)
    held = tiny_models.tokens(20, 16)[18:]
    dense = raw(tiny_models.tiny(tiny_models.PLAIN)[0], held)
    smaller = surgery.apply(tiny_models.tiny(tiny_models.PLAIN)[0], anatomy, check_cut(anatomy, cut))
    untrained = torch.stack([states[2] - states[4] for states in dense]).square().mean()
    trained = torch.stack([a[2] - b[4] for a, b in zip(raw(smaller, held), dense, strict=True)]).square().mean()
    assert told(cut, "mse") == pytest.approx((float(untrained), float(trained)), rel=1e-3)
    assert trained < 0.8 * untrained


def test_language_loss_goes_down_end_to_end_as_the_smaller_model_shows():
    model, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    ctx = tiny_models.context(anatomy)
    ctx.calibration = lambda count, length: tiny_models.tokens(count, length) % 4  # a text with something to learn
    cut = small(epochs=0, lm_steps=30, lr=2e-3).prune(model, HALF, ctx, FAVOURITE)
    assert "mse" not in cut.why
    held = ctx.calibration(10, 16)[9:]
    losses = []
    for rewrites in ({}, cut.rewrites):
        whole = check_cut(anatomy, Cut(keep=cut.keep, rewrites=rewrites))
        with torch.no_grad():
            logits = (
                surgery.apply(tiny_models.tiny(tiny_models.PLAIN)[0], anatomy, whole)(held)
                .logits.double()
                .log_softmax(-1)
            )
        losses.append(-sum(float(logits[0, t, held[0, t + 1]]) for t in range(15)) / 15)
    assert told(cut, "lm") == pytest.approx(losses, rel=1e-3)
    assert losses[1] < losses[0]


def test_what_is_learnt_from_lies_at_both_ends_of_the_block():
    model, _ = tiny_models.tiny(tiny_models.PLAIN)
    windows = tiny_models.tokens(35, 6)  # more than walk together
    pairs = cached(model, windows, range(1, 4), lambda *_: None)
    states = raw(model, windows)
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
    """Steps once in 16 micro-batches, laid out for half of all micro-batches: an eighth of the way."""
    method = Streamline(lr=2e-4, lr_schedule="released")
    updates = 1000
    horizon = 16 * updates // 2
    warmup = horizon // 100
    way = (updates - 1 - warmup) / (horizon - warmup)
    assert method.rate("mse", 999, updates) == pytest.approx(5e-5 + 1.5e-4 * (1 + math.cos(math.pi * way)) / 2)
    assert method.rate("mse", 999, updates) == pytest.approx(1.95e-4, abs=5e-7)
    assert method.rate("lm", 999, updates) == pytest.approx(1.27e-4, rel=0.01)
    assert Streamline(lr=2e-4).rate("lm", 999, updates) == pytest.approx(5e-5, rel=1e-4)


def pulled(towards):
    """A weight that training pulls to 10 while validation wants it elsewhere; the first of ten windows is held last."""
    weight = torch.nn.Parameter(torch.zeros(1))
    seen = []

    def loss(rows):
        assert set(rows) <= set(range(8)) or set(rows) <= {8, 9}
        if rows[0] < 8:
            return (weight - 10).square().sum()
        seen.append(float((weight.detach() - towards).square()))
        return (weight - towards).square().sum()

    return weight, loss, seen


def test_the_best_weights_are_kept_as_a_copy():
    _, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    weight, loss, seen = pulled(towards=3.0)
    before, after = small(lr=0.1, batch=2).fit("mse", [weight], loss, 100, 10, 2, tiny_models.context(anatomy))
    assert before == 9.0
    assert len(seen) == 11
    assert seen[-1] > min(seen)
    assert after == min(seen) == pytest.approx((weight.item() - 3) ** 2)


def test_what_never_validates_better_ends_where_it_began():
    _, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    weight, loss, _ = pulled(towards=-1.0)
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
    made, clipped = [], []
    plain, clip = loop.optimiser, torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(loop, "optimiser", lambda *a, **k: made.append(plain(*a, **k)) or made[-1])
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda w, most: clipped.append(most) or clip(w, most))
    for stage in ("mse", "lm"):
        weight, loss, _ = pulled(towards=3.0)
        Streamline(lr=2e-4).fit(stage, [weight], loss, 1, 10, 2, tiny_models.context(anatomy))
    assert [m.defaults["betas"] for m in made] == [(0.9, 0.999), (0.9, 0.95)]
    assert {m.defaults["weight_decay"] for m in made} == {1e-3}
    assert {m.defaults["lr"] for m in made} == {2e-4}
    assert clipped == [5.0, 5.0]


def test_too_few_windows_are_told():
    model, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    with pytest.raises(HarnessError, match="leave none to train on"):
        small(train_samples=1).prune(model, HALF, tiny_models.context(anatomy), FAVOURITE)


def test_a_training_that_is_lost_is_told():
    _, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    weight = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(HarnessError, match="lost its way at step 0"):
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
