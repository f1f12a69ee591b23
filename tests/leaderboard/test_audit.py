"""What was changed is named, what does not follow is refused, and two records are compared on what both saw."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import shutil
import subprocess
import sys
import zlib

import pytest
from click.testing import CliRunner

from harness.cli import cli
from harness.errors import HarnessError
from harness.evaluation import score_stats
from harness.functions import run
from harness.leaderboard.audit import recount, rerun
from harness.leaderboard.audit.history import agreement_line
from harness.leaderboard.audit.validate import named_samples, reservations, verdicts
from harness.leaderboard.compare import comparison
from harness.leaderboard.entries import Entry, runs_entries
from harness.records.files import json_text
from harness.records.sample_files import check_side_file
from harness.records.schema import Record
from harness.records.store import Store

from ..boards import filled
from ..seals import as_version, later, reseal


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return filled(tmp_path_factory.mktemp("trust") / "runs")


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made, tmp_path / "runs", ignore=shutil.ignore_patterns("artefacts", "cuts"))


def harness(*words, runs):
    return CliRunner().invoke(cli, list(words), env={"HARNESS_RUNS": str(runs)})


CO2 = {"dense": 9.0, "pruned": None, "what": "", "grid": "1", "grams_per_kwh": 1.0, "source": ""}


def entry(runs, pruner="magnitude"):
    return next(entry for entry in runs_entries(Store(runs)) if entry.payload["spec"]["pruner"] == pruner)


def rewrite(one, words):
    reseal(one.path, words)


def faults(one):
    (verdict,) = verdicts([one], one.side.parent)
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
        changed[at] ^= 1 << chance.randrange(8)
        one.path.write_bytes(changed)
        done = harness("validate", runs=copy)
        assert done.exit_code == 1, (at, content[at - 20 : at + 20])
        assert one.path.name in done.output
    one.path.write_bytes(content)
    assert harness("validate", runs=copy).exit_code == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content + b"\n",
        lambda content: content.replace(b": ", b":", 1),
        lambda content: content.replace(b"\n", b"\r\n"),
        lambda content: content.replace(b'"schema": 1', b'"schema": 2,\n  "schema": 1'),
        lambda content: content.replace(b'"status"', b'"\\u0073tatus"'),
        lambda content: json.dumps(json.loads(content)).encode(),
        lambda content: json.dumps(dict(reversed(json.loads(content).items())), indent=2).encode() + b"\n",
    ],
)
def test_so_are_bytes_that_leave_every_word_as_it_was(copy, change):
    one = entry(copy)
    content = one.path.read_bytes()
    one.path.write_bytes(change(content))
    assert one.path.read_bytes() != content
    done = harness("validate", runs=copy)
    assert done.exit_code == 1
    assert one.path.name in done.output


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
        words = Record.model_validate(words).model_copy(update={"trust": "verified"}).to_dict()
    change(words)
    one.path.write_bytes(json_text(words))
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


def text_of_sample(content):
    """What gzip unpacks from these bytes; None if they are damaged."""
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error):
        return None


def test_any_changed_byte_of_a_sample_is_named_unless_its_text_stays(copy):
    one, chance = entry(copy), random.Random(1)
    for name in named_samples(one.payload):
        path = one.side / name
        content = path.read_bytes()
        text = gzip.decompress(content)
        for at in (*range(10), *chance.sample(range(10, len(content)), 20), *range(-8, 0)):
            changed = bytearray(content)
            changed[at] ^= 1 << chance.randrange(8)
            path.write_bytes(changed)
            named = any(name in fault for fault in faults(Entry(one.path, one.side)))
            assert named or text_of_sample(changed) == text, (name, at)
        path.write_bytes(content)
        assert not faults(Entry(one.path, one.side))
    path.unlink()
    assert "1 files of samples are missing" in faults(Entry(one.path, one.side))[0]


def damage(path):
    try:
        check_side_file(path)
    except HarnessError as error:
        return error.cause
    return ""


def test_so_is_every_bit_of_it(tmp_path):
    """Some bits do not change the text: those of the header, and references to another place with the same letters."""
    store, said, between = Store(tmp_path), "0123456789", "".join(random.Random(0).choices("abcdefghijkl", k=62))
    for words in ({"documents": {"a": 1.5, "b": 2 / 7}}, {"texts": said.join(["", between[:6], between[6:], ""])}):
        path = store.path("samples", store.side_file(words))
        content = path.read_bytes()
        text, unnoticed = gzip.decompress(content), 0
        assert damage(path) == ""
        for at in range(8 * len(content)):
            changed = bytearray(content)
            changed[at // 8] ^= 1 << at % 8
            path.write_bytes(changed)
            if not damage(path):
                unnoticed += 1
                assert text_of_sample(changed) == text, at
        assert unnoticed < 80  # bits of the header


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content + b"\0",
        lambda content: content + gzip.compress(b"", mtime=0),
        lambda content: gzip.compress(b"", mtime=0) + content,
    ],
)
def test_so_is_what_follows_a_sample_or_comes_before_it(copy, change):
    one = entry(copy)
    path = one.side / next(named_samples(one.payload))
    path.write_bytes(change(path.read_bytes()))
    (fault,) = set(faults(Entry(one.path, one.side)))
    assert path.name in fault
    assert "something follows its end" in fault


@pytest.mark.parametrize(
    "change",
    [
        lambda text: gzip.compress(text, mtime=1),
        lambda text: gzip.compress(text, 1, mtime=0),
        lambda text: gzip.compress(text, 0, mtime=0),
    ],
)
def test_samples_are_valid_whichever_gzip_packed_them(copy, change):
    one = entry(copy)
    path = one.side / next(named_samples(one.payload))
    content = path.read_bytes()
    path.write_bytes(change(gzip.decompress(content)))
    assert path.read_bytes() != content
    assert not faults(Entry(one.path, one.side))


def test_equal_samples_are_equal_files(tmp_path):
    words = {"documents": {f"d{at}": at / 7 for at in range(9999)}}
    paths = [store.path("samples", store.side_file(words)) for store in (Store(tmp_path / "a"), Store(tmp_path / "b"))]
    assert paths[0].name == paths[1].name
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_sample_fits_whatever_its_names_are(tmp_path):
    store = Store(tmp_path)
    assert damage(store.path("samples", store.side_file({9: "a", 10: "b"}))) == ""


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
        (lambda words: words["artefact"].update(ratio_total=0.9), "masked"),
        (lambda words: words["artefact"].update(params_dense=9), "params_dense is 9"),
        (lambda words: words["artefact"].update(params=9), "params is 9 in the record"),
        (lambda words: words["artefact"].update(params_nonzero=9), "params_nonzero is 9 in the record, with 0 of"),
        (lambda words: words["artefact"].update(params_nonzero=10**9), "params_nonzero is 1,000,000,000"),
        (lambda words: words["energy"].update(dense=9.0), "energy.dense is 9.0 in the record"),
        (lambda words: words.update(co2=CO2), "co2.dense is 9.0 in the record"),
        (lambda words: words["scores"]["passages"].update(dense=None), "passages: dense is None"),
        (lambda words: words["scores"]["passages"].update(dense_stderr=9.0), "passages: dense_stderr is 9.0"),
        (lambda words: words["scores"]["passages"].update(change_ci95=[0.1, 9.0]), "passages: change_ci95[0] is 0.1"),
        (lambda words: words["flops"]["prefill:1x128"].update(pruned=9.0), "pruned FLOPs of prefill:1x128 are 9.0"),
        (lambda words: words["budget"].update(achieved=0.9), "the budget says 0.9"),
        (lambda words: words["budget"].update(asked=0.9), "says that 0.9 was requested"),
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


def test_zeros_are_those_that_masks_account_for(runs, one_process):
    asked = {"model": "tiny", "device": "null", "evaluators": "passages", "limit": 2}
    record = run("magnitude", ratio=0.4, settings={"granularity": "unstructured"}, **asked)
    made = record.artefact
    assert made.params_nonzero < made.params == made.params_dense
    assert list(recount.model(record)) == []
    for change in (
        {"params_nonzero": made.params},
        {"params_nonzero": made.params_nonzero * 9 // 10},
        {"ratio_blocks": made.ratio_blocks + 0.01},
        {"ratio_total": made.ratio_total + 0.01},
        {"ratio_total": made.ratio_total / 2, "ratio_blocks": made.ratio_blocks / 2},
    ):
        assert list(recount.model(record.model_copy(update={"artefact": made.model_copy(update=change)}))), change


def samples_of_dense_are_gone(runs, *, spared=""):
    """As records of before they were named; `spared` keeps them."""
    for one in runs_entries(Store(runs)):
        if one.path.stem != spared and "passages" in one.payload["scores"]:
            words = json.loads(one.path.read_text())
            del words["scores"]["passages"]["dense_samples"]
            rewrite(one, words)


def verdict_of(runs, one):
    known = runs_entries(Store(runs))
    return next(verdict for verdict in verdicts(known, runs) if verdict.path == one.path)


def test_dense_figures_without_samples_follow_from_those_of_a_record_beside(copy):
    one, other = entry(copy), entry(copy, "random")
    samples_of_dense_are_gone(copy, spared=other.path.stem)
    found = verdict_of(copy, one)
    assert (found.faults, found.reservations) == ((), ())
    kept = json.loads(one.path.read_text())
    score = kept["scores"]["passages"]
    low, high = score["change_ci95"]
    for change in (
        {"dense": score["dense"] * 2, "change": score["change"] / 2},
        {"dense_stderr": score["dense_stderr"] * 2},
        {"change_ci95": [low, high * 1.01]},
    ):
        rewrite(one, {**kept, "scores": {"passages": score | change}})
        assert {f"passages: {name.partition('[')[0]}" for name in change} <= {
            fault.partition(" is ")[0].partition("[")[0] for fault in verdict_of(copy, one).faults
        }
        assert all("by the samples beside it" in fault for fault in verdict_of(copy, one).faults)
    kept["environment"]["device"]["model"] = "another machine"  # whose dense model may have other scores
    rewrite(one, kept)
    assert "passages without samples: they cannot be checked" in verdict_of(copy, one).reservations[0]


def test_dense_figures_that_nobody_can_follow_are_told_and_fit_each_other(copy):
    one = entry(copy)
    samples_of_dense_are_gone(copy)
    found = verdict_of(copy, one)
    assert found.faults == ()
    assert found.reservations == (
        "dense figures of passages without samples: they cannot be checked, only set against the score",
    )
    assert harness("validate", runs=copy).exit_code == 0  # it is what it says
    kept = json.loads(one.path.read_text())
    score = kept["scores"]["passages"]
    for change, told in (
        ({"dense": 2 * score["dense"]}, "by value and dense"),
        ({"change": 0.5}, "passages: change is 0.5 in the record"),
        ({"change_ci95": [0.1, 0.2]}, "outside of (0.1, 0.2)"),
    ):
        rewrite(one, {**kept, "scores": {"passages": score | change}})
        assert any(told in fault for fault in verdict_of(copy, one).faults), told


def test_memory_that_a_device_does_not_tell_is_nobodys(copy):
    one = entry(copy)
    words = json.loads(one.path.read_text())
    words["spec"]["device"], words["memory"]["dense"] = "null", {"average": 1, "peak": 2}
    rewrite(one, words)
    assert any(fault.startswith("memory.dense is ") for fault in faults(Entry(one.path, one.side)))


def test_a_model_over_its_budget_is_asked_for_neither_memory_nor_energy(copy):
    one = entry(copy)
    words = json.loads(one.path.read_text())
    (latency,) = words["latency"].values()
    visits = json.loads(gzip.decompress((one.side / latency["samples"]).read_bytes()))
    for visit in (visit for side in visits.values() for visit in side):
        visit |= {"energy_j": 2.0, "memory": {"average": 1, "peak": 2}}
    latency["samples"] = Store(copy).side_file(visits)
    nothing = {"dense": None, "pruned": None, "reason": "", "what": ""}
    words |= {"status": "over_budget", "reason": "too slow", "energy": nothing, "memory": nothing}
    rewrite(one, words)
    assert faults(Entry(one.path, one.side)) == ()
    words |= {"status": "ok", "reason": ""}
    rewrite(one, words)
    told = faults(Entry(one.path, one.side))
    sides = [f"{what}.{side}" for what in ("memory", "energy") for side in ("dense", "pruned")]
    assert sorted(fault.partition(" is None")[0] for fault in told) == sorted(sides)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda words: words["environment"]["git"].update(dirty=True), "uncommitted changes"),
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


def test_fewer_documents_than_a_preset_has_are_not_published(made):
    record = entry(made).record
    fewer = record.model_copy(update={"spec": record.spec.model_copy(update={"limit": 39})})
    assert list(reservations(record)) == []
    assert list(reservations(fewer)) == ["limited to 39 documents, the preset quick has 40 documents"]


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
    older = as_version(copy, later(words, minutes=-1), "older")["id"]
    newer = as_version(copy, later(words, hours=1), "newer")["id"]
    for _ in range(3):
        done = json.loads(harness("publish", "set", "--to", str(boards), "--json", runs=copy).output)
        there = {path.stem for path in (boards / "results" / "set").glob("*.json")}
        assert there == set(done["taken"])
        assert newer in there
        assert set(done["older"]) == {older, one.path.stem}
        assert done["refused"] == {}
    (copy / "records" / f"{newer}.json").unlink()  # an older one does not take the place of what stands there
    done = json.loads(harness("publish", "set", "--to", str(boards), "--json", runs=copy).output)
    assert newer in {path.stem for path in (boards / "results" / "set").glob("*.json")}
    assert done["older"][one.path.stem] == newer


def test_failures_are_published_and_trust_is_kept(copy):
    boards = copy / "boards"
    assert harness("publish", "set", "--to", str(boards), runs=copy).exit_code == 0
    kept = [json.loads(path.read_text()) for path in (boards / "results" / "set").glob("*.json")]
    assert {words["status"] for words in kept} == {"ok", "unsupported"}
    path = boards / "results" / "set" / entry(copy).path.name
    words = json.loads(path.read_text())
    line = {
        "when": words["finished"],
        "what": agreement_line("verified", f" at {'0' * 12}"),
        "command": "harness verify",
    }
    reseal(path, words | {"trust": "verified", "history": [*words["history"], line]})
    assert harness("publish", "set", "--to", str(boards), runs=copy).exit_code == 0
    assert json.loads(path.read_text())["trust"] == "verified"


def test_two_records_are_compared_on_the_documents_that_both_saw(copy):
    first, second = entry(copy, "dense"), entry(copy, "magnitude")
    words = comparison(first, second)
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
    assert "not measured" not in done.output


def test_a_comparison_says_what_was_not_measured_on_a_device(copy):
    first, second = entry(copy, "dense"), entry(copy, "magnitude")
    words = json.loads(second.path.read_text())
    words["latency"]["prefill:1x128"]["provenance"] = "emulator"
    rewrite(second, words)
    asked = ("compare", first.path.stem, second.path.stem)
    shown = harness(*asked, runs=copy).output.partition("\nScores are compared by document")[2]
    assert "The latency of B is emulator, not measured on a device." in shown
    assert "latency of A is" not in shown
    told = json.loads(harness(*asked, "--json", runs=copy).output)["latency"]["prefill:1x128"]
    assert told["provenance"] == ["device", "emulator"]
    words["environment"]["device"]["provenance"] = "simulated"  # what the machine says of itself
    rewrite(second, words)
    assert "The latency of B is simulated, not measured on a device." in harness(*asked, runs=copy).output


def test_nobody_to_compare_with(copy):
    done = harness("compare", "nosuch", "other", runs=copy)
    assert "no record 'nosuch'" in str(done.exception)
    assert "no record '/no/such.json'" in str(harness("compare", "/no/such.json", "other", runs=copy).exception)


def test_a_row_made_again_agrees_or_says_where_it_does_not(copy):
    one = entry(copy, "magnitude")
    others = [e for e in runs_entries(Store(copy)) if e.payload["spec"]["pruner"] == "random"]
    value = one.record.scores["passages"].value
    other = max(others, key=lambda e: abs(e.record.scores["passages"].value - value))
    assert list(rerun.differences(one, one)) == []
    found = list(rerun.differences(one, other))
    assert any(line.startswith("passages: ") for line in found)
    trusted = rerun.with_outcome(rerun.Rerun(one, one.record, [], []), "reproduced", "harness verify")
    assert (trusted.trust, trusted.digest) == ("reproduced", one.record.digest)
    higher = one.record.model_copy(update={"trust": "verified"}).sealed()
    one.path.write_bytes(json_text(higher.to_dict()))
    again = Entry(one.path, one.side)
    assert rerun.with_outcome(rerun.Rerun(again, one.record, [], []), "reproduced", "").trust == "verified"
    doubted = rerun.with_outcome(
        rerun.Rerun(again, one.record, ["c4: 9 instead of 8"], []), "verified", "harness verify"
    )
    assert doubted.trust == "self-reported"
    assert "c4: 9 instead of 8" in doubted.history[-1].what


def test_rows_are_drawn_at_random_among_those_that_claim_something(made):
    known = runs_entries(Store(made))
    drawn = rerun.sample_entries(known, 3, seed=1)
    assert len({entry.path for entry in drawn}) == 3
    assert all(entry.payload["status"] == "ok" for entry in drawn)
    assert drawn == rerun.sample_entries(known, 3, seed=1)


def terminal(*words, runs):
    asked = [sys.executable, "-m", "harness", *words]
    env = {**os.environ, "HARNESS_RUNS": str(runs)}
    return subprocess.run(asked, capture_output=True, text=True, env=env, check=False)


def better_than_it_was(runs, one):
    """As somebody would who also makes up the samples: the record agrees with itself in all that can be recounted."""
    words = json.loads(one.path.read_text())
    score, store = words["scores"]["passages"], Store(runs)
    documents = {name: value - 0.5 for name, value in one.documents(one.record.scores["passages"]).items()}
    theirs = store.read_side_file(score["dense_samples"])["documents"]
    score["samples"] = store.side_file({"scale": score["scale"], "documents": documents})
    score["value"], score["stderr"] = score_stats.estimate(list(documents.values()), score["scale"])
    score["change"], score["change_ci95"] = score_stats.change(documents, theirs, score["scale"])
    rewrite(one, words)


@pytest.mark.slow
def test_commands_time_two_models_together_and_tell_a_true_row_from_a_made_up_one(tmp_path):
    runs, asked = tmp_path / "runs", ("--model", "tiny", "--device", "null", "--workload", "prefill:1x16")
    for ratio in ("0.2", "0.5"):
        more = ("--pruner", "random", "--ratio", ratio, "--eval", "passages", "--limit", "12")
        done = terminal("run", *asked, *more, runs=runs)
        assert done.returncode == 0, done.stderr
    whole, half = sorted(runs_entries(Store(runs)), key=lambda entry: entry.payload["spec"]["budget"]["value"])

    done = terminal("compare", whole.path.stem[:10], half.path.stem[:10], "--remeasure", runs=runs)
    assert done.returncode == 0, done.stderr
    told = re.search(r"together, prefill:1x16: B takes (\S+)x \[(\S+), (\S+)\] of A's wall time, (.*)", done.stdout)
    ratio, low, high = map(float, told.groups()[:3])
    assert low <= ratio <= high
    assert ratio < 1
    assert told[4] == "noise floor 0.0%; simulated, not measured on a device"
    for name in "AB":
        assert f"The latency of {name} is simulated, not measured on a device." in done.stdout

    done = terminal("verify", "--cell", half.path.stem[:10], runs=runs)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:3] == ["reproduced", half.path.stem[:12], "random"]
    found = Entry(half.path, half.side).record
    assert (found.trust, found.digest) == ("reproduced", half.record.digest)
    assert "reproduced: made again" in found.history[-1].what

    better_than_it_was(runs, half)
    assert terminal("validate", runs=runs).returncode == 0  # which only reads
    done = terminal("verify", "--cell", half.path.stem[:10], "--json", runs=runs)
    assert done.returncode == 1, done.stderr
    (row,) = json.loads(done.stdout)
    assert (row["verdict"], row["id"]) == ("differs", half.path.stem)
    assert re.fullmatch(r"passages: \S+ instead of \S+ on the same documents \(p = \S+\)", row["differences"][0])
    assert Entry(half.path, half.side).record.trust == "self-reported"
