"""What a model writes is what plain arithmetic says it writes, and the figures are the formulas."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache

import harness_generation.writing
import pytest
import torch
from harness_generation.evaluate import SAMPLES, SHOWN, Generation
from harness_generation.prompts import IDENTITY, PROMPTS
from harness_generation.text import common, distinct, repetition, rouge_l
from harness_generation.writing import Marks, greedy, surprise

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

ENDLESS = Marks(None, ())
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
def made(name: str):
    """Models of every kind that writes: even, uneven, without any attention, with a window, the card's."""
    if name == "tiny":
        folder, _ = locate(card("tiny"))
        return folders.read(folder, "fp32")
    if name == "window":
        words = {**tiny_models.BASE, "model_type": "mistral", "sliding_window": 6}
        torch.manual_seed(0)
        model = modeling.classes("mistral")[1](modeling.config(words)).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        return model
    name, _, how = name.partition(" cut ")
    model, anatomy = tiny_models.tiny(name)
    cuts = {
        "uneven": UNEVEN,
        "deaf": {f"layers.{at}.attention": [] for at in range(4)},
        "shorter": {f"layers.0.{site}": [] for site in ("attention", "mlp")},
    }
    return surgery.apply(model, anatomy, check_cut(anatomy, Cut(keep=cuts[how]))) if how else model


def by_hand(model, prompt, tokens, ends=()):
    """One prompt, no padding, no cache: the whole text again for every token."""
    row = []
    with torch.inference_mode():
        while len(row) < tokens and not (row and row[-1] in ends):
            row.append(int(model(torch.tensor([prompt + row]), use_cache=False).logits[0, -1].argmax()))
    return row


def context(model, **more):
    anatomy = anatomy_of(modeling.config_dict(model))
    return tiny_models.context(anatomy, **{"tokenizer": byte_tokenizer(), "calibration": None, "dense": model, **more})


# --- writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "tiny",
        "window",
        *tiny_models.MODELS,
        *(f"{tiny_models.PLAIN} cut {how}" for how in ("uneven", "deaf", "shorter")),
        "gemma cut uneven",
        "qwen3 cut uneven",
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_side_by_side_is_one_by_one(name, batch):
    model = made(name)
    rows, used = greedy(model, PROMPT_IDS, ENDLESS, 12, batch)
    assert rows == [by_hand(model, prompt, 12) for prompt in PROMPT_IDS]
    assert used == batch
    assert len({tuple(row) for row in rows}) > 1, "prompts that all end alike would hide a mistake"


def test_a_text_stops_at_its_end_while_its_neighbours_go_on():
    model = made(f"{tiny_models.PLAIN} cut uneven")
    free, _ = greedy(model, PROMPT_IDS, ENDLESS, 12, 4)
    end = free[0][3]
    rows, _ = greedy(model, PROMPT_IDS, Marks(None, (end,)), 12, 4)
    assert rows == [by_hand(model, prompt, 12, (end,)) for prompt in PROMPT_IDS]
    assert rows[0] == free[0][: free[0].index(end) + 1]
    assert max(map(len, rows)) == 12
    assert Marks(None, (end,)).body(rows[0]) == rows[0][:-1]


def test_settings_of_the_model_are_not_asked_and_not_lost():
    model, _ = tiny_models.tiny(tiny_models.PLAIN)
    plain, _ = greedy(model, PROMPT_IDS, ENDLESS, 8, 4)
    own = model.generation_config
    own.update(do_sample=True, temperature=2.0, repetition_penalty=5.0, suppress_tokens=sorted(set(plain[0])))
    assert greedy(model, PROMPT_IDS, ENDLESS, 8, 4)[0] == plain
    assert model.generation_config is own
    assert own.repetition_penalty == 5.0


def test_logits_that_are_no_numbers_are_named():
    model, _ = tiny_models.tiny(tiny_models.PLAIN)
    model.lm_head.weight.data[3] = math.nan
    before = model.generation_config
    with pytest.raises(HarnessError, match="not finite"):
        greedy(model, PROMPT_IDS, ENDLESS, 8, 4)
    assert model.generation_config is before


