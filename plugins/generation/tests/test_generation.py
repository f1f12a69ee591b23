"""Generated texts against plain greedy decoding, and the figures against their formulas."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache

import harness_generation.writing
import pytest
import torch
from harness_generation.evaluate import LENGTH, SAMPLES, Generation
from harness_generation.prompts import IDENTITY, PROMPTS
from harness_generation.text import common_length, distinct, repetition, rouge_l
from harness_generation.writing import SpecialTokens, greedy, mean_loss

from harness import Cut, HarnessError, Unsupported
from harness.conformance import Conformance, tiny_models
from harness.models import surgery
from harness.models.architectures import modeling
from harness.models.architectures.lookup import anatomy_of
from harness.models.cut import check_cut
from harness.models.loading.cards import card
from harness.models.loading.tiny import byte_tokenizer
from harness.models.loading.weights import locate
from harness.models.saved import folders

ENDLESS = SpecialTokens(None, ())
PROMPT_IDS = [[7, 30, 12], [9, 2, 40, 41, 5, 6, 7, 8, 77], [200], [50, 51, 52, 53, 54]]
UNEVEN = {
    "layers.0.attention": [],
    "layers.1.mlp": [],
    "layers.2.attention": [],
    "layers.2.mlp": [],
    "layers.3.attention": [1],
    "layers.3.mlp": range(7),
}


@cache
def model_of(name: str):
    """A model by name: a family, a cut of a family (uneven, without attention, shorter), with a window, or `tiny`."""
    if name == "tiny":
        folder, _ = locate(card("tiny"))
        return folders.read(folder, "fp32")
    if name == "window":
        config = {**tiny_models.BASE, "model_type": "mistral", "sliding_window": 6}
        torch.manual_seed(0)
        model = modeling.classes("mistral")[1](modeling.config(config)).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        return model
    name, _, cut = name.partition(" cut ")
    model, anatomy = tiny_models.tiny(name)
    cuts = {
        "uneven": UNEVEN,
        "without attention": {f"layers.{at}.attention": [] for at in range(4)},
        "shorter": {f"layers.0.{site}": [] for site in ("attention", "mlp")},
    }
    return surgery.apply(model, anatomy, check_cut(anatomy, Cut(keep=cuts[cut]))) if cut else model


def by_hand(model, prompt, tokens, ends=()):
    """A greedy continuation of one prompt, without padding or cache: the whole text is computed for every token."""
    row = []
    with torch.inference_mode():
        while len(row) < tokens and not (row and row[-1] in ends):
            row.append(int(model(torch.tensor([prompt + row]), use_cache=False).logits[0, -1].argmax()))
    return row


def context(model, **more):
    """A context whose dense model is `model`."""
    anatomy = anatomy_of(modeling.config_dict(model))
    return tiny_models.context(anatomy, **{"tokenizer": byte_tokenizer(), "calibration": None, "dense": model, **more})


# --- writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "tiny",
        "window",
        *tiny_models.MODELS,
        *(f"{tiny_models.PLAIN} cut {cut}" for cut in ("uneven", "without attention", "shorter")),
        "gemma cut uneven",
        "qwen3 cut uneven",
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_writes_what_each_prompt_alone_writes(name, batch):
    model = model_of(name)
    rows, used = greedy(model, PROMPT_IDS, ENDLESS, 12, batch)
    assert rows == [by_hand(model, prompt, 12) for prompt in PROMPT_IDS]
    assert used == batch
    assert len({tuple(row) for row in rows}) > 1, "equal continuations would hide a mistake"


def test_a_text_stops_at_its_end_token_while_others_of_the_batch_continue():
    model = model_of(f"{tiny_models.PLAIN} cut uneven")
    free, _ = greedy(model, PROMPT_IDS, ENDLESS, 12, 4)
    end = free[0][3]
    rows, _ = greedy(model, PROMPT_IDS, SpecialTokens(None, (end,)), 12, 4)
    assert rows == [by_hand(model, prompt, 12, (end,)) for prompt in PROMPT_IDS]
    assert rows[0] == free[0][: free[0].index(end) + 1]
    assert max(map(len, rows)) == 12
    assert SpecialTokens(None, (end,)).body(rows[0]) == rows[0][:-1]


def test_generation_settings_of_the_model_are_ignored_and_restored():
    model, _ = tiny_models.tiny(tiny_models.PLAIN)
    plain, _ = greedy(model, PROMPT_IDS, ENDLESS, 8, 4)
    own = model.generation_config
    own.update(do_sample=True, temperature=2.0, repetition_penalty=5.0, suppress_tokens=sorted(set(plain[0])))
    assert greedy(model, PROMPT_IDS, ENDLESS, 8, 4)[0] == plain
    assert model.generation_config is own
    assert own.repetition_penalty == 5.0


def test_logits_that_are_not_finite_are_refused():
    model, _ = tiny_models.tiny(tiny_models.PLAIN)
    model.lm_head.weight.data[3] = math.nan
    before = model.generation_config
    with pytest.raises(HarnessError, match="not finite"):
        greedy(model, PROMPT_IDS, ENDLESS, 8, 4)
    assert model.generation_config is before


def test_a_batch_that_memory_cannot_hold_is_halved(monkeypatch):
    write_batch, sizes = harness_generation.writing._write_batch, []

    def limited(model, prompts, *more):
        sizes.append(len(prompts))
        if len(prompts) > 1:
            raise torch.OutOfMemoryError("full")
        return write_batch(model, prompts, *more)

    model = model_of(tiny_models.PLAIN)
    expected, _ = greedy(model, PROMPT_IDS, ENDLESS, 6, 4)
    monkeypatch.setattr(harness_generation.writing, "_write_batch", limited)
    assert greedy(model, PROMPT_IDS, ENDLESS, 6, 4) == (expected, 1)
    assert sizes == [4, 2, 1, 1, 1, 1]


def test_special_tokens_are_those_of_the_dense_model():
    plain, gemma = context(model_of(tiny_models.PLAIN)), context(model_of("gemma"))
    assert SpecialTokens.of(plain) == SpecialTokens(None, (1,))
    assert SpecialTokens.of(gemma).prompt(gemma.tokenizer, "A") == [0, *gemma.tokenizer("A").input_ids]
    several = replace(plain.anatomy, config={**plain.anatomy.config, "eos_token_id": [9, 4]})
    assert SpecialTokens.of(replace(plain, anatomy=several)).ends == (1, 4, 9)


# --- figures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "distinct_1", "distinct_2", "repeats"),
    [
        ("", 0, 0, 0),
        ("a", 1, 0, 0),
        ("abcdefgh", 1, 1, 0),
        ("abab", 2 / 4, 2 / 3, 0),  # no four tokens occur twice
        ("aaaaaa", 1 / 6, 1 / 5, 5 / 6),  # the same four tokens repeat at every position: all but the first count
        ("abcdabcd", 4 / 8, 4 / 7, 4 / 8),
        ("abcdabcdx", 5 / 9, 5 / 8, 4 / 9),
        ("abcdexabcde", 6 / 11, 6 / 10, 5 / 11),  # overlapping fours count their tokens once
    ],
)
def test_variety_and_repetition(tokens, distinct_1, distinct_2, repeats):
    assert distinct(tokens, 1) == pytest.approx(distinct_1)
    assert distinct(tokens, 2) == pytest.approx(distinct_2)
    assert repetition(tokens) == pytest.approx(repeats)


@pytest.mark.parametrize(
    ("text", "reference", "f1"),
    [
        ("the cat sat on the mat", "the cat sat on the mat", 1),
        ("The CAT, sat!", "the cat sat", 1),
        ("police killed the gunman", "police kill the gunman", 2 * 3 / 8),
        ("the gunman kill police", "police kill the gunman", 2 * 2 / 8),
        ("a b c d e", "a x c", 2 * 2 / 8),
        ("one", "two", 0),
        ("", "", 1),
        ("", "word", 0),
        ("...", "word", 0),
        ("...", "...\n", 1),
        ("...", "!?", 0),
    ],
)
def test_rouge_l(text, reference, f1):
    assert rouge_l(text, reference) == rouge_l(reference, text) == pytest.approx(f1)


def test_the_longest_common_subsequence_against_brute_force():
    from itertools import combinations

    def brute_force(a, b):
        subsequences = {c for n in range(len(b) + 1) for c in combinations(b, n)}
        return max(n for n in range(len(a) + 1) for c in combinations(a, n) if c in subsequences)

    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        a, b = (
            torch.randint(0, 3, (int(n),), generator=generator).tolist()
            for n in torch.randint(0, 8, (2,), generator=generator)
        )
        assert common_length(a, b) == brute_force(a, b)


def test_the_mean_loss_is_the_mean_over_single_tokens():
    model, prompt, row = model_of(tiny_models.PLAIN), [5, 6, 7], [8, 200, 3]
    losses = []
    with torch.inference_mode():
        for at, token in enumerate(row):
            logits = model(torch.tensor([prompt + row[:at]])).logits[0, -1].double()
            losses.append(float(logits.logsumexp(0) - logits[token]))
    assert mean_loss(model, prompt, row) == pytest.approx(sum(losses) / 3, rel=1e-5)


# --- the evaluator -------------------------------------------------------------------------------


def test_a_pruned_model_is_compared_with_the_dense_one():
    dense, pruned = model_of(tiny_models.PLAIN), model_of(f"{tiny_models.PLAIN} cut uneven")
    reports = []
    ctx = context(dense, limit=5, progress=lambda *report: reports.append(report))
    scores = Generation(tokens=10, batch=2).evaluate(pruned, ctx)
    assert list(scores) == ["rouge_l", "by_dense", "distinct_1", "distinct_2", "repetition"]
    ids = [ctx.tokenizer(text).input_ids for text in PROMPTS[:5]]
    pruned_rows, dense_rows = ([by_hand(model, prompt, 10, (1,)) for prompt in ids] for model in (pruned, dense))
    all_rows = (pruned_rows, dense_rows)
    texts = [[ctx.tokenizer.decode([t for t in row if t != 1]) for row in rows] for rows in all_rows]
    for at, (prompt, row) in enumerate(zip(ids, pruned_rows, strict=True)):
        key, body = f"generation/{at}", [t for t in row if t != 1]
        assert scores["rouge_l"].documents[key] == rouge_l(texts[0][at], texts[1][at])
        assert scores["by_dense"].documents[key] == pytest.approx(mean_loss(dense, prompt, row))
        assert scores["distinct_2"].documents[key] == distinct(body, 2)
        assert scores["repetition"].documents[key] == repetition(body)
    assert all(len(score.documents) == 5 for score in scores.values())
    assert scores["by_dense"].scale == "exp-mean"
    assert [name for name, score in scores.items() if score.higher_is_better] == ["rouge_l", "distinct_1", "distinct_2"]
    assert reports[-1] == (15, 15)
    assert reports == sorted(reports)

    pairs = scores["rouge_l"].texts
    assert len(pairs) == SAMPLES
    assert pairs[0] == {"prompt": PROMPTS[0], "dense": texts[1][0], "pruned": texts[0][0]}
    assert not any(score.texts for name, score in scores.items() if name != "rouge_l")
    assert scores["by_dense"].details["prompts"] == IDENTITY


def test_the_dense_model_compared_with_itself_scores_one():
    dense = model_of(tiny_models.PLAIN)
    scores = Generation(tokens=10).evaluate(dense, context(dense, limit=4))
    assert set(scores["rouge_l"].documents.values()) == {1.0}
    assert not scores["rouge_l"].texts


def test_a_model_that_writes_nothing_scores_badly():
    """Its first token ends the text: no variety, nothing in common, and a loss under the dense model."""
    dense, silent = model_of(tiny_models.PLAIN), model_of(f"{tiny_models.PLAIN} cut uneven")
    ctx = context(dense, limit=1)
    prompt = ctx.tokenizer(PROMPTS[0]).input_ids
    [end] = by_hand(silent, prompt, 1)
    assert by_hand(dense, prompt, 1) != [end]
    anatomy = replace(ctx.anatomy, config={**ctx.anatomy.config, "eos_token_id": end})
    scores = Generation(tokens=6).evaluate(silent, replace(ctx, anatomy=anatomy))
    figures = {name: score.documents["generation/0"] for name, score in scores.items()}
    assert figures.pop("by_dense") == pytest.approx(mean_loss(dense, prompt, [end]))
    assert figures == dict.fromkeys(("rouge_l", "distinct_1", "distinct_2", "repetition"), 0.0)
    details = scores["distinct_1"].details
    assert (details["ended"], details["empty"], details["tokens_written"]) == (1, 1, 0)


def test_texts_and_details_in_a_record_are_small():
    dense, pruned = model_of(tiny_models.PLAIN), model_of(f"{tiny_models.PLAIN} cut uneven")
    scores = Generation(tokens=250).evaluate(pruned, context(dense, limit=3))
    assert max(len(text) for row in scores["rouge_l"].texts for text in row.values()) == LENGTH
    assert sum(len(json.dumps([score.details, score.texts])) for score in scores.values()) < 12 * LENGTH * SAMPLES


def test_impossible_settings_are_refused():
    dense = model_of(tiny_models.PLAIN)
    with pytest.raises(Unsupported, match="more than the 1024") as refused:
        Generation(tokens=1024).evaluate(dense, context(dense, limit=1))
    fits = int(refused.value.remedy.rpartition("=")[2])
    assert fits + len(PROMPTS[0]) == 1024
    with pytest.raises(Unsupported, match="dense"):
        Generation().evaluate(dense, context(dense, dense=None))


def test_prompts_are_short_and_stay_as_they_are():
    """Scores on other prompts are not comparable: a change of this hash needs a new version of the evaluator."""
    assert IDENTITY == "924142e6e1bbb5f93f3050511b85bc206ba3c96a2709ad49c6f1b7cf86bd6af3"
    assert len(set(PROMPTS)) == len(PROMPTS) == 40
    assert all(20 < len(text) < 120 and text.isascii() for text in PROMPTS)
    assert not [text for text in PROMPTS if text.endswith(" ")], "a space at the end belongs to the next token"


class TestGeneration(Conformance):
    name = "generation"
