"""Metrics of texts: variety, repetition and ROUGE-L. Tokens are numbers and words are strings; no model is needed."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

GRAM = 4  # consecutive tokens that count as a repetition


def grams(tokens: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    """All n-grams of the tokens."""
    return [tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1)]


def distinct(tokens: Sequence[Hashable], n: int) -> float:
    """The share of different n-grams. It is 0 for a text without n-grams, so that stopping at once does not pay."""
    all_grams = grams(tokens, n)
    return len(set(all_grams)) / len(all_grams) if all_grams else 0.0


def repetition(tokens: Sequence[Hashable], n: int = GRAM) -> float:
    """The share of tokens in an n-gram that occurs earlier in the text. The two may overlap."""
    earlier, covered = set(), set()
    for at, gram in enumerate(grams(tokens, n)):
        if gram in earlier:
            covered.update(range(at, at + n))
        earlier.add(gram)
    return len(covered) / len(tokens) if tokens else 0.0


def words(text: str) -> list[str]:
    """The words of a text: runs of letters and digits, in lower case."""
    return re.findall(r"\w+", text.casefold())


def common_length(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for a_word in a:
        diagonal = 0
        for at, b_word in enumerate(b, 1):
            above = row[at]
            row[at] = diagonal + 1 if a_word == b_word else max(above, row[at - 1])
            diagonal = above
    return row[-1]


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of words. If either text has no word: 1 if they are equal, else 0."""
    a, b = words(text), words(reference)
    if not a or not b:
        return float(text.strip() == reference.strip())
    return 2 * common_length(a, b) / (len(a) + len(b))