def test_a_batch_that_memory_cannot_hold_is_halved(monkeypatch):
    together, asked = harness_generation.writing._together, []

    def small(model, prompts, *more):
        asked.append(len(prompts))
        if len(prompts) > 1:
            raise torch.OutOfMemoryError("full")
        return together(model, prompts, *more)

    model = made(tiny_models.PLAIN)
    wanted, _ = greedy(model, PROMPT_IDS, ENDLESS, 6, 4)
    monkeypatch.setattr(harness_generation.writing, "_together", small)
    assert greedy(model, PROMPT_IDS, ENDLESS, 6, 4) == (wanted, 1)
    assert asked == [4, 2, 1, 1, 1, 1]


def test_marks_are_those_of_the_dense_model():
    plain, gemma = context(made(tiny_models.PLAIN)), context(made("gemma"))
    assert Marks.of(plain) == Marks(None, (1,))
    assert Marks.of(gemma).prompt(gemma.tokenizer, "A") == [0, *gemma.tokenizer("A").input_ids]
    several = replace(plain.anatomy, config={**plain.anatomy.config, "eos_token_id": [9, 4]})
    assert Marks.of(replace(plain, anatomy=several)).ends == (1, 4, 9)


# --- figures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "one", "two", "repeats"),
    [
        ("", 0, 0, 0),
        ("a", 1, 0, 0),
        ("abcdefgh", 1, 1, 0),
        ("abab", 2 / 4, 2 / 3, 0),  # no four tokens come twice
        ("aaaaaa", 1 / 6, 1 / 5, 5 / 6),  # the same four one later, and again: all but the first
        ("abcdabcd", 4 / 8, 4 / 7, 4 / 8),
        ("abcdabcdx", 5 / 9, 5 / 8, 4 / 9),
        ("abcdexabcde", 6 / 11, 6 / 10, 5 / 11),  # two fours that overlap count their tokens once
    ],
)
def test_variety_and_repetition(tokens, one, two, repeats):
    assert distinct(tokens, 1) == pytest.approx(one)
    assert distinct(tokens, 2) == pytest.approx(two)
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
def test_likeness(text, reference, f1):
    assert rouge_l(text, reference) == rouge_l(reference, text) == pytest.approx(f1)


def test_common_words_against_every_choice_of_them():
    from itertools import combinations

    def slow(a, b):
        held = {c for n in range(len(b) + 1) for c in combinations(b, n)}
        return max(n for n in range(len(a) + 1) for c in combinations(a, n) if c in held)

    made = torch.Generator().manual_seed(0)
    for _ in range(50):
        a, b = (
            torch.randint(0, 3, (int(n),), generator=made).tolist() for n in torch.randint(0, 8, (2,), generator=made)
        )
        assert common(a, b) == slow(a, b)


def test_surprise_is_the_mean_of_single_tokens():
    model, prompt, row = made(tiny_models.PLAIN), [5, 6, 7], [8, 200, 3]
    losses = []
    with torch.inference_mode():
        for at, token in enumerate(row):
            logits = model(torch.tensor([prompt + row[:at]])).logits[0, -1].double()
            losses.append(float(logits.logsumexp(0) - logits[token]))
    assert surprise(model, prompt, row) == pytest.approx(sum(losses) / 3, rel=1e-5)


# --- the evaluator -------------------------------------------------------------------------------


