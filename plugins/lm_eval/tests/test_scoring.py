"""What lm-eval's stock class answers, for every family, whole and cut, whatever a pass may hold."""

from __future__ import annotations

import random

import pytest
import torch
from harness_lm_eval import scoring
from harness_lm_eval.evaluator import _notes
from harness_lm_eval.model import SharedLM
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from harness import Cut
from harness.conformance import tiny_models
from harness.errors import HarnessError, Unsupported
from harness.models import surgery
from harness.models.cut import check_cut
from harness.models.loading.tiny import byte_tokenizer

TOLERANCE = 1e-4


def asked(count=6, seed=0):
    """Questions after shared examples, choices that begin alike, one-letter choices, a question that begins another."""
    draw = random.Random(seed)

    def words(length):
        return "".join(draw.choice("abc d") for _ in range(length)).strip() or "a"

    shared = [words(90), words(20)]
    found = []
    for _ in range(count):
        context = draw.choice(shared) + " " + words(draw.randint(1, 12))
        choices = [" A", " B"] if draw.random() < 0.4 else [" " + words(3) + words(draw.randint(1, 9)) for _ in "xyz"]
        found += [(context, choice) for choice in choices]
    context, choice = found[0]
    return [*found, (context + choice, " more"), found[1]]


def instances(pairs):
    return [Instance("loglikelihood", {}, pair, 0) for pair in pairs]


def stock(model, pairs):
    lm = HFLM(pretrained=model, tokenizer=byte_tokenizer(), backend="causal", batch_size=1)
    return lm.loglikelihood(instances(pairs), disable_tqdm=True)


def ours(model, pairs, capacity=0):
    lm = SharedLM(model, byte_tokenizer())
    lm.scorer.capacity = capacity or lm.scorer.capacity
    return lm, lm.loglikelihood(instances(pairs), disable_tqdm=True)


def agree(found, wanted, tolerance=TOLERANCE):
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    assert max(abs(one - other) for (one, _), (other, _) in zip(found, wanted, strict=True)) < tolerance


@pytest.mark.parametrize("name", tiny_models.MODELS)
@pytest.mark.parametrize("capacity", [24, 4096])
def test_every_family_as_stock(name, capacity):
    model, _ = tiny_models.tiny(name)
    agree(ours(model, asked(), capacity)[1], stock(model, asked()))


def uneven(name="llama, grouped"):
    model, anatomy = tiny_models.tiny(name)
    keep = {
        "layers.0.attention": [],
        "layers.1.mlp": range(13),
        "layers.2.attention": [1, 3],
        "layers.3.mlp": [],
    }
    return surgery.apply(model, anatomy, check_cut(anatomy, Cut(keep)))


@pytest.mark.parametrize("capacity", [16, 4096])
def test_a_model_whose_layers_differ(capacity):
    agree(ours(uneven(), asked(), capacity)[1], stock(uneven(), asked()))


def test_half_precision_strays_no_farther_than_stock():
    model, _ = tiny_models.tiny("llama, grouped")
    exact = [value for value, _ in stock(model.double(), asked())]
    half = model.to(torch.bfloat16)
    apart = {
        who: max(abs(value - sure) for (value, _), sure in zip(found, exact, strict=True))
        for who, found in (("ours", ours(half, asked(), 64)[1]), ("stock", stock(half, asked())))
    }
    assert apart["ours"] < 3 * apart["stock"] + 0.05


def test_the_head_runs_only_where_it_is_asked(monkeypatch):
    model, _ = tiny_models.tiny("llama, grouped")
    seen = []
    model.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    pairs = asked()
    ours(model, pairs)
    wanted = {(context + choice)[: len(context) + at] for context, choice in pairs for at in range(len(choice))}
    assert sum(seen) == len(wanted)  # one token is one letter here


MEMORY = [torch.OutOfMemoryError("no"), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]


@pytest.mark.parametrize("error", MEMORY, ids=["cuda", "cpu"])
def test_a_pass_that_does_not_fit_is_halved(error, monkeypatch):
    model, _ = tiny_models.tiny("llama, grouped")
    wanted = stock(model, asked())
    whole = scoring.Scorer._pass

    def narrow(self, nodes, past):
        if self.capacity > 40:
            raise error
        return whole(self, nodes, past)

    monkeypatch.setattr(scoring.Scorer, "_pass", narrow)
    lm, found = ours(model, asked(), 128)
    agree(found, wanted)
    assert lm.scorer.halved == [64, 32]
    assert _notes(lm) == ["a pass did not fit into memory; continued with 32 tokens a pass"]


def test_what_is_no_matter_of_memory_is_raised(monkeypatch):
    model, _ = tiny_models.tiny("llama, grouped")

    def broken(*_):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(scoring.Scorer, "_pass", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        ours(model, asked())


def test_a_broken_pass_counts_nothing_twice(monkeypatch):
    """Half of a stem's passes were answered before memory ran out."""
    model, _ = tiny_models.tiny("llama, grouped")
    wanted = stock(model, asked())
    whole, calls = scoring.Scorer._pass, []

    def third(self, nodes, past):
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("no")
        return whole(self, nodes, past)

    monkeypatch.setattr(scoring.Scorer, "_pass", third)
    agree(ours(model, asked(), 64)[1], wanted)


def test_what_is_too_long_loses_its_start_as_in_stock():
    model, _ = tiny_models.tiny("llama, grouped")
    pairs = [("a" * 1100 + "b", " c"), ("a" * 1100 + "d", " ca"), ("short", " c")]
    lm, found = ours(model, pairs)
    agree(found, stock(model, pairs))
    assert lm.truncated == 2
    assert _notes(lm) == ["2 requests are longer than 1024 tokens; they lost their start"]


def test_a_continuation_longer_than_the_model_is_said():
    model, _ = tiny_models.tiny("llama, grouped")
    with pytest.raises(Unsupported, match="the model sees 1024"):
        ours(model, [("a", "b" * 1100)])


def test_a_model_of_nan_is_said():
    model, _ = tiny_models.tiny("llama, grouped")
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    with pytest.raises(HarnessError, match="overflows or holds NaN"):
        ours(model, asked())


def test_a_context_without_tokens_is_said():
    model, _ = tiny_models.tiny("llama, grouped")
    with pytest.raises(Unsupported, match="context has no tokens"):
        ours(model, [(" ", "a"), ("b", "c")])


def test_no_token_to_begin_with_is_said():
    model, _ = tiny_models.tiny("llama, grouped")
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(Unsupported, match="neither a BOS nor an EOS"):
        SharedLM(model, tokenizer).loglikelihood(instances([("", "a")]), disable_tqdm=True)


def test_sliding_windows_are_left_to_stock():
    model, _ = tiny_models.tiny("mistral")
    model.config.sliding_window = 60
    lm, found = ours(model, asked())
    assert lm.slides
    agree(found, stock(model, asked()))
    short = [(context[:20], choice) for context, choice in asked()]
    lm, found = ours(model, short)
    assert not lm.slides
    agree(found, stock(model, short))


def test_progress_ends_with_all():
    model, _ = tiny_models.tiny("llama, grouped")
    told = []
    lm = SharedLM(model, byte_tokenizer(), lambda done, total: told.append((done, total)))
    lm.loglikelihood(instances(asked()), disable_tqdm=True)
    assert told[-1] == (len(asked()), len(asked()))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
