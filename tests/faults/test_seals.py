"""Records that are sealed anew after a change: what they say they are, how they came by their trust, what they hold."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.api import Samples
from harness.cli import cli
from harness.latency import sustained
from harness.leaderboard.audit.publish import publish
from harness.leaderboard.audit.validate import verdicts
from harness.leaderboard.entries import Entry
from harness.records.files import json_text
from harness.records.keys import canonical
from harness.records.schema import RunSpec
from harness.records.store import Store
from tests.seals import another_cell, later, records, reseal, tiny_runs, tree

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def runs(tmp_path):
    return Path(shutil.copytree(tiny_runs(), tmp_path / "runs", ignore=shutil.ignore_patterns("artefacts", "cuts")))


@pytest.fixture
def entry(runs):
    return records(runs)["ratio"]


def faults(entry):
    (verdict,) = verdicts([Entry(entry.path, entry.side)], entry.side.parent)
    return verdict.faults


def assert_named(entry, payload, text):
    """Whether a changed record is refused with this text; the files beside it are left as they are."""
    reseal(entry.path, payload)
    before = tree(entry.side.parent)
    found = faults(entry)
    assert tree(entry.side.parent) == before
    assert any(text in fault for fault in found), found
    return found


# --- what it says it is ---

IDENTITY = {
    "pruner": "dilap",
    "parameters": {"bogus": 1},
    "preset": "paper",
    "model": "smollm2-135m",
    "revision": "another",
    "dtype": "bf16",
    "budget": {"kind": "ratio", "value": 0.5, "unit": ""},
    "device": "cuda",
    "runtime": "compiled",
    "workloads": ["prefill:1x256"],
    "recovery": "lora",
    "calibration": "c4",
    "evaluators": ["c4"],
    "limit": 999,
    "seed": 77,
    "sustain": 60.0,
}


@pytest.mark.parametrize("field", IDENTITY)
def test_a_spec_of_another_cell(entry, field):
    entry.payload["spec"][field] = IDENTITY[field]
    assert_named(entry, entry.payload, f"spec.{field}")


@pytest.mark.parametrize("field", IDENTITY)
def test_a_spec_of_another_cell_beside_a_forged_copy(runs, entry, field):
    """The components cannot be forged along: the id is their hash."""
    entry.payload["spec"][field] = IDENTITY[field]
    path = runs / "stages" / "cell" / entry.path.name
    stage = json.loads(path.read_text())
    stage["value"] = entry.payload["spec"]
    path.write_bytes(json_text(stage))
    assert_named(entry, entry.payload, f"spec.{field}")


def test_components_are_forged_along(runs, entry):
    entry.payload["spec"]["pruner"] = "magnitude"
    path = runs / "stages" / "cell" / entry.path.name
    stage = json.loads(path.read_text())
    stage["components"]["artefact"]["pruner"] = stage["value"]["pruner"] = "magnitude"
    path.write_bytes(json_text(stage))
    assert_named(entry, entry.payload, "its id is not the hash of its cell's components")


@pytest.mark.parametrize("name", ["cut", "artefact", "measure", "eval"])
def test_keys_of_other_stages(entry, name):
    keys = entry.payload["keys"]
    keys[name] = "0" * 24 if isinstance(keys[name], str) else dict.fromkeys(keys[name], "0" * 24)
    assert_named(entry, entry.payload, f"keys.{name}")


def test_a_model_of_another_cell(entry):
    entry.payload["artefact"]["sha256"] = "0" * 64
    assert_named(entry, entry.payload, "keys.measure are not those of its cell's components and its model")


def test_a_machine_of_another_cell(entry):
    entry.payload["environment"]["device"]["flops_per_ns"] = 7
    assert_named(
        entry, entry.payload, "environment.device.flops_per_ns is 7 in the record, 1000 in its cell's components"
    )


def test_parameters_that_are_said_to_be_usual(entry):
    entry.payload["unusual"] = {"seed": 3}
    assert_named(entry, entry.payload, "unusual")


COMPONENTS = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "a list": lambda path: path.write_text("[]\n"),
    "more than components": lambda path: path.write_text(canonical({"components": {}, "spec": {}, "x": 1}) + "\n"),
    "written otherwise": lambda path: path.write_text(json.dumps(json.loads(path.read_text()), indent=1)),
    "nested": lambda path: path.write_text("[" * 3000),
    "not finite": lambda path: path.write_text('{"components": 1e999, "spec": 1}'),
    "two megabytes": lambda path: path.write_text(" " * 2**21),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a link to nothing": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "of another shape": lambda path: path.write_text(canonical({"components": 1, "spec": []}) + "\n"),
}


@pytest.mark.parametrize("damage", COMPONENTS)
def test_published_components_are_damaged(runs, entry, damage):
    publish(Store(runs), runs.parent, "set")
    folder = runs.parent / "results" / "set"
    cell = entry.path.stem
    COMPONENTS[damage](folder / "cells" / f"{cell}.jsonl")
    done = CliRunner().invoke(cli, ["validate", str(runs.parent)])
    assert done.exit_code == 1, done.exception
    assert f"{cell}.json: " in done.output
    assert f"cells/{cell}.jsonl" in done.output or "components" in done.output
    assert "2 records, 1 wrong" in done.output


def test_components_without_a_record(runs, entry):
    publish(Store(runs), runs.parent, "set")
    (runs.parent / "results" / "set" / "cells" / f"{'0' * 24}.jsonl").write_text("{}\n")
    done = CliRunner().invoke(cli, ["validate", str(runs.parent)])
    assert f"cells/{'0' * 24}.jsonl: no record names it" in done.output


def test_older_records_without_components_are_valid(runs):
    publish(Store(runs), runs.parent, "set")
    folder = runs.parent / "results" / "set"
    shutil.rmtree(folder / "cells")
    checked = verdicts([Entry(path, folder / "samples") for path in sorted(folder.glob("*.json"))], runs.parent)
    assert [(verdict.faults, verdict.components) for verdict in checked] == [((), False)] * 2


def test_a_latency_that_was_aimed_at_twice(runs):
    """A cut that missed is made again with a lower aim, which its key holds and its probes tell."""
    entry = records(runs)["latency"]
    payload, aim = entry.payload, 0.8 / 0.85 * (1 - 0.004)
    first = {"setting": 0.2, "estimated": 0.8, "measured": 0.85, "final": True}
    payload["budget"]["probes"].insert(0, first)

    def alter(payload, parts):
        parts["artefact"]["matched"]["tighten"] = aim

    tightened = another_cell(runs, payload, alter)
    assert payload["keys"]["cut"] != tightened["keys"]["cut"]
    payload["keys"] |= {name: tightened["keys"][name] for name in ("cut", "artefact")}
    payload["artefact"]["path"] = tightened["artefact"]["path"]
    reseal(entry.path, payload)
    assert faults(entry) == ()
    first["measured"] = 0.86
    assert_named(entry, payload, "keys.cut and keys.artefact are not those of its cell's components")


# --- how it came by its trust, and when ---


@pytest.mark.parametrize("trust", ["reproduced", "verified"])
@pytest.mark.parametrize(
    "history",
    [
        None,
        "verified",
        "made again, in agreement",
        "gold: made again, in agreement",
        "verified by me",
        "CO2e at 3 g/kWh",
    ],
)
def test_trust_that_no_history_gives(entry, trust, history):
    entry.payload["trust"] = trust
    if history is None:
        entry.payload["history"] = []
    else:
        entry.payload["history"].append({"when": entry.payload["finished"], "what": history, "command": ""})
    assert_named(entry, entry.payload, f"trust is {trust} in the record, ")


def test_trust_that_was_lost_again(entry):
    when = entry.payload["finished"]
    for what in (f"verified: made again at {'0' * 12}, in agreement", "made again: c4: 9 instead of 8"):
        entry.payload["history"].append({"when": when, "what": what, "command": "harness verify"})
    assert_named(
        entry, entry.payload | {"trust": "verified"}, "trust is verified in the record, self-reported by its history"
    )
    reseal(entry.path, entry.payload)
    assert faults(entry) == ()


def move(payload, name, **by):
    payload[name] = (datetime.fromisoformat(payload[name]) + timedelta(**by)).isoformat()


TIMES = {
    "finished before it started": (lambda w: move(w, "started", days=1), "before it started"),
    "a clock set back": (lambda w: move(w, "finished", days=-1), "before it started"),
    "a clock set ahead": (lambda w: w.update(later(w, days=9)), "its times are in the future"),
    "ended before it began": (
        lambda w: move(w["latency"]["prefill:1x128"], "began", days=1),
        "before it began",
    ),
    "ended after the run": (
        lambda w: move(w["latency"]["prefill:1x128"], "ended", hours=1),
        "after the run finished",
    ),
    "written long after the run": (lambda w: move(w["history"][0], "when", hours=2), "but its history says"),
    "history backwards": (
        lambda w: w["history"].append({"when": "2000-01-01T00:00:00+00:00", "what": "x", "command": ""}),
        "not in order of time",
    ),
    "history without a beginning": (lambda w: w["history"][0].update(what="x"), "does not begin with"),
    "no time": (lambda w: w["history"][0].update(when="yesterday"), "'yesterday' is not a time"),
    "no zone": (lambda w: w["history"][0].update(when="2026-01-01T00:00:00"), "has no time zone"),
    "a time of a latency": (lambda w: w["latency"]["prefill:1x128"].update(began="soon"), "'soon' is not a time"),
}


@pytest.mark.parametrize("case", TIMES)
def test_times_that_cannot_be(entry, case):
    change, text = TIMES[case]
    change(entry.payload)
    found = assert_named(entry, entry.payload, text)
    assert all("TypeError" not in fault for fault in found)


def test_a_machine_whose_clock_differs_a_little(entry):
    """Verified elsewhere, a minute before it was made."""
    when = (datetime.fromisoformat(entry.payload["finished"]) - timedelta(minutes=1)).isoformat()
    what = f"reproduced: made again at {'a' * 12} and uncommitted changes, in agreement"
    entry.payload["history"].append({"when": when, "what": what, "command": "harness verify"})
    reseal(entry.path, entry.payload | {"trust": "reproduced"})
    assert faults(entry) == ()
    assert datetime.fromisoformat(when) < datetime.now(UTC)


# --- what it holds ---

FIGURES = {
    "more documents than the limit": (
        lambda w: w["spec"].update(limit=7),
        "40 documents in the record, but the limit was 7",
    ),
    "warm-up": (lambda w: w["latency"]["prefill:1x128"].update(warmup=9), "warmup is 9 in the record"),
    "processes": (lambda w: w["latency"]["prefill:1x128"].update(processes=3), "processes is 3 in the record"),
    "rounds": (lambda w: w["latency"]["prefill:1x128"].update(rounds=7), "7 rounds"),
    "provenance": (lambda w: w["latency"]["prefill:1x128"].update(provenance="device"), "provenance is device"),
    "window": (lambda w: details(w).update(window=128), "details.window is 128 in the record"),
    "stride": (lambda w: details(w).update(stride=32), "stride is 32 in the record, 64 by its windows"),
    "windows": (lambda w: details(w).update(windows=41), "windows is 41"),
    "tokens scored": (lambda w: details(w).update(tokens_scored=1), "tokens_scored is 1"),
    "fewer tokens than windows": (lambda w: details(w).update(tokens=64), "windows is 40 in the record, 1 by"),
    "another text": (lambda w: details(w)["data"].update(sha256="0" * 64), "details.data.sha256 is 000"),
    "another text's name": (lambda w: details(w)["data"].update(name="c4"), "details.data.name is c4"),
    "weights changed": (lambda w: w["artefact"].update(weights_updated=True), "random changes no weights"),
    "size": (lambda w: w["artefact"].update(bytes=10**9), "bytes is 1,000,000,000"),
    "size of the parameters alone": (
        lambda w: w["artefact"].update(bytes=4 * w["artefact"]["params"]),
        "which is not the size of",
    ),
    "a model elsewhere": (lambda w: w["artefact"].update(path=f"artefacts/{'0' * 24}"), "artefact.path is"),
    "more checks passed than there were": (lambda w: w["conformance"].update(passed=9), "9 of 1 checks passed"),
    "grams of another grid": (lambda w: w["co2"].update(grams_per_kwh=1.0), "co2.grams_per_kwh is 1.0"),
    "a reason to be well": (lambda w: w.update(reason="because"), "ok, but with a reason"),
    "schema 0": (lambda w: w.update(schema=0), "schema 0 is not one"),
}


def details(payload):
    return payload["scores"]["passages:window=64"]["details"]


@pytest.mark.parametrize("case", FIGURES)
def test_figures_that_cannot_be(entry, case):
    change, text = FIGURES[case]
    change(entry.payload)
    assert_named(entry, entry.payload, text)


@pytest.mark.parametrize("field", ["achieved", "predicted"])
def test_a_budget_that_its_last_probe_does_not_give(runs, field):
    entry = records(runs)["latency"]
    entry.payload["budget"][field] *= 1.05
    assert_named(entry, entry.payload, f"budget.{field} is")


# --- everything, one field after the other ---

OTHERS = {
    "fp32": ["bf16"],
    "quick": ["paper"],
    "latency": ["ratio"],
    "ratio": ["latency"],
    "self-reported": ["reproduced", "verified"],
    "ok": ["over_budget", "failed"],
    "simulated": ["device", "emulator"],
    "wall": ["cpu"],
    "x": ["ms"],
}
NAMES = ("latency", "scores", "flops", "measure", "eval", "other_clock", "shape", "parameters", "packages")


def leaves(value, path=()):
    """Each value of a record with the way to it; an empty list or object is one."""
    if value and isinstance(value, dict | list):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, (*path, name))
    else:
        yield path, value


def others(value):
    """Other values in its place: 5 % more and less, a day before and half a day after, another word."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        step = max(1, round(abs(value) * 0.05))
        return [value + step, value - step]
    if isinstance(value, float):
        return [value * 1.05, value * 0.95] if value else [0.05]
    if isinstance(value, str):
        if re.match(r"\d{4}-\d\d-\d\dT", value):
            when = datetime.fromisoformat(value)
            return [(when + timedelta(days=days)).isoformat() for days in (-1, 0.5)]
        if re.fullmatch(r"[0-9a-f]{24}|[0-9a-f]{64}", value):
            return ["0" * len(value)]
        return OTHERS.get(value, [f"{value}x"])
    return [1, "x"] if value is None else [{"bogus": 1}] if value == {} else [["bogus"]]


