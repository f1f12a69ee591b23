"""What is said of differences holds as often as it claims: simulations with known truth."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.evaluation import score_stats
from harness.formatting import figure
from harness.leaderboard import significance

TRIALS = 400


def answers(chance: random.Random, documents: int, gap: float, disagree: float) -> tuple[list[float], list[float]]:
    """Two models' right and wrong answers: they agree but on a share of the documents."""
    first, second = [], []
    for _ in range(documents):
        right = chance.random() < 0.6
        turn = chance.random()
        ours, theirs = right, right
        if turn < (disagree + gap) / 2:
            ours, theirs = True, False
        elif turn < disagree:
            ours, theirs = False, True
        first.append(float(ours))
        second.append(float(theirs))
    return first, second


def apart(first: list[float], second: list[float]) -> list[float]:
    return [one - other for one, other in zip(first, second, strict=True)]


def test_the_tail_of_t_is_that_of_tables():
    for t, freedom, expected in ((12.706, 1, 0.05), (2.571, 5, 0.05), (2.042, 30, 0.05), (2.576, 1e7, 0.01)):
        assert significance.t_tail(t, freedom) == pytest.approx(expected, rel=2e-3)
    assert significance.t_tail(0.0, 7) == 1
    assert significance.t_tail(math.inf, 7) == 0
    scipy = pytest.importorskip("scipy.stats", reason="an independent t distribution")
    for t, freedom in itertools.product((0.1, 1.0, 3.3, 9.0), (1, 2.5, 17, 400)):
        assert significance.t_tail(t, freedom) == pytest.approx(2 * scipy.t.sf(t, freedom), rel=1e-9)


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda chance: [chance.gauss(0.3, 1.0) for _ in range(12)], 0.3),
        (lambda chance: [math.log1p(chance.gammavariate(2, 0.5)) for _ in range(40)], None),  # windows of a text
        (lambda chance: apart(*answers(chance, 1000, 0.02, 0.05)), 0.02),
        (lambda chance: apart(*answers(chance, 200, 0.05, 0.3)), 0.05),
    ],
    ids=["normal", "skewed", "answers", "few-answers"],
)
def test_intervals_hold_the_truth_as_often_as_they_say(draw, truth):
    chance = random.Random(7)
    if truth is None:
        truth = sum(sum(draw(chance)) / 40 for _ in range(5000)) / 5000
    held = 0
    for _ in range(3 * TRIALS):
        bounds = significance.gap([draw(chance)]).ci95
        held += bounds[0] <= truth <= bounds[1]
    assert 0.93 <= held / (3 * TRIALS) <= 0.97


def test_several_tasks_count_alike():
    chance = random.Random(11)
    held = 0
    for _ in range(TRIALS):
        strata = [[chance.gauss(0.1, 1) for _ in range(30)], [chance.gauss(0.3, 3) for _ in range(80)]]
        bounds = significance.gap(strata).ci95
        held += bounds[0] <= 0.2 <= bounds[1]
    assert 0.92 <= held / TRIALS <= 0.98


def test_two_points_of_a_thousand_documents_are_found_by_pairing():
    """The models agree on 95 % of the documents, as a model and its pruned self do; unpaired nobody would know."""
    chance = random.Random(3)
    paired = unpaired = 0
    for _ in range(TRIALS):
        first, second = answers(chance, 1000, 0.02, 0.05)
        paired += significance.gap([apart(first, second)]).p < 0.05
        (one, spread), (other, wide) = score_stats.mean_stderr(first), score_stats.mean_stderr(second)
        unpaired += abs(one - other) > 1.96 * math.hypot(spread, wide)
    assert paired / TRIALS >= 0.7
    assert unpaired / TRIALS < 0.3


def test_equal_models_share_a_letter():
    chance = random.Random(5)
    shared = 0
    for _ in range(TRIALS):
        hardness = [chance.gauss(0, 2) for _ in range(100)]
        models = [[hard + chance.gauss(0, 1) for hard in hardness] for _ in range(5)]
        models.append([value + 5 for value in models[0]])
        pairs = list(itertools.combinations(range(6), 2))
        ps = significance.holm([significance.gap([apart(models[a], models[b])]).p for a, b in pairs])
        given = significance.letters(6, [pair for pair, p in zip(pairs, ps, strict=True) if p < 0.05])
        shared += bool(set.intersection(*map(set, given[:5])))
        assert not set(given[5]) & set(given[0])
    assert shared / TRIALS >= 0.94


@given(
    st.integers(1, 7).flatmap(
        lambda n: st.tuples(st.just(n), st.sets(st.sampled_from(_pairs(n)) if n > 1 else st.nothing()))
    )
)
def test_a_letter_is_shared_exactly_by_those_that_are_not_told_apart(case):
    count, differ = case
    given = significance.letters(count, differ)
    assert all(given)
    for pair in _pairs(count):
        assert bool(set(given[pair[0]]) & set(given[pair[1]])) == (pair not in differ)


def _pairs(count: int) -> list[tuple[int, int]]:
    return list(itertools.combinations(range(count), 2))


def test_holm_never_claims_more_than_it_may():
    assert significance.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert significance.holm([0.9, 0.8]) == [1.0, 1.0]
    assert significance.holm([]) == []


def test_nothing_to_tell_apart():
    assert significance.gap([]) is None
    assert significance.gap([[]]) is None
    assert significance.gap([[1.0]]).p == 1
    assert significance.gap([[0.0] * 30]) == significance.Gap(0.0, None, 1.0)


@pytest.mark.parametrize(
    ("value", "digits", "words"),
    [
        (10_701, 3, "10,700"),
        (783_526.4, 4, "783,500"),
        (999.96, 4, "1,000"),
        (104_000, 2, "100,000"),
        (334, 2, "330"),
        (98.214, 3, "98.2"),
        (0.045678, 4, "0.04568"),
        (1e300, 3, "1e+300"),
        (float("inf"), 3, "inf"),
    ],
)
def test_large_figures_have_no_exponent(value, digits, words):
    assert figure(value, digits) == words
