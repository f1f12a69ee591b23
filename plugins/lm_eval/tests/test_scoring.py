"""SharedLM answers as lm-eval's stock class: for every family, dense and pruned, at any capacity of a pass."""

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


def random_pairs(count=6, seed=0):
    """Pairs of context and choice: with shared examples, one-letter choices, common prefixes, repeated contexts."""
    draw = random.Random(seed)

    def random_text(length):
        return "".join(draw.choice("abc d") for _ in range(length)).strip() or "a"

    shared = [random_text(90), random_text(20)]
    pairs = []
    for _ in range(count):
        context = draw.choice(shared) + " " + random_text(draw.randint(1, 12))
        if draw.random() < 0.4:
            choices = [" A", " B"]
        else:
            choices = [" " + random_text(3) + random_text(draw.randint(1, 9)) for _ in "xyz"]
        pairs += [(context, choice) for choice in choices]
    context, choice = pairs[0]
    return [*pairs, (context + choice, " more"), pairs[1]]


def instances(pairs):
    return [Instance("loglikelihood", {}, pair, 0) for pair in pairs]


def stock_answers(model, pairs):
    lm = HFLM(pretrained=model, tokenizer=byte_tokenizer(), backend="causal", batch_size=1)
    return lm.loglikelihood(instances(pairs), disable_tqdm=True)


def shared_answers(model, pairs, capacity=0):
    lm = SharedLM(model, byte_tokenizer())
    lm.scorer.capacity = capacity or lm.scorer.capacity
    return lm, lm.loglikelihood(instances(pairs), disable_tqdm=True)


def assert_equal(answers, expected, tolerance=TOLERANCE):
    """The greedy flags are equal, and the log-likelihoods are within the tolerance."""
    assert [greedy for _, greedy in answers] == [greedy for _, greedy in expected]
    assert max(abs(value - other) for (value, _), (other, _) in zip(answers, expected, strict=True)) < tolerance


@pytest.mark.parametrize("name", tiny_models.MODELS)
@pytest.mark.parametrize("capacity", [24, 4096])
def test_every_family_answers_as_the_stock_class(name, capacity):
    model, _ = tiny_models.tiny(name)
    assert_equal(shared_answers(model, random_pairs(), capacity)[1], stock_answers(model, random_pairs()))


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
    assert_equal(shared_answers(uneven(), random_pairs(), capacity)[1], stock_answers(uneven(), random_pairs()))


def test_half_precision_is_about_as_exact_as_the_stock_class():
    model, _ = tiny_models.tiny("llama, grouped")
    exact = [value for value, _ in stock_answers(model.double(), random_pairs())]
    half = model.to(torch.bfloat16)

    def largest_error(answers):
        return max(abs(value - right) for (value, _), right in zip(answers, exact, strict=True))

    shared_error = largest_error(shared_answers(half, random_pairs(), 64)[1])
    assert shared_error < 3 * largest_error(stock_answers(half, random_pairs())) + 0.05


def test_the_head_runs_only_where_a_token_is_scored(monkeypatch):
    model, _ = tiny_models.tiny("llama, grouped")
    lengths = []
    model.lm_head.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    pairs = random_pairs()
    shared_answers(model, pairs)
    scored = {(context + choice)[: len(context) + at] for context, choice in pairs for at in range(len(choice))}
    assert sum(lengths) == len(scored)  # each letter is a token


MEMORY = [torch.OutOfMemoryError("no"), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]


@pytest.mark.parametrize("error", MEMORY, ids=["cuda", "cpu"])
def test_a_pass_that_does_not_fit_is_halved(error, monkeypatch):
    model, _ = tiny_models.tiny("llama, grouped")
    expected = stock_answers(model, random_pairs())
    whole = scoring.Scorer._pass

    def limited(self, nodes, past):
        if self.capacity > 40:
            raise error
        return whole(self, nodes, past)

    monkeypatch.setattr(scoring.Scorer, "_pass", limited)
    lm, answers = shared_answers(model, random_pairs(), 128)
    assert_equal(answers, expected)
    assert lm.scorer.halved == [64, 32]
    assert _notes(lm) == ["a pass did not fit into memory; continued with 32 tokens a pass"]


def test_errors_other_than_memory_are_raised(monkeypatch):
    model, _ = tiny_models.tiny("llama, grouped")

    def broken(*_):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(scoring.Scorer, "_pass", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        shared_answers(model, random_pairs())


def test_an_interrupted_plan_counts_nothing_twice(monkeypatch):
    """Some passes of a stem have been answered before the memory is exhausted."""
    model, _ = tiny_models.tiny("llama, grouped")
    expected = stock_answers(model, random_pairs())
    whole, calls = scoring.Scorer._pass, []

    def third(self, nodes, past):
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("no")
        return whole(self, nodes, past)

    monkeypatch.setattr(scoring.Scorer, "_pass", third)
    assert_equal(shared_answers(model, random_pairs(), 64)[1], expected)


def test_long_requests_lose_their_start_as_in_the_stock_class():
    model, _ = tiny_models.tiny("llama, grouped")
    pairs = [("a" * 1100 + "b", " c"), ("a" * 1100 + "d", " ca"), ("short", " c")]
    lm, answers = shared_answers(model, pairs)
    assert_equal(answers, stock_answers(model, pairs))
    assert lm.truncated == 2
    assert _notes(lm) == ["2 requests are longer than 1024 tokens; they lost their start"]


def test_a_continuation_longer_than_the_model_is_refused():
    model, _ = tiny_models.tiny("llama, grouped")
    with pytest.raises(Unsupported, match="the model sees 1024"):
        shared_answers(model, [("a", "b" * 1100)])


def test_nan_is_refused():
    model, _ = tiny_models.tiny("llama, grouped")
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    with pytest.raises(HarnessError, match="overflows or holds NaN"):
        shared_answers(model, random_pairs())


def test_a_context_without_tokens_is_refused():
    model, _ = tiny_models.tiny("llama, grouped")
    with pytest.raises(Unsupported, match="context has no tokens"):
        shared_answers(model, [(" ", "a"), ("b", "c")])


def test_a_tokenizer_without_a_first_token_is_refused():
    model, _ = tiny_models.tiny("llama, grouped")
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(Unsupported, match="neither a BOS nor an EOS"):
        SharedLM(model, tokenizer).loglikelihood(instances([("", "a")]), disable_tqdm=True)


def test_sliding_windows_are_scored_by_the_stock_class():
    model, _ = tiny_models.tiny("mistral")
    model.config.sliding_window = 60
    lm, answers = shared_answers(model, random_pairs())
    assert lm.slides
    assert_equal(answers, stock_answers(model, random_pairs()))
    short = [(context[:20], choice) for context, choice in random_pairs()]
    lm, answers = shared_answers(model, short)
    assert not lm.slides
    assert_equal(answers, stock_answers(model, short))


def test_progress_ends_with_all_requests():
    model, _ = tiny_models.tiny("llama, grouped")
    reports = []
    lm = SharedLM(model, byte_tokenizer(), lambda done, total: reports.append((done, total)))
    lm.loglikelihood(instances(random_pairs()), disable_tqdm=True)
    assert reports[-1] == (len(random_pairs()), len(random_pairs()))
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)
