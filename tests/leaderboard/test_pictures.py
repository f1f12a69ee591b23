"""Mean accuracies and pictures: who is worth a look, and that all of it can be read."""

from __future__ import annotations

import itertools
from xml.etree import ElementTree

import pytest

from harness.leaderboard import entries, site
from harness.leaderboard.markdown_page import table
from harness.leaderboard.pareto import pictures
from harness.leaderboard.ranking import gap_between, rank_group, shared_accuracies
from harness.leaderboard.rows import LEVEL, boards
from harness.leaderboard.scatter import Point, scatter
from harness.records.store import Store

from ..boards import WATTS, answered, filled, recovered

SVG = "{http://www.w3.org/2000/svg}"
CLEAR = {
    ("dense", 0.0): 45,
    ("magnitude", 0.3): 35,
    ("magnitude", 0.6): 28,
    ("random", 0.3): 20,
    ("random", 0.6): 10,
}
CLOSE = CLEAR | {("magnitude", 0.3): 43, ("magnitude", 0.6): 41}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return filled(tmp_path_factory.mktemp("pictures") / "runs")


def board(runs):
    ((one,), outside) = boards(entries.runs_entries(Store(runs)))
    assert not outside
    site.rank_boards([one])
    return one


def marks(svg):
    """Of each marker that tells what it is the method and the figure, and whether it is hollow."""
    found = {}
    for node in ElementTree.fromstring(svg).iter():
        if (told := node.find(f"{SVG}title")) is not None:
            found[told.text.partition(" ")[0], told.text.rpartition(", ")[2]] = node.get("fill") == "#fff"
    return found


def test_several_accuracies_are_one_figure_by_which_rows_stand(made, tmp_path):
    one = board(answered(made, tmp_path / "runs", CLEAR))
    group = next(group for group in one.groups if group.budget.startswith("0.6"))
    first, second = table(one, group, [], None)
    assert (first["method"], first["mean accuracy"]) == ("magnitude", "0.51 ± 0.05 a")
    assert (second["method"], second["mean accuracy"].split()[0]) == ("random", "0.15")
    assert second["mean accuracy"].endswith(" b")
    assert second["mean accuracy vs. best"].startswith("-0.36 [-0.4")
    passages = [column for column in one.columns if column.name == "passages"]
    rank_group(group, one.columns, by=passages)
    assert "passages vs. best" in table(one, group, [], None)[0]
    assert "Mean accuracy: over quiz, riddles." in site.terminal_pages(entries.runs_entries(Store(tmp_path / "runs")))


def test_a_row_is_hollow_where_another_one_is_known_to_be_better(made, tmp_path):
    runs = answered(made, tmp_path / "runs", CLEAR)
    drawn = pictures(board(runs))
    assert list(drawn) == ["passages", "mean-accuracy"]
    hollow = marks(drawn["mean-accuracy"])
    assert hollow["dense:", "dense: 0.85"] is False  # what all started from
    solid = [("dense", "0.85"), ("magnitude", "0.65"), ("magnitude", "0.51")]
    assert [hollow[mark] for mark in solid] == [False, False, False]
    assert hollow["random", "0.35"] is True  # slower than magnitude at 0.6, and worse
    recovered(runs, "random", 0.3, "lora:samples=4")
    assert marks(pictures(board(runs))["mean-accuracy"])["random", "0.35"] is False  # alone with its recovery


def test_what_the_correction_leaves_in_doubt_makes_a_slower_row_hollow(made, tmp_path):
    one = board(answered(made, tmp_path / "runs", CLOSE))
    main = shared_accuracies(next(group for group in one.groups if group.rows))
    at = {(row.spec.pruner, row.spec.budget.value): row for row in one.rows}
    assert gap_between(at["dense", 0.0], at["magnitude", 0.3], main).p < LEVEL  # of one pair that would be enough
    hollow = marks(pictures(one)["mean-accuracy"])
    assert [hollow[mark] for mark in (("dense", "0.85"), ("magnitude", "0.81"))] == [True, True]
    assert hollow["magnitude", "0.77"] is False


