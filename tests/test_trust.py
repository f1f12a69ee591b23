"""What was changed is named, what does not follow is refused, and two records are compared on what both saw."""

from __future__ import annotations

import gzip
import json
import random
import shutil

import pytest
from click.testing import CliRunner

from harness.cli import cli
from harness.leaderboard.entries import Entry, of_runs
from harness.records import Record, digest, seal
from harness.store import Store
from harness.trust import verify
from harness.trust.compare import compared
from harness.trust.validate import judged, named_samples

from .boards import filled


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return filled(tmp_path_factory.mktemp("trust") / "runs")


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made, tmp_path / "runs", ignore=shutil.ignore_patterns("artefacts", "cuts"))


def harness(*words, runs):
    return CliRunner().invoke(cli, list(words), env={"HARNESS_RUNS": str(runs)})


def entry(runs, pruner="magnitude"):
    return next(entry for entry in of_runs(Store(runs)) if entry.words["spec"]["pruner"] == pruner)


def rewrite(one, words):
    """As somebody would who knows how records are sealed."""
    words["digest"] = digest(words)
    words["seal"] = seal(words)
    one.path.write_text(json.dumps(words))


def faults(one):
    (verdict,) = judged([one], one.side.parent)
    return verdict.faults


def test_what_harness_wrote_is_right(made):
    done = harness("validate", runs=made)
    assert done.exit_code == 0, done.output
    assert "8 records, 0 wrong" in done.output


def test_any_changed_byte_of_a_record_is_named(copy):
    one, chance = entry(copy), random.Random(0)
    content = one.path.read_bytes()
    for _ in range(60):
        at = chance.randrange(len(content))
        changed = bytearray(content)
        changed[at] = changed[at] ^ 1
        one.path.write_bytes(changed)
        if json.loads(content) == _loads(changed):
            continue  # white space, or a digit that means the same number
        done = harness("validate", runs=copy)
        assert done.exit_code == 1, (at, content[at - 20 : at + 20])
        assert one.path.name in done.output
    one.path.write_bytes(content)
    assert harness("validate", runs=copy).exit_code == 0


def _loads(content):
    try:
        return json.loads(content)
    except ValueError:
        return None


@pytest.mark.parametrize(
    "change",
    [
        lambda words: words.update(trust="verified"),
        lambda words: words.update(trust="gold"),
        lambda words: words["history"].clear(),
        lambda words: words["history"][0].update(command="harness run --pruner better"),
        lambda words: words.pop("seal"),
    ],
)
def test_so_is_what_is_said_of_a_row_afterwards(copy, change):
    one = entry(copy)
    words = json.loads(one.path.read_text())
    if "seal" in change.__code__.co_consts:
        words = Record.model_validate(words).model_copy(update={"trust": "verified"}).words()
    change(words)
    one.path.write_text(json.dumps(words))
    assert faults(Entry(one.path, one.side))


def test_no_documents_are_no_evidence(copy):
    one = entry(copy)
    words = json.loads(one.path.read_text())
    words["scores"]["passages"]["samples"] = Store(copy).side_file({"documents": {}, "scale": "exp-mean"})
    rewrite(one, words)
    assert "not those of such a score" in faults(Entry(one.path, one.side))[0]


@pytest.mark.parametrize("words", [{"spec": {}}, {"spec": []}, [], "x", {"scores": {"q": {}}}])
def test_what_is_no_record_is_named_and_stops_nothing(copy, words):
    (copy / "records" / "bad.json").write_text(json.dumps(words))
    done = harness("validate", runs=copy)
    assert done.exit_code == 1
    assert "bad.json: is not a record" in done.output
    assert "9 records, 1 wrong" in done.output
    assert "magnitude" in harness("leaderboard", runs=copy).output


