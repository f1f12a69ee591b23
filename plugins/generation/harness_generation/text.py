"""Figures of one text. Nothing here knows a model: tokens are numbers, words are strings."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

GRAM = 4  # tokens in a row that make a repetition


def grams(tokens: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    return [tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1)]


def distinct(tokens: Sequence[Hashable], n: int) -> float:
    """Different n-grams over all; 0 where there is none, since stopping at once is no variety."""
    found = grams(tokens, n)
    return len(set(found)) / len(found) if found else 0.0


def repetition(tokens: Sequence[Hashable], n: int = GRAM) -> float:
    """The share of tokens within an n-gram that began earlier in the text; both may overlap."""
    seen, covered = set(), set()
    for at, gram in enumerate(grams(tokens, n)):
        if gram in seen:
            covered.update(range(at, at + n))
        seen.add(gram)
    return len(covered) / len(tokens) if tokens else 0.0


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def common(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest sequence that both hold in this order, with gaps."""
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for at, other in enumerate(b, 1):
            here = row[at]
            row[at] = diagonal + 1 if word == other else max(here, row[at - 1])
            diagonal = here
    return row[-1]


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of words; where either has no word, whether they are the same text."""
    a, b = words(text), words(reference)
    if not a or not b:
        return float(text.strip() == reference.strip())
    return 2 * common(a, b) / (len(a) + len(b))