def test_joules_stand_where_records_have_them(made):
    one = board(made)
    for group in one.groups:
        for row, line in zip(group.rows, table(one, group, [], None), strict=True):
            assert float(line["mJ per token"]) == pytest.approx(WATTS * row.ms / 128, rel=0.01)
    group.rows[0].record.energy.pruned = None
    assert "mJ per token" in table(one, group, [], None)[0]
    for row in group.rows:
        for entry in row.entries:
            entry.record.energy.pruned = None
    assert "mJ per token" not in table(one, group, [], None)[0]


def test_pictures_are_the_same_text_each_time(made):
    first, again = (pictures(board(made)) for _ in range(2))
    assert first == again
    assert list(first) == ["passages"]
    titles = [node.text for node in ElementTree.fromstring(first["passages"]).iter(f"{SVG}title")]
    assert len(titles) == 1 + 4 + 1  # dense as a row, two methods at two budgets, dense as what all started from
    assert any("magnitude" in title for title in titles)


def crowd(apart):
    """Methods with about the same latency and very unlike scores, most of them beyond an edge of 480."""
    names = [f"method-{'x' * at} + least-squares" for at in range(9)]
    found = [
        Point(name, "", 0.46 + apart * at, 40.0 * 4.7**at, hollow=at % 2 == 1, tooltip=f"{name}: told")
        for at, name in enumerate(names)
    ]
    return found, Point("dense", "", 1.0, 38.5, tooltip="dense: told")


def boxes(svg):
    """Where each word lies, about: left, right, top, bottom; but for the one along the axis, which is turned."""
    for node in ElementTree.fromstring(svg).iter(f"{SVG}text"):
        if node.get("transform") is None:
            x, y, wide = float(node.get("x")), float(node.get("y")), 6 * len(node.text)
            left = x - wide * {"start": 0, "middle": 0.5, "end": 1}[node.get("text-anchor")]
            yield node.text, (left, left + wide, y - 9, y + 2)


@pytest.mark.parametrize("apart", [0.0, 0.002, 0.02, 0.06])
def test_words_of_a_picture_do_not_overlap_and_none_is_cut(apart):
    points, dense = crowd(apart)
    svg = scatter(points, "all of them", "time", "score", log=True, edge=480.0, mark=dense)
    again = scatter(points[::-1], "all of them", "time", "score", log=True, edge=480.0, mark=dense)
    assert sorted(again.splitlines()) == sorted(svg.splitlines())
    found = list(boxes(svg))
    assert sum(text.startswith("↑ ") for text, _ in found) == 7 + 1  # and what the arrow means
    for (one, a), (other, b) in itertools.combinations(found, 2):
        apart_at = a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2]
        assert apart_at, f"{one} and {other}"
    left, top, wide, high = map(float, ElementTree.fromstring(svg).get("viewBox").split())
    for text, (start, end, up, down) in found:
        assert left <= start, text
        assert end <= left + wide, text
        assert top <= up, text
        assert down <= top + high, text


def test_beyond_the_edge_a_method_keeps_its_marker():
    points, dense = crowd(0.002)
    root = ElementTree.fromstring(scatter(points, "", "", "", log=True, edge=480.0, mark=dense))
    drawn = [node for node in root if node.tag in (f"{SVG}circle", f"{SVG}polygon")]
    told = {node.find(f"{SVG}title").text: node for node in drawn if len(node)}
    legend = [node for node in drawn if not len(node)]
    assert len(told) == len(legend) == 10
    for point, shown in zip(points, legend, strict=False):  # last in the legend is dense
        mine = told[point.tooltip]
        assert (mine.tag, mine.get("stroke")) == (shown.tag, shown.get("stroke"))
        assert len(mine.get("points", "").split()) == len(shown.get("points", "").split())
        assert (mine.get("fill") == "#fff") is point.hollow
