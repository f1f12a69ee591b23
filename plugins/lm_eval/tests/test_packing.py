"""Every shared beginning once, every asked token once, nothing seen that is not on the path."""

from __future__ import annotations

import pytest
from harness_lm_eval.packing import STEM, Branch, Node, Request, planned, tree
from hypothesis import given
from hypothesis import strategies as st

TOKEN = st.integers(0, 2)


@st.composite
def requests(draw):
    rows = draw(st.lists(st.lists(TOKEN, min_size=1, max_size=9).map(tuple), min_size=1, max_size=30))
    return [Request(row, tuple(range(draw(st.integers(1, len(row)))))) for row in rows]


def answered(branch: Branch, seen=()):
    """(request, position, next token, tokens up to there) of all that the passes answer."""
    for node in branch.stem:
        yield from asked_of(node, seen)
        seen = seen + node.tokens
    for nodes in branch.passes:
        for node in nodes:
            yield from below(node, seen)
    for further in branch.branches:
        yield from answered(further, seen)


def asked_of(node: Node, seen):
    assert node.start == len(seen)
    for offset, asked in node.asked.items():
        for request, token in asked:
            yield request, node.start + offset, token, seen + node.tokens[: offset + 1]


def below(node: Node, seen):
    yield from asked_of(node, seen)
    for child in node.children:
        yield from below(child, seen + node.tokens)


@given(requests(), st.integers(1, 40))
def test_every_request_is_answered_once_with_its_own_tokens_before_it(asked, capacity):
    found = {}
    for request, position, token, path in answered(planned(asked, capacity)):
        assert (request, position) not in found
        found[request, position] = token
        assert path == asked[request].row[: position + 1]
    wanted = {
        (number, len(request.row) - len(request.targets) + at): token
        for number, request in enumerate(asked)
        for at, token in enumerate(request.targets)
    }
    assert found == wanted


@given(requests())
def test_a_tree_holds_each_beginning_once(asked):
    beginnings = {request.row[:end] for request in asked for end in range(1, len(request.row) + 1)}
    assert tree(asked).size == len(beginnings)
    assert planned(asked, 10_000).tokens == len(beginnings)


@given(requests(), st.integers(9, 40))
def test_a_pass_is_longer_by_a_beginning_at_most(asked, capacity):
    def passes(branch):
        yield from branch.passes
        for further in branch.branches:
            yield from passes(further)

    longest = max(len(request.row) for request in asked)
    assert all(sum(node.size for node in nodes) < capacity + longest for nodes in passes(planned(asked, capacity)))


def test_a_long_beginning_of_many_is_a_stem_and_a_short_one_is_not():
    def of(shared):
        return [Request((*range(shared), 1000 + at, *range(60)), (7,)) for at in range(12)]

    long, short = planned(of(STEM), 128), planned(of(4), 128)
    assert [len(branch.stem) for branch in long.branches] == [1]
    assert long.tokens == STEM + 12 * 61
    assert not short.branches
    assert short.tokens == 12 * 61 + 4 * len(short.passes)


def test_a_row_longer_than_a_pass_goes_alone():
    found = planned([Request(tuple(range(50)), (1,)), Request((9, 9), (1,))], 10)
    assert sorted(sum(node.size for node in nodes) for nodes in found.passes) == [2, 50]


def test_a_chain_of_a_thousand_beginnings_needs_no_recursion():
    chain = [Request(tuple(range(end)), (1,)) for end in range(1, 1500)]
    assert planned(chain, 16).tokens >= 1499


@pytest.mark.parametrize("capacity", [4, 64])
def test_equal_rows_are_one(capacity):
    found = planned([Request((1, 2, 3), (token,)) for token in range(4)], capacity)
    assert found.tokens == 3
