"""What magnitude promises beyond the harness's own checks."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from harness_magnitude import n_of_m, shares, smallest

from harness import Unsupported
from harness.conformance import Conformance


def weights():
    torch.manual_seed(0)
    return {"a": torch.randn(6, 8), "b": torch.randn(10, 4), "c": torch.randn(3, 12)}


@pytest.mark.parametrize("goal", [0, 1, 17, 62, 123, 124])
def test_shares_add_up_to_the_goal(goal):
    counts = shares(weights(), goal)
    assert sum(counts.values()) == goal
    for name, weight in weights().items():
        assert abs(counts[name] - goal * weight.numel() / 124) < 1


def test_more_than_there_is_is_refused():
    with pytest.raises(Unsupported, match="not there"):
        shares(weights(), 125)


def test_the_smallest_of_each_matrix_go():
    for name, mask in smallest(weights(), 60).items():
        weight = weights()[name].abs()
        assert weight[~mask].max() <= weight[mask].min()


def test_ties_are_settled_alike_each_time():
    ties = {"a": torch.ones(4, 4)}
    assert torch.equal(smallest(ties, 5)["a"], smallest(ties, 5)["a"])
    assert int((~smallest(ties, 5)["a"]).sum()) == 5


def test_n_of_m_zeroes_the_smallest_of_each_block_and_tops_up():
    masks = n_of_m(weights(), 2, 4, goal=66)
    assert sum(int((~mask).sum()) for mask in masks.values()) == 66
    for name, mask in masks.items():
        zeros = (~mask).view(-1, 4).sum(1)
        assert int(zeros.min()) == 2
        blocks, kept = weights()[name].abs().view(-1, 4), mask.view(-1, 4)
        exact = zeros == 2
        assert (blocks.masked_fill(kept, 0).amax(1) <= blocks.masked_fill(~kept, torch.inf).amin(1))[exact].all()


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(Unsupported, match="multiple of 4"):
        n_of_m({"a": torch.ones(2, 6)}, 2, 4, goal=6)


class TestStructured(Conformance):
    name = "magnitude"


class TestGlobal(Conformance):
    name = "magnitude"
    settings: ClassVar = {"allocation": "global", "score": "output"}


class TestUnstructured(Conformance):
    name = "magnitude"
    settings: ClassVar = {"granularity": "unstructured"}


class TestPattern(Conformance):
    name = "magnitude"
    settings: ClassVar = {"granularity": "2:4"}