def test_any_changed_byte_of_a_sample_is_named(copy):
    one, chance = entry(copy), random.Random(1)
    for name in named_samples(one.words):
        path = one.side / name
        content = path.read_bytes()
        changed = bytearray(content)
        changed[chance.randrange(10, len(content))] ^= 8
        path.write_bytes(changed)
        assert any(name in fault for fault in faults(Entry(one.path, one.side))), name
        path.write_bytes(content)
    path.unlink()
    assert "1 files of samples are missing" in faults(Entry(one.path, one.side))[0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda words: words["scores"]["passages"].update(value=9.0), "passages: value is 9.0 in the record"),
        (lambda words: words["scores"]["passages"].update(n=3), "passages: n is 3"),
        (lambda words: words["latency"]["prefill:1x128"].update(speedup=9.0), "speedup is 9.0"),
        (lambda words: words["latency"]["prefill:1x128"]["pruned"].update(median_ns=1.0), "pruned.median_ns is 1.0"),
        (lambda words: words["spec"].update(device="null"), "device in the record, but null is simulated"),
        (lambda words: words["scores"]["passages"].update(dense=9.0), "passages: dense is 9.0"),
        (lambda words: words["scores"]["passages"].update(change=0.5), "passages: change is 0.5"),
        (lambda words: words["scores"]["passages"].update(scale="mean"), "not those of such a score"),
        (lambda words: words["gates"][0].update(ok=False), "noise floor"),
        (lambda words: words["artefact"].update(ratio_blocks=0.9), "ratio_blocks is 0.9"),
        (lambda words: words["artefact"].update(params_dense=9), "params_dense is 9"),
        (lambda words: words["flops"]["prefill:1x128"].update(pruned=9.0), "pruned FLOPs of prefill:1x128 are 9.0"),
        (lambda words: words["budget"].update(achieved=0.9), "the budget says 0.9"),
        (lambda words: words["budget"].update(asked=0.9), "says that 0.9 was asked"),
        (lambda words: words["budget"].update(unused=0.9), "says that 0.9 is unused"),
        (lambda words: words.update(status="failed"), "failed without a reason"),
        (lambda words: words.update(latency={}), "ok, but without a model or a latency"),
    ],
)
def test_a_row_whose_figures_do_not_follow_from_its_samples_is_refused(copy, change, told):
    """Even if whoever changed it has sealed it anew."""
    one = entry(copy)
    words = json.loads(one.path.read_text())
    change(words)
    rewrite(one, words)
    assert any(told in fault for fault in faults(Entry(one.path, one.side)))
    done = harness("publish", "set", "--to", str(copy / "boards"), runs=copy)
    assert done.exit_code == 1
    assert f"refused  {one.path.stem[:12]}" in done.output
    assert not (copy / "boards" / "results" / "set" / one.path.name).exists()
    assert len(list((copy / "boards" / "results" / "set").glob("*.json"))) == 7


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda words: words["environment"]["git"].update(dirty=True), "uncommitted changes"),
        (lambda words: words["spec"].update(limit=39), "limited to 39 documents"),
        (lambda words: words.update(status="unstable", reason="noise"), "unstable: noise"),
        (lambda words: words.update(conformance=None), "was not checked"),
        (lambda words: words.update(unscored={"mmlu": "no data"}), "no score of mmlu"),
    ],
)
def test_what_others_could_not_rely_on_is_not_published(copy, change, told):
    one = entry(copy)
    words = json.loads(one.path.read_text())
    change(words)
    rewrite(one, words)
    assert harness("validate", runs=copy).exit_code == 0  # it is what it says
    done = harness("publish", "set", one.path.stem[:10], "--to", str(copy / "boards"), runs=copy)
    assert done.exit_code == 1
    assert told in done.output


def test_what_is_published_is_whole_and_nothing_else(copy):
    boards = copy / "boards"
    assert harness("publish", "set", "--to", str(boards), runs=copy).exit_code == 0
    (boards / "results" / "set" / "samples" / f"{'0' * 64}.json.gz").write_bytes(gzip.compress(b"{}"))
    done = harness("validate", str(boards), runs=copy)
    assert done.exit_code == 1
    assert "no record names it" in done.output
    assert harness("publish", "set", "--to", str(boards), runs=copy).exit_code == 0
    assert harness("validate", str(boards), runs=copy).exit_code == 0


