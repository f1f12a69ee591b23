"""No input ends a parser: 2,000 mutated ones over all parsers, and those that once did."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from . import mutations
from .catalogue import SHARES, catalogue
from .fuzz import Sandbox
from .inputs import cases, input_files

EXAMPLES, FEWEST = 2000, 8  # over all parsers, and of one
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
warm: set[str] = set()


@pytest.fixture
def sandbox(request, tmp_path):
    """The folder of a parser's inputs. Its libraries are imported before time and memory are looked at."""
    parser = catalogue()[request.param]
    folder = Sandbox(parser, tmp_path)
    with folder.enter():
        for files in parser.examples() if parser.name not in warm else ():
            folder.run(files)
        warm.add(parser.name)
        yield folder


@st.composite
def inputs(draw, parser):
    """A seeded mutation, or a value or a text of hypothesis's in some place."""
    if draw(st.booleans()):
        return parser.input(draw(st.integers(0, 2**40)))
    file = draw(st.sampled_from(sorted(parser.files)))
    if file not in parser.values:
        return {file: draw(st.text(max_size=60)).encode()}
    top = {"": json.loads(parser.values[file])}
    holder, key = draw(st.sampled_from(list(mutations.places(top))))
    holder[key] = draw(VALUES)
    if parser.pack is not None:
        return parser.pack(file, top[""])
    return {file: json.dumps(top[""], ensure_ascii=draw(st.booleans())).encode()}


@pytest.mark.parametrize("sandbox", SHARES, indirect=True)
def test_every_input_is_answered_or_refused(sandbox):
    """Hypothesis chooses the same inputs every time, so that CI is not a matter of luck."""
    share = sandbox.parser.share / sum(SHARES.values())

    @settings(max_examples=max(FEWEST, round(EXAMPLES * share)), derandomize=True, database=None, deadline=None)
    @given(inputs(sandbox.parser))
    def holds(files):
        outcome = sandbox.run(files)
        assert outcome.kind in ("accepted", "refused"), outcome

    holds()


def parameters(case):
    parser, file, what, change = case
    return pytest.param(parser, file, change, id=", ".join(filter(None, (parser, file, what))))


@pytest.mark.parametrize(("sandbox", "file", "change"), map(parameters, cases()), indirect=["sandbox"])
def test_what_once_ended_a_parser(sandbox, file, change):
    outcome = sandbox.run(input_files(sandbox.parser, file, change))
    assert outcome.kind in ("accepted", "refused"), outcome


def test_one_seed_is_one_input():
    parsers = catalogue()
    assert list(parsers) == list(SHARES)
    for parser in parsers.values():
        assert [parser.input(seed) for seed in range(3)] == [parser.input(seed) for seed in range(3)]