def put(payload, path, value):
    payload = copy.deepcopy(payload)
    place = payload
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return payload


def title(path):
    """A way to a value as the documentation writes it: `latency.*.began`, `history[].command`."""
    text = ""
    for before, name in zip((None, *path), path, strict=False):
        text += "[]" if isinstance(name, int) else ".*" if before in NAMES else f".{name}"
    return text.removeprefix(".")


def rich(runs):
    """A record with everything that a record can hold."""
    entry, store = records(runs)["ratio"], Store(runs)
    payload = entry.payload
    (latency,) = payload["latency"].values()
    (score,) = payload["scores"].values()
    visits = store.read_side_file(latency["samples"])["pruned"]
    name = store.side_file({"visits": visits})
    work = sustained.from_visits([Samples(**visit) for visit in visits], 1.5, latency["clock"], name)
    latency["sustained"], payload["spec"]["sustain"] = work.model_dump(mode="json"), 1.0
    payload["artefact"]["told"] = {"steps": 3}
    score |= {"notes": ["a note"], "texts": [{"prompt": "a", "dense": "b", "pruned": "c"}]}
    payload["unscored"] = {"c4": "not on this machine"}
    payload["environment"]["device"]["plugins"] = {"tests": {"room": 1}}
    payload["conformance"] = {"kit": "2", "passed": 18, "of": 20}
    stage = json.loads((runs / "stages" / "cell" / entry.path.name).read_text())
    stage["value"] = payload["spec"]
    (runs / "stages" / "cell" / entry.path.name).write_bytes(json_text(stage))
    reseal(entry.path, payload)
    assert faults(entry) == ()
    return entry


