"""Packing computes each shared prefix once, answers each target once, and shows a token only its own path."""

from __future__ import annotations

import pytest
from harness_lm_eval.packing import STEM, Branch, Node, Request, plan_passes, tree
from hypothesis import given
from hypothesis import strategies as st

TOKEN = st.integers(0, 2)


@st.composite
def requests(draw):
    rows = draw(st.lists(st.lists(TOKEN, min_size=1, max_size=9).map(tuple), min_size=1, max_size=30))
    return [Request(row, tuple(range(draw(st.integers(1, len(row)))))) for row in rows]


def branch_answers(branch: Branch, before=()):
    """(request, position, next token, tokens up to the position) of all answers of the passes of a branch."""
    for node in branch.stem:
        yield from node_answers(node, before)
        before = before + node.tokens
    for nodes in branch.passes:
        for node in nodes:
            yield from tree_answers(node, before)
    for sub_branch in branch.branches:
        yield from branch_answers(sub_branch, before)


def node_answers(node: Node, before):
    assert node.start == len(before)
    for offset, targets in node.targets.items():
        for request, token in targets:
            yield request, node.start + offset, token, before + node.tokens[: offset + 1]


def tree_answers(node: Node, before):
    yield from node_answers(node, before)
    for child in node.children:
        yield from tree_answers(child, before + node.tokens)


@given(requests(), st.integers(1, 40))
def test_every_target_is_answered_once_after_its_own_tokens(all_requests, capacity):
    answers = {}
    for request, position, token, path in branch_answers(plan_passes(all_requests, capacity)):
        assert (request, position) not in answers
        answers[request, position] = token
        assert path == all_requests[request].row[: position + 1]
    expected = {
        (number, len(request.row) - len(request.targets) + at): token
        for number, request in enumerate(all_requests)
        for at, token in enumerate(request.targets)
    }
    assert answers == expected


@given(requests())
def test_a_tree_holds_each_prefix_once(all_requests):
    prefixes = {request.row[:end] for request in all_requests for end in range(1, len(request.row) + 1)}
    assert tree(all_requests).size == len(prefixes)
    assert plan_passes(all_requests, 10_000).tokens == len(prefixes)


@given(requests(), st.integers(9, 40))
def test_a_pass_exceeds_the_capacity_by_a_prefix_at_most(all_requests, capacity):
    def passes(branch):
        yield from branch.passes
        for sub_branch in branch.branches:
            yield from passes(sub_branch)

    longest = max(len(request.row) for request in all_requests)
    plan = plan_passes(all_requests, capacity)
    assert all(sum(node.size for node in nodes) < capacity + longest for nodes in passes(plan))


def test_a_long_shared_prefix_is_a_stem_and_a_short_one_is_not():
    def with_prefix(length):
        return [Request((*range(length), 1000 + at, *range(60)), (7,)) for at in range(12)]

    long, short = plan_passes(with_prefix(STEM), 128), plan_passes(with_prefix(4), 128)
    assert [len(branch.stem) for branch in long.branches] == [1]
    assert long.tokens == STEM + 12 * 61
    assert not short.branches
    assert short.tokens == 12 * 61 + 4 * len(short.passes)


def test_a_row_longer_than_a_pass_has_its_own_pass():
    plan = plan_passes([Request(tuple(range(50)), (1,)), Request((9, 9), (1,))], 10)
    assert sorted(sum(node.size for node in nodes) for nodes in plan.passes) == [2, 50]


def test_a_chain_of_a_thousand_prefixes_needs_no_recursion():
    chain = [Request(tuple(range(end)), (1,)) for end in range(1, 1500)]
    assert plan_passes(chain, 16).tokens >= 1499


@pytest.mark.parametrize("capacity", [4, 64])
def test_equal_rows_are_computed_once(capacity):
    plan = plan_passes([Request((1, 2, 3), (token,)) for token in range(4)], capacity)
    assert plan.tokens == 3
