"""Pages from records: rows at equal budgets together, what cannot be told apart marked, pictures, one HTML page."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from harness.cli import cli
from harness.leaderboard import entries, significance, site
from harness.leaderboard.html_page import render_page
from harness.leaderboard.markdown_page import index, table
from harness.leaderboard.ranking import different_pairs
from harness.leaderboard.readme import most_common_settings
from harness.leaderboard.reported import Reported
from harness.leaderboard.rows import boards
from harness.records.schema import Sustained
from harness.records.store import Store

from .. import browser
from ..boards import filled, recovered


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return filled(tmp_path_factory.mktemp("boards") / "runs")


@pytest.fixture
def folder(made, tmp_path):
    """Published, in a folder of its own."""
    done = CliRunner().invoke(cli, ["publish", "set", "--to", str(tmp_path)], env={"HARNESS_RUNS": str(made)})
    assert done.exit_code == 0, done.output
    return tmp_path


def board(made):
    found, outside = boards(entries.runs_entries(Store(made)))
    assert not outside
    (one,) = site.rank_boards(found)
    return one


def test_rows_at_one_budget_stand_together_and_seeds_are_one(made):
    one = board(made)
    groups = {group.budget: [row.spec.pruner for row in group.rows] for group in one.groups}
    assert set(groups) == {
        "at most 0.8x of dense, prefill:1x128",
        "nothing removed",
        "0.3 of the prunable parameters removed",
        "0.6 of the prunable parameters removed",
    }
    assert sorted(groups["0.3 of the prunable parameters removed"]) == ["magnitude", "random"]
    random = next(row for row in one.rows if row.spec.pruner == "random")
    assert len(random.entries) == 2
    (column,) = one.columns
    each = [entry.record.scores["passages"].value for entry in random.entries]
    assert min(each) <= random.value(column) <= max(each)
    assert random.documents[column].keys() == random.entries[0].documents(random.scores[column]).keys()


def test_what_a_device_tells_of_a_model_is_a_column(made):
    group = board(made).groups[-1]
    timing = group.rows[0].timings[0]
    timing.told = {"dense": {"qnn_partitions": 1}, "pruned": {"qnn_partitions": 2, "qnn_binary_bytes": 3_300_000}}
    timing.sustained = Sustained(seconds=180, first_ns=1e6, last_ns=1.25e6, samples="")
    lines = table(board(made), group, [], None)
    assert lines[0]["qnn partitions"] == "2"
    assert lines[0]["qnn binary"] == "3.3 MB"
    assert lines[0]["sustained"] == "1.25 ms after 180 s"
    assert {line["qnn partitions"] for line in lines[1:]} <= {""}


def test_failures_stand_with_their_reason(made):
    lost = [group for group in board(made).groups if group.failures]
    assert [entry.record.status for group in lost for entry in group.failures] == ["unsupported"]
    text = site.terminal_pages(entries.runs_entries(Store(made)))
    assert "**unsupported**: wanda zeroes elements in place" in text


def test_the_best_comes_first_and_others_say_how_far_they_are(made):
    one = board(made)
    group = next(group for group in one.groups if group.budget.startswith("0.6"))
    first, second = table(one, group, [], None)
    assert first["passages vs. best"] == ""
    assert second["passages vs. best"].partition("x [")[1]
    values = [float(line["passages"].split()[0].replace(",", "")) for line in (first, second)]
    assert values == sorted(values)
    assert first["trust"] == "self-reported"


def test_who_differs_is_what_each_pair_says():
    chance = np.random.default_rng(0)
    hard = chance.normal(3, 1, 60)
    rows = [hard + chance.normal(mean, 0.3, 60) for mean in (0, 0.02, 0.1, 0.4)]
    rows.append(rows[0])
    found = set(different_pairs([rows]))
    pairs = [(a, b) for a in range(5) for b in range(a + 1, 5)]
    ps = significance.holm([significance.gap([list(rows[a] - rows[b])]).p for a, b in pairs])
    assert found == {pair for pair, p in zip(pairs, ps, strict=True) if p < 0.05}
    assert (0, 4) not in found
    assert (0, 3) in found


@pytest.mark.parametrize("seed", range(12))
def test_who_differs_is_the_same_where_it_is_close(seed):
    """Tasks of unlike length, and rows that lie about as far apart as chance puts them."""
    chance = np.random.default_rng(seed)
    strata = [
        [hard + chance.normal(at * 0.03, 0.2, len(hard)) for at in range(9)]
        for hard in (chance.normal(0, 1, count) for count in (15, 40, 90))
    ]
    pairs = list(itertools.combinations(range(9), 2))
    gaps = [significance.gap([(part[a] - part[b]).tolist() for part in strata]).p for a, b in pairs]
    differ = [pair for pair, p in zip(pairs, significance.holm(gaps), strict=True) if p < 0.05]
    assert different_pairs(strata) == differ
    assert 0 < len(differ) < len(pairs)


def test_machines_stand_apart(made, tmp_path):
    store = Store(Path(shutil.copytree(made, tmp_path / "runs")))
    for record in store.records():
        if record.spec.pruner == "random":
            environment = record.environment.model_copy(update={"device": {"model": "Another", "threads": 2}})
            store.save_record(record.model_copy(update={"environment": environment}).sealed())
    text = site.terminal_pages(entries.runs_entries(store))
    removed = "## 0.3 of the prunable parameters removed, on"
    for machine, method in (("Another, 2 threads", "random"), ("bench", "magnitude")):
        rows = text.partition(f"{removed} {machine}\n")[2].partition("\n## ")[0]
        assert re.findall(r"^\| `([\w-]+)`", rows, re.MULTILINE) == [method]


def test_an_excerpt_has_of_each_method_what_is_common_not_what_is_best():
    def row(pruner, settings):
        spec = SimpleNamespace(pruner=pruner, preset="quick", calibration="c4")
        return SimpleNamespace(spec=spec, settings=settings)

    asked = (("a", "swaps=0"), ("a", ""), ("a", "lr=1 steps=9"), ("b", "x=1"), ("b", ""))
    ablation, plain, common, odd, even = here = [row(*one) for one in asked]
    assert most_common_settings(here, [*here, row("a", "lr=1 steps=9")]) == [common, even]
    assert most_common_settings(here, here) == [plain, even]  # of what is as common the one with the fewest settings
    assert most_common_settings([ablation, odd], [*here, row("a", "lr=1 steps=9")]) == [ablation, odd]  # here


def test_what_recovered_in_another_way_stands_in_another_table(made, tmp_path):
    runs = Path(shutil.copytree(made, tmp_path / "runs"))
    together = board(runs)
    recovered(runs, "random", 0.3, "lora:samples=4")
    one, removed = board(runs), "0.3 of the prunable parameters removed"
    groups = {group.title: group for group in one.groups if group.budget == removed}
    assert list(groups) == [removed, f"{removed}, after lora"]
    assert [[row.spec.pruner for row in group.rows] for group in groups.values()] == [["magnitude"], ["random"]]
    assert any(row.letters for group in together.groups if group.budget == removed for row in group.rows)
    assert not any(row.letters for group in groups.values() for row in group.rows)  # each is alone
    text = index({"tiny.md": [one]}, [], tmp_path)
    assert len(one.groups) == 5
    assert re.findall(r"^\| \[tiny\].*", text, re.MULTILINE)[0].split("|")[5].strip() == "4"  # different budgets
    assert f"\n## {removed}, after lora\n" in site.terminal_pages(entries.runs_entries(Store(runs)))


def test_parameters_are_those_that_are_stored_and_masks_show_beside_them(made):
    one = board(made)
    (group,) = [group for group in one.groups if group.budget == "nothing removed"]
    artefact = group.rows[0].record.artefact
    artefact.params, artefact.params_nonzero = 3_000_000, 2_980_000  # some are zero in every model
    assert "parameters, non-zero" not in table(one, group, [], None)[0]
    artefact.params_nonzero = 2_000_000
    (first,) = table(one, group, [], None)
    assert (first["parameters"], first["parameters, non-zero"]) == ("3.0 M", "2.0 M")


def test_pages_are_made_checked_and_brought_up_to_date(folder):
    run = CliRunner()
    assert run.invoke(cli, ["leaderboard", str(folder), "--check"]).exit_code == 1
    assert run.invoke(cli, ["leaderboard", str(folder)]).exit_code == 0
    assert run.invoke(cli, ["leaderboard", str(folder), "--check"]).exit_code == 0
    page = folder / "tiny" / "bench-prefill-1x128.md"
    text = page.read_text()
    assert "![bench-prefill-1x128-passages.svg]" in text
    assert "(../results/set/" in text
    assert "[tiny](tiny/bench-prefill-1x128.md)" in (folder / "README.md").read_text()
    page.write_text(text.replace("magnitude", "magnificent", 1))
    (folder / "tiny" / "by-hand.md").write_text("mine")
    done = run.invoke(cli, ["leaderboard", str(folder), "--check"])
    assert done.exit_code == 1
    assert "bench-prefill-1x128.md is out of date: would be replaced" in done.output
    assert "by-hand.md" not in done.output
    run.invoke(cli, ["leaderboard", str(folder)])
    assert page.read_text() == text
    assert (folder / "tiny" / "by-hand.md").read_text() == "mine"


def test_one_page_for_a_browser(folder, tmp_path):
    out = tmp_path / "all.html"
    done = CliRunner().invoke(cli, ["leaderboard", str(folder), "--html", str(out)])
    assert done.exit_code == 0, done.output
    text = out.read_text()
    assert text.count("<tr>") == 3 + 5  # heads and rows
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    assert "<li class=failed>wanda" in text
    assert "$" not in text


@pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium on this machine")
def test_a_browser_sorts_and_filters(made, folder, tmp_path):
    out = tmp_path / "all.html"
    CliRunner().invoke(cli, ["leaderboard", str(folder), "--html", str(out)])
    window = browser.Browser()

    def methods():
        """Of the rows that show."""
        rows = "[...document.querySelectorAll('tbody tr')].filter(row => row.offsetParent)"
        return window.evaluate(f"{rows}.map(row => row.cells[0].textContent)")

    click = "[...document.querySelectorAll('th')].filter(h => h.textContent === 'passages').forEach(h => h.click())"
    try:
        window.open(out)
        assert len(methods()) == 5
        window.open(out, "random%200.6")
        assert methods() == ["random"]
        window.evaluate("document.querySelector('form').requestSubmit()")
        assert methods() == ["random"]
        window.open(out, "0.6")
        window.evaluate(click)
        best = methods()
        window.evaluate(click)
        worst = methods()
        assert window.refused == []
    finally:
        window.close()
    assert best == worst[::-1]
    group = next(group for group in board(made).groups if group.budget.startswith("0.6"))
    assert best == [row.spec.pruner for row in group.rows]


def test_what_is_reported_stands_apart_and_the_gap_where_the_setting_is_the_same(made):
    one = board(made)
    row = next(row for row in one.rows if row.spec.pruner == "magnitude")
    (column,) = one.columns
    known = {
        "pruner": "magnitude",
        "model": "tiny",
        "setting": "-",
        "source": "a paper",
        "ratio": row.spec.budget.value,
    }
    told = Reported(**known, scores={"passages": row.value(column) - 1}, taken={"passages": "window 512"})
    assert told.gap(row) == ""  # that was the paper's setting, this is a quick one
    row.record.spec.preset = "paper"
    try:
        assert told.gap(row) == "passages +1"
        assert told.model_copy(update={"taken": {"passages": "window 2048"}}).gap(row) == ""
    finally:
        row.record.spec.preset = "quick"


def test_an_edited_record_of_a_runs_folder_is_set_aside_and_named(made, tmp_path):
    runs = shutil.copytree(made, tmp_path / "copy")
    path = sorted((runs / "records").glob("*.json"))[0]
    words = json.loads(path.read_text())
    words["spec"]["seed"] = 77
    path.write_text(json.dumps(words))
    done = CliRunner().invoke(cli, ["leaderboard"], env={"HARNESS_RUNS": str(runs)})
    assert done.exit_code == 0, done.output
    assert "was edited since it was written" in done.stderr
    assert not path.exists()


def test_a_published_record_that_was_edited_is_named_and_left_out(folder):
    paths = sorted((folder / "results" / "set").glob("*.json"))
    path = next(path for path in paths if '"seed": 0' in path.read_text())
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 5'))
    done = CliRunner().invoke(cli, ["leaderboard", str(folder)])
    assert done.exit_code == 1
    assert f"error: {path} was edited" in done.stderr
    assert path.exists()
    assert not any(path.stem in page.read_text() for page in folder.rglob("*.md"))


def test_many_pages_are_made_by_many_processes(made, monkeypatch):
    here = render_page(entries.runs_entries(Store(made)), made)
    monkeypatch.setattr("harness.leaderboard.html_page.FEW", 0)
    monkeypatch.setattr("harness.system.parallel.cores", lambda: 2)
    assert render_page(entries.runs_entries(Store(made)), made) == here