def fields_of_the_page():
    """The fields in the first column of the page's second table of fields."""
    text = (ROOT / "docs" / "leaderboards.md").read_text(encoding="utf-8")
    section = text.partition("`validate` cannot check the following fields")[2]
    table = section.partition("| fields | why |\n|---|---|\n")[2]
    fields = []
    for row in table.partition("\n\n")[0].splitlines():
        names = re.findall(r"`([^`]+)`", row.split("|")[1])
        if names[-1] == "scores.*":
            names = [f"scores.*.{name}" for name in names[:-1]]
        fields += names
    return fields


def test_every_field_is_followed_or_listed(runs, record_property):
    """The reproduction: each field of a record changed alone, and the record sealed anew."""
    assert IDENTITY.keys() == RunSpec.model_fields.keys()
    tried, unnamed = 0, set()
    parts = {"latency": ("budget", "keys", "artefact", "scores", "spec")}
    for entry in (rich(runs), records(runs)["latency"]):
        payload = entry.payload
        rooms = parts.get(payload["spec"]["budget"]["kind"], payload.keys())
        for path, value in leaves(payload):
            if path[0] in ("digest", "seal") or path[0] not in rooms:
                continue
            for other in others(value):
                changed = put(payload, path, other)
                reseal(entry.path, changed)
                tried += 1
                if not faults(entry):
                    unnamed.add(title(path))
        reseal(entry.path, payload)
    print(f"{tried} changes, not named are those of:", *sorted(unnamed), sep="\n  ")
    record_property("changes", tried)
    identity = ("id", "trust", "status", "schema", "keys.", "spec.")
    assert not [name for name in unnamed if name.startswith(identity)]
    listed = fields_of_the_page()

    def covers(field, name):
        return name == field or name.startswith((f"{field}.", f"{field}["))

    assert [name for name in sorted(unnamed) if not any(covers(field, name) for field in listed)] == []
    assert [field for field in listed if not any(covers(field, name) for name in unnamed)] == []
    assert tried > 350