def test_of_one_question_the_newest_stands_and_nothing_is_lost(copy):
    boards, one = copy / "boards", entry(copy)
    words = json.loads(one.path.read_text())
    for at, year in enumerate((2000, 2099)):
        later = words | {"id": f"{at}" * 24, "finished": f"{year}-01-01T00:00:00+00:00"}
        rewrite(Entry(one.path, one.side), words)
        later |= {"digest": digest(later)}
        (copy / "records" / f"{later['id']}.json").write_text(json.dumps(later | {"seal": seal(later)}))
    for _ in range(3):
        done = json.loads(harness("publish", "set", "--to", str(boards), "--json", runs=copy).output)
        there = {path.stem for path in (boards / "results" / "set").glob("*.json")}
        assert there == set(done["taken"])
        assert "1" * 24 in there
        assert set(done["older"]) == {"0" * 24, one.path.stem}
        assert done["refused"] == {}
    (copy / "records" / f"{'1' * 24}.json").unlink()  # an older one does not take the place of what stands there
    done = json.loads(harness("publish", "set", "--to", str(boards), "--json", runs=copy).output)
    assert "1" * 24 in {path.stem for path in (boards / "results" / "set").glob("*.json")}
    assert done["older"][one.path.stem] == "1" * 24


def test_failures_are_published_and_trust_is_kept(copy):
    boards = copy / "boards"
    assert harness("publish", "set", "--to", str(boards), runs=copy).exit_code == 0
    kept = [json.loads(path.read_text()) for path in (boards / "results" / "set").glob("*.json")]
    assert {words["status"] for words in kept} == {"ok", "unsupported"}
    path = boards / "results" / "set" / entry(copy).path.name
    path.write_text(
        json.dumps(Record.model_validate(json.loads(path.read_text()) | {"trust": "verified"}).sealed().words())
    )
    assert harness("publish", "set", "--to", str(boards), runs=copy).exit_code == 0
    assert json.loads(path.read_text())["trust"] == "verified"


def test_two_records_are_compared_on_the_documents_that_both_saw(copy):
    first, second = entry(copy, "dense"), entry(copy, "magnitude")
    words = compared(first, second)
    score = words["scores"]["passages"]
    assert score["n"] == first.record.scores["passages"].n
    assert score["change"] == pytest.approx(score["second"] / score["first"])
    assert score["ci95"][0] < score["change"] < score["ci95"][1]
    ratio = words["latency"]["prefill:1x128"]["ratio"]
    assert ratio == pytest.approx(
        first.record.latency["prefill:1x128"].speedup / second.record.latency["prefill:1x128"].speedup
    )
    done = harness("compare", first.path.stem[:8], str(second.path), runs=copy)
    assert done.exit_code == 0, done.output
    assert "passages" in done.output
    again = json.loads(harness("compare", first.path.stem, second.path.stem, "--json", runs=copy).output)
    assert again["scores"]["passages"] == json.loads(json.dumps(score))


def test_nobody_to_compare_with(copy):
    done = harness("compare", "nosuch", "other", runs=copy)
    assert "no record 'nosuch'" in str(done.exception)
    assert "no record '/no/such.json'" in str(harness("compare", "/no/such.json", "other", runs=copy).exception)


def test_a_row_made_again_agrees_or_says_where_it_does_not(copy):
    one, other = entry(copy, "magnitude"), entry(copy, "random")
    assert list(verify.differences(one, one)) == []
    found = list(verify.differences(one, other))
    assert any(line.startswith("passages: ") for line in found)
    trusted = verify.learned(verify.Again(one, one.record, [], []), "reproduced", "harness verify")
    assert (trusted.trust, trusted.digest) == ("reproduced", one.record.digest)
    higher = one.record.model_copy(update={"trust": "verified"}).sealed()
    one.path.write_text(json.dumps(higher.words()))
    again = Entry(one.path, one.side)
    assert verify.learned(verify.Again(again, one.record, [], []), "reproduced", "").trust == "verified"
    doubted = verify.learned(verify.Again(again, one.record, ["c4: 9 instead of 8"], []), "verified", "harness verify")
    assert doubted.trust == "self-reported"
    assert "c4: 9 instead of 8" in doubted.history[-1].what


def test_rows_are_drawn_at_random_among_those_that_claim_something(made):
    known = of_runs(Store(made))
    drawn = verify.drawn(known, 3, seed=1)
    assert len({entry.path for entry in drawn}) == 3
    assert all(entry.words["status"] == "ok" for entry in drawn)
    assert drawn == verify.drawn(known, 3, seed=1)
