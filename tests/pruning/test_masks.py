"""N:M masks: zeros in every group, ties from the left, clear refusals."""

from __future__ import annotations

import pytest
import torch

from harness import Unsupported
from harness.pruning.masks import PATTERNS, check_columns, check_ratio, group_mask, sort_groups


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_lowest_scores_of_every_group_become_zero(pattern):
    zeros, group = PATTERNS[pattern]
    scores = torch.rand(6, 16, generator=torch.Generator().manual_seed(0))
    mask = group_mask(sort_groups(scores, group), zeros)
    groups = scores.view(-1, group)
    assert mask.shape == groups.shape
    assert (~mask).sum(dim=1).tolist() == [zeros] * len(groups)
    assert (groups.masked_fill(mask, 0).amax(dim=1) <= groups.masked_fill(~mask, torch.inf).amin(dim=1)).all()


def test_equal_scores_become_zero_from_the_left():
    assert group_mask(sort_groups(torch.ones(1, 8), 4), 2).tolist() == [[False, False, True, True]] * 2


def test_a_ratio_must_be_the_share_of_the_pattern():
    check_ratio("1:4", 0.25)
    with pytest.raises(Unsupported, match=r"1:4 zeroes 0.25 of the weights, not 0.3") as error:
        check_ratio("1:4", 0.3)
    assert error.value.remedy == "give --ratio 0.25"


def test_rows_must_divide_into_groups():
    check_columns("a", 8, 4)
    with pytest.raises(Unsupported, match="rows of a have 6 weights, not a multiple of 4"):
        check_columns("a", 6, 4)