# --- terminals ---

EVIL = "\x1b]0;owned\x07\r\n\x1b[2Jall is well\u202e"


@pytest.mark.parametrize("command", ["validate", "compare", "verify"])
def test_text_of_a_record_does_not_reach_the_terminal_as_it_is(runs, entry, command, monkeypatch):
    payload = entry.payload
    payload["spec"]["recovery"] = payload["environment"]["device"]["kind"] = EVIL
    payload["scores"][f"passages{EVIL}"] = payload["scores"].pop("passages:window=64")
    payload["unscored"] = {EVIL: EVIL}
    payload["history"][0]["what"] = EVIL
    reseal(entry.path, payload)
    if command == "verify":
        from harness.leaderboard.audit import rerun

        def again(entry, folder, on_progress):
            on_progress(EVIL)
            raise rerun.CannotRerun(EVIL)

        monkeypatch.setattr(rerun, "rerun_record", again)
    asked = {
        "validate": ["validate"],
        "compare": ["compare", payload["id"], payload["id"]],
        "verify": ["verify", "--cell", payload["id"]],
    }
    before = tree(runs)
    done = CliRunner().invoke(cli, asked[command], env={"HARNESS_RUNS": str(runs)})
    assert "all is well" in done.output
    assert not [letter for letter in done.output if not letter.isprintable() and letter != "\n"]
    assert not [line for line in done.output.splitlines() if line.startswith("all is well")]
    assert tree(runs) == before


def test_a_record_that_changed_while_it_was_made_again(runs, entry, monkeypatch):
    """What another process wrote meanwhile is not overwritten with what was read before."""
    from harness.leaderboard.audit import rerun

    other = copy.deepcopy(entry.payload) | {"cost": {**entry.payload["cost"], "search_s": 1.0}}

    def again(entry, folder, on_progress):
        reseal(entry.path, other)
        return rerun.Rerun(entry, entry.record, [], [])

    monkeypatch.setattr(rerun, "rerun_record", again)
    done = CliRunner().invoke(cli, ["verify", "--cell", entry.path.stem], env={"HARNESS_RUNS": str(runs)})
    assert done.exit_code == 3
    assert "was changed while its command ran" in done.output
    assert json.loads(entry.path.read_text()) == other