def test_a_pruned_model_is_set_beside_the_dense_one():
    dense, pruned = made(tiny_models.PLAIN), made(f"{tiny_models.PLAIN} cut uneven")
    done = []
    ctx = context(dense, limit=5, progress=lambda *at: done.append(at))
    scores = Generation(tokens=10, batch=2).evaluate(pruned, ctx)
    assert list(scores) == ["rouge_l", "by_dense", "distinct_1", "distinct_2", "repetition"]
    ids = [ctx.tokenizer(text).input_ids for text in PROMPTS[:5]]
    own, other = ([by_hand(model, prompt, 10, (1,)) for prompt in ids] for model in (pruned, dense))
    texts = [[ctx.tokenizer.decode([t for t in row if t != 1]) for row in rows] for rows in (own, other)]
    for at, (prompt, row) in enumerate(zip(ids, own, strict=True)):
        key, body = f"generation/{at}", [t for t in row if t != 1]
        assert scores["rouge_l"].documents[key] == rouge_l(texts[0][at], texts[1][at])
        assert scores["by_dense"].documents[key] == pytest.approx(surprise(dense, prompt, row))
        assert scores["distinct_2"].documents[key] == distinct(body, 2)
        assert scores["repetition"].documents[key] == repetition(body)
    assert all(len(score.documents) == 5 for score in scores.values())
    assert scores["by_dense"].scale == "exp-mean"
    assert [name for name, score in scores.items() if score.higher_is_better] == ["rouge_l", "distinct_1", "distinct_2"]
    assert done[-1] == (15, 15)
    assert done == sorted(done)

    texts_shown = scores["rouge_l"].texts
    assert len(texts_shown) == SAMPLES
    assert texts_shown[0] == {"prompt": PROMPTS[0], "dense": texts[1][0], "pruned": texts[0][0]}
    assert not any(score.texts for name, score in scores.items() if name != "rouge_l")
    assert scores["by_dense"].details["prompts"] == IDENTITY


def test_the_dense_model_is_like_itself():
    dense = made(tiny_models.PLAIN)
    scores = Generation(tokens=10).evaluate(dense, context(dense, limit=4))
    assert set(scores["rouge_l"].documents.values()) == {1.0}
    assert not scores["rouge_l"].texts


def test_a_model_that_says_nothing_is_no_better_for_it():
    """Its first token ends every text: no variety, nothing in common; the dense model says how odd that is."""
    dense, mute = made(tiny_models.PLAIN), made(f"{tiny_models.PLAIN} cut uneven")
    ctx = context(dense, limit=1)
    prompt = ctx.tokenizer(PROMPTS[0]).input_ids
    [end] = by_hand(mute, prompt, 1)
    assert by_hand(dense, prompt, 1) != [end]
    anatomy = replace(ctx.anatomy, config={**ctx.anatomy.config, "eos_token_id": end})
    scores = Generation(tokens=6).evaluate(mute, replace(ctx, anatomy=anatomy))
    figures = {name: score.documents["generation/0"] for name, score in scores.items()}
    assert figures.pop("by_dense") == pytest.approx(surprise(dense, prompt, [end]))
    assert figures == dict.fromkeys(("rouge_l", "distinct_1", "distinct_2", "repetition"), 0.0)
    details = scores["distinct_1"].details
    assert (details["ended"], details["empty"], details["tokens_written"]) == (1, 1, 0)


def test_what_enters_a_record_is_small():
    dense, pruned = made(tiny_models.PLAIN), made(f"{tiny_models.PLAIN} cut uneven")
    scores = Generation(tokens=250).evaluate(pruned, context(dense, limit=3))
    assert max(len(text) for row in scores["rouge_l"].texts for text in row.values()) == SHOWN
    assert sum(len(json.dumps([score.details, score.texts])) for score in scores.values()) < 12 * SHOWN * SAMPLES


def test_what_cannot_be_is_told():
    dense = made(tiny_models.PLAIN)
    with pytest.raises(Unsupported, match="more than the 1024") as refused:
        Generation(tokens=1024).evaluate(dense, context(dense, limit=1))
    fits = int(refused.value.remedy.rpartition("=")[2])
    assert fits + len(PROMPTS[0]) == 1024
    with pytest.raises(Unsupported, match="dense"):
        Generation().evaluate(dense, context(dense, dense=None))


def test_prompts_are_short_and_stay_as_they_are():
    """Figures of other prompts do not compare with these: another hash is another version of the evaluator."""
    assert IDENTITY == "924142e6e1bbb5f93f3050511b85bc206ba3c96a2709ad49c6f1b7cf86bd6af3"
    assert len(set(PROMPTS)) == len(PROMPTS) == 40
    assert all(20 < len(text) < 120 and text.isascii() for text in PROMPTS)
    assert not [text for text in PROMPTS if text.endswith(" ")], "a blank at the end belongs to the next token"


class TestGeneration(Conformance):
    name = "generation"
