"""Tests of ShortGPT beyond the conformance checks."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from harness_shortgpt import ShortGPT, cosines, influence, least_influence

from harness import Budget, Cut, Unsupported, plugins
from harness.conformance import Conformance, tiny_models
from harness.models import counting, surgery
from harness.models.architectures.lookup import anatomy_of
from harness.models.cut import check_cut
from harness.models.loading.cards import card


def uneven():
    """A model whose layers differ: one without its MLP, one with half of it."""
    model, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    cut = check_cut(anatomy, Cut(keep={"layers.1.mlp": [], "layers.2.mlp": range(20)}))
    smaller = surgery.apply(model, anatomy, cut)
    return smaller, anatomy_of({**smaller.config.to_dict(), "model_type": smaller.config.model_type})


def by_hand(model, windows):
    """1 - mean cos(h_i, h_i+1), token by token in float64, from the residual stream between the layers."""
    model, states = model.double(), []
    hooks = [layer.register_forward_pre_hook(lambda _, args: states.append(args[0])) for layer in model.model.layers]
    hooks.append(model.model.layers[-1].register_forward_hook(lambda _, args, out: states.append(out)))
    with torch.no_grad():
        model(windows, use_cache=False)
    for hook in hooks:
        hook.remove()
    scores = []
    for before, after in pairwise(states):
        cosines_of_tokens = []
        for x, y in zip(before.flatten(0, 1).tolist(), after.flatten(0, 1).tolist(), strict=True):
            dot = sum(a * b for a, b in zip(x, y, strict=True))
            cosines_of_tokens.append(dot / math.sqrt(sum(a * a for a in x)) / math.sqrt(sum(b * b for b in y)))
        scores.append(1 - sum(cosines_of_tokens) / len(cosines_of_tokens))
    return scores


@pytest.mark.parametrize("name", tiny_models.MODELS)
def test_influence_is_one_minus_the_mean_cosine_of_the_raw_stream(name):
    windows = tiny_models.tokens(3, 10, 2)
    scores = influence(tiny_models.tiny(name)[0], windows.split(2))
    assert scores.tolist() == pytest.approx(by_hand(tiny_models.tiny(name)[0], windows), abs=2e-6)


def test_the_last_layer_is_compared_before_the_final_norm():
    windows = tiny_models.tokens(2, 12, 3)
    model, _ = tiny_models.tiny(tiny_models.PLAIN)
    with torch.no_grad():
        model.model.norm.weight.uniform_(-30, 30)
    scores = influence(model, [windows])
    assert scores[-1].item() == pytest.approx(by_hand(model, windows)[-1], abs=2e-6)
    normed = model(windows, output_hidden_states=True).hidden_states
    after_norm = 1 - torch.nn.functional.cosine_similarity(normed[-2], normed[-1], dim=-1).mean()
    assert abs(scores[-1].item() - after_norm.item()) > 0.01


def test_a_state_of_length_zero_counts_one_half():
    assert cosines(torch.zeros(1, 2, 4), torch.ones(1, 2, 4)).tolist() == [0.5, 0.5]


def test_the_lowest_scores_are_removed_anywhere_and_ties_from_the_front():
    _, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    assert least_influence(anatomy, 0.5, [0.1, 0.9, 0.2, 0.3]) == {0, 2}
    assert least_influence(anatomy, 0.26, [0.4, 0.2, 0.4, 0.2]) == {1, 3}
    assert least_influence(anatomy, 0.75, [0.2, 0.2, 0.2, 0.2]) == {0, 1, 2}
    assert least_influence(anatomy, 0.25, [0.5, 0.5, 0.5, 0.5]) == {0}


def test_uneven_layers_count_their_own_parameters(tmp_path):
    model, anatomy = uneven()
    size = {
        layer: sum(math.prod(dims) for name, dims in anatomy.tensors.items() if f"layers.{layer}." in name)
        for layer in range(4)
    }
    total = sum(size.values())
    assert len(set(size.values())) == 3
    order = [1, 2, 3, 0]
    scores = [0.9, 0.1, 0.2, 0.3]
    for ratio in (0.05, 0.1, 0.19, 0.2, 0.4, 0.5, 0.65):
        fewest = next(n for n in range(1, 4) if sum(size[i] for i in order[:n]) >= ratio * total)
        assert least_influence(anatomy, ratio, scores) == set(order[:fewest])
    ctx = tiny_models.context(anatomy)
    state = ShortGPT(4, 16).prepare(model, ctx)
    cut = check_cut(anatomy, ShortGPT().prune(model, Budget.ratio(0.3), ctx, state))
    assert counting.count(surgery.apply(model, anatomy, cut))[0] == anatomy.params(cut.shape)


def test_one_layer_stays_and_the_refusal_names_it():
    _, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    assert len(least_influence(anatomy, 0.75, [0.1, 0.4, 0.2, 0.3])) == 3
    with pytest.raises(Unsupported, match=r"layer 1, .* hold 0.75"):
        least_influence(anatomy, 0.76, [0.1, 0.4, 0.2, 0.3])


@pytest.mark.parametrize(
    ("config", "ratio", "layers", "of_all"),
    [
        ("llama2-7b", 0.28, 9, 27.03),
        ("llama2-7b", 0.21, 7, 21.02),
        (tiny_models.LLAMA31_8B, 0.15, 5, 13.58),
        (tiny_models.LLAMA31_8B, 0.21, 7, 19.01),
        (tiny_models.LLAMA31_8B, 0.25, 8, 21.73),
    ],
)
def test_published_layer_counts_are_these_shares_of_all_parameters(config, ratio, layers, of_all):
    anatomy = anatomy_of(card(config).config if isinstance(config, str) else config)
    state = {"influence": torch.linspace(1, 0, 32)}
    cut = check_cut(anatomy, ShortGPT().prune(None, Budget.ratio(ratio), tiny_models.context(anatomy), state))
    removed = {anatomy.sites[site].layer for site, units in cut.keep.items() if not units}
    assert removed == set(range(32 - layers, 32))
    assert 100 * counting.ratios(anatomy, cut.shape)[1] == pytest.approx(of_all, abs=0.005)


@pytest.mark.parametrize("name", [tiny_models.PLAIN, "qwen3", "gemma"])
def test_a_model_without_its_first_layer_generates_the_same_text_with_and_without_a_cache(name):
    model, anatomy = tiny_models.tiny(name)
    state = {"influence": torch.tensor([0.1, 0.4, 0.2, 0.3])}
    cut = check_cut(anatomy, ShortGPT().prune(None, Budget.ratio(0.5), tiny_models.context(anatomy), state))
    smaller = surgery.apply(model, anatomy, cut)
    assert [layer.self_attn.layer_idx for layer in smaller.model.layers] == [0, 1]
    ids = tiny_models.tokens(1, 6)
    texts = [
        smaller.generate(ids, max_new_tokens=10, do_sample=False, use_cache=cache, pad_token_id=1).tolist()
        for cache in (True, False)
    ]
    assert texts[0] == texts[1]


def test_a_ratio_of_zero_cuts_nothing():
    _, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    state = {"influence": torch.tensor([0.1, 0.4, 0.2, 0.3])}
    assert not ShortGPT().prune(None, Budget.ratio(0), tiny_models.context(anatomy), state).keep


def test_paper_is_what_was_published():
    """The release reads windows of 256 tokens."""
    spec = plugins.registry().specs["pruner"]["shortgpt"]
    published = {"length": 256}
    assert {name: spec.parameters[name].default("paper") for name in published} == published


class TestShortGPT(Conformance):
    name = "shortgpt"
