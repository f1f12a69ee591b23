"""Publishing next to what other people own, over damage, through kills and full disks, and with forged records."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli import cli
from harness.errors import EnvironmentFault, HarnessError
from harness.leaderboard.audit.publish import publish
from harness.leaderboard.audit.validate import named_samples, verdicts
from harness.leaderboard.entries import Entry
from harness.records.store import Store
from tests.seals import another_cell, as_seed, as_version, later, records, reseal, tiny_runs, tree

SAMPLE = f"{'0' * 64}.json.gz"


@pytest.fixture
def runs(tmp_path):
    """Two sound records, nothing of them published yet."""
    return Path(shutil.copytree(tiny_runs(), tmp_path / "runs", ignore=shutil.ignore_patterns("artefacts", "cuts")))


@pytest.fixture
def boards(tmp_path):
    return tmp_path / "boards"


def command(*arguments, runs):
    return CliRunner().invoke(cli, ["publish", *map(str, arguments)], env={"HARNESS_RUNS": str(runs)})


def record_ids(folder):
    """The records of a folder, each proven to have all its samples and the components of its cell."""
    entries = [Entry(path, folder / "samples") for path in sorted(folder.glob("*.json"))]
    for entry in entries:
        assert entry.record.id == entry.path.stem
        assert all((entry.side / name).is_file() for name in named_samples(entry.payload))
        assert (folder / "cells" / f"{entry.record.id}.jsonl").is_file()
    return {entry.path.stem for entry in entries}


def newer_record(runs):
    """A newer answer to the question of the record by a ratio, from another version of the method."""
    payload = records(runs)["ratio"].payload
    return as_version(runs, later(payload, hours=1), "newer")["id"]


def files_of_others(folder):
    """Files that other people keep in a folder."""
    for name in ("README.md", "logo.svg", "samples/notes.txt", "samples/old/data.csv", "cells/cells.md", ".env"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"mine: {name}")
    (folder / "samples" / f"{'1' * 64}.json.gz").mkdir()
    (folder / "samples" / SAMPLE).symlink_to(folder / "README.md")
    return tree(folder)


# --- names that become paths ---


@pytest.mark.parametrize(
    "name",
    ["../../runs", "../escaped", "..", ".", "", "/tmp/escaped", "a/b", "a\\b", "a\0b", "a\nb", "con", "x" * 300, "~"],
    ids=[
        "runs",
        "above",
        "dots",
        "dot",
        "empty",
        "root",
        "two",
        "backslash",
        "nul",
        "newline",
        "device",
        "long",
        "home",
    ],
)
def test_a_name_is_not_a_path(runs, boards, name):
    before = tree(runs.parent)
    with pytest.raises(HarnessError) as error:
        publish(Store(runs), boards, name)
    assert error.value.exit_code == 2
    assert "cannot be the name of a folder of published records" in error.value.cause
    assert "letter or digit first" in error.value.remedy
    assert "\n" not in error.value.cause
    assert tree(runs.parent) == before


def test_a_name_that_is_a_link_to_the_runs_folder(runs, boards):
    (boards / "results").mkdir(parents=True)
    (boards / "results" / "set").symlink_to(runs)
    before = tree(runs)
    with pytest.raises(HarnessError, match="leads out of"):
        publish(Store(runs), boards, "set")
    assert tree(runs) == before


def test_a_name_that_is_a_link_to_other_published_records(runs, boards):
    other = boards / "results" / "other"
    other.mkdir(parents=True)
    before = files_of_others(other)
    (boards / "results" / "set").symlink_to(other)
    with pytest.raises(HarnessError, match=r"results/set is a link"):
        publish(Store(runs), boards, "set")
    assert tree(other) == before


@pytest.mark.parametrize("room", ["samples", "cells"])
def test_a_folder_inside_that_is_a_link(runs, boards, tmp_path, room):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / SAMPLE).write_bytes(b"mine")
    (mine / f"{'0' * 24}.jsonl").write_bytes(b"mine")
    before = tree(mine)
    (boards / "results" / "set").mkdir(parents=True)
    (boards / "results" / "set" / room).symlink_to(mine)
    with pytest.raises(HarnessError, match=f"{room} is a link"):
        publish(Store(runs), boards, "set")
    assert tree(mine) == before


@pytest.mark.parametrize("name", ["samples", "set"])
def test_a_file_where_a_folder_is_needed(runs, boards, name):
    place = boards / "results" / ("set/samples" if name == "samples" else "set")
    place.parent.mkdir(parents=True)
    place.write_text("mine")
    with pytest.raises(HarnessError, match="is not a folder"):
        publish(Store(runs), boards, "set")
    assert tree(boards)[str(place.relative_to(boards))] == b"mine"


def test_a_results_folder_that_is_a_link(runs, boards, tmp_path):
    mine = tmp_path / "mine"
    (mine / "set").mkdir(parents=True)
    before = files_of_others(mine / "set")
    boards.mkdir()
    (boards / "results").symlink_to(mine)
    done = publish(Store(runs), boards, "set")
    assert len(record_ids(mine / "set")) == len(done.taken) == 2
    after = tree(mine / "set")
    assert before.items() <= after.items()


@pytest.mark.parametrize("place", ["results/set", "results"], ids=["itself", "a folder of it"])
def test_the_published_folder_is_the_runs_folder(tmp_path, place):
    """Whose samples belong to records that were not published."""
    runs = Path(shutil.copytree(tiny_runs(), tmp_path / place, ignore=shutil.ignore_patterns("artefacts", "cuts")))
    before = tree(runs)
    name = "set" if place == "results/set" else "records"
    first = min((runs / "records").glob("*.json")).stem
    with pytest.raises(HarnessError, match="is a runs folder"):
        publish(Store(runs), tmp_path, name, [first])
    assert tree(runs) == before


def test_the_published_folder_is_another_runs_folder(runs, tmp_path):
    other = shutil.copytree(tiny_runs(), tmp_path / "results" / "set")
    before = tree(other)
    with pytest.raises(HarnessError, match="is a runs folder"):
        publish(Store(runs), tmp_path, "set")
    assert tree(other) == before


@pytest.mark.parametrize("inside", ["", "boards", "records", "samples"])
def test_a_target_inside_the_runs_folder(runs, inside):
    before = tree(runs)
    done = publish(Store(runs), runs / inside, "set")
    assert record_ids(done.folder) == set(done.taken)
    assert before.items() <= tree(runs).items()
    assert len(Store(runs).records()) == 2
    assert all(not verdict.faults for verdict in verdicts(list(records(runs).values()), runs))


# --- files of other people ---


def test_files_of_others_beside_published_records(runs, boards):
    before = files_of_others(boards / "results" / "set")
    publish(Store(runs), boards, "set")
    cell = newer_record(runs)
    done = publish(Store(runs), boards, "set")
    assert cell in done.taken
    assert done.replaced
    after = tree(boards / "results" / "set")
    assert before.items() <= after.items()


def test_samples_where_nothing_was_published(runs, boards):
    """All records are refused, so nothing of that folder is harness's business."""
    for entry in records(runs).values():
        entry.payload["environment"]["git"]["dirty"] = True
        reseal(entry.path, entry.payload)
    place = boards / "results" / "set" / "samples"
    place.mkdir(parents=True)
    (place / SAMPLE).write_bytes(b"mine")
    before = tree(boards)
    done = command("set", "--to", boards, runs=runs)
    assert done.exit_code == 1
    assert "uncommitted changes" in done.output
    assert tree(boards) == before


def test_nothing_is_made_where_nothing_is_published(runs, boards):
    for entry in records(runs).values():
        entry.path.unlink()
    done = command("set", "--to", boards, runs=runs)
    assert done.exit_code == 1
    assert not boards.exists()


def test_check_changes_nothing_and_says_all(runs, boards):
    before = tree(runs.parent)
    done = command("set", "--check", "--to", boards, runs=runs)
    assert done.exit_code == 1
    assert done.output.count("\ncopy     samples/") + done.output.startswith("copy     samples/") > 3
    assert tree(runs.parent) == before
    assert command("set", "--to", boards, runs=runs).exit_code == 0
    assert command("set", "--check", "--to", boards, runs=runs).exit_code == 0
    (boards / "results" / "set" / "samples" / SAMPLE).write_bytes(b"of an older record")
    old, cell = records(runs)["ratio"].path.stem, newer_record(runs)
    before = tree(runs.parent)
    done = command("set", "--check", "--to", boards, runs=runs)
    assert done.exit_code == 1
    assert f"copy     {cell}.json" in done.output
    assert {f"remove   {old}.json", f"remove   samples/{SAMPLE}", f"remove   cells/{old}.jsonl"} <= set(
        done.output.splitlines()
    )
    assert tree(runs.parent) == before
    stated = json.loads(command("set", "--check", "--json", "--to", boards, runs=runs).output)
    done = json.loads(command("set", "--json", "--to", boards, runs=runs).output)
    assert (stated["written"], stated["removed"]) == (done["written"], done["removed"])
    after = tree(boards / "results" / "set")
    assert set(done["written"]) <= set(after)
    assert not set(done["removed"]) & set(after)


# --- damage among what was published ---

BAD = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "edited": lambda path: path.write_bytes(path.read_bytes().replace(b'"seed": 0', b'"seed": 1')),
    "not JSON": lambda path: path.write_text("hello"),
    "a list": lambda path: path.write_text("[1]"),
    "a number": lambda path: path.write_text("7"),
    "nested": lambda path: path.write_text("[" * 3000),
    "not finite": lambda path: path.write_bytes(path.read_bytes().replace(b'"schema": 1', b'"schema": 1e999')),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a link to nothing": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "a link to itself": lambda path: (path.unlink(), path.symlink_to(path.name)),
    "a device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("damage", BAD)
def test_a_damaged_record_among_the_published_ones(runs, boards, damage):
    publish(Store(runs), boards, "set")
    folder, entry = boards / "results" / "set", records(runs)["latency"]
    bad = folder / entry.path.name
    BAD[damage](bad)
    entry.path.unlink()  # so that nothing comes to take its place
    newer_record(runs)
    before = {path.name: path.lstat().st_ino for path in (folder / "samples").iterdir()} | {
        bad.name: bad.lstat().st_ino
    }
    done = command("set", "--to", boards, runs=runs)
    assert done.exit_code == 1, done.exception
    assert f"{bad} " in done.output
    assert "move it away" in done.output
    after = {path.name: path.lstat().st_ino for path in (folder / "samples").iterdir()} | {bad.name: bad.lstat().st_ino}
    assert before.items() <= after.items()
    assert len(list(folder.glob("*.json"))) == 2


def test_a_damaged_record_stands_in_the_way(runs, boards):
    publish(Store(runs), boards, "set")
    entry = records(runs)["ratio"]
    bad = boards / "results" / "set" / entry.path.name
    bad.write_text("{}")
    done = command("set", "--to", boards, runs=runs)
    assert done.exit_code == 1
    assert f"refused  {entry.path.stem[:12]}: {bad} is not a record: move it away and publish again" in done.output
    assert bad.read_text() == "{}"


@pytest.mark.parametrize("what", ["a folder", "a link", "a pipe"])
def test_something_stands_where_a_sample_belongs(runs, boards, tmp_path, what):
    entry = records(runs)["ratio"]
    place = boards / "results" / "set" / "samples" / next(named_samples(entry.payload))
    place.parent.mkdir(parents=True)
    mine = tmp_path / "mine"
    mine.write_text("mine")
    {"a folder": place.mkdir, "a link": lambda: place.symlink_to(mine), "a pipe": lambda: os.mkfifo(place)}[what]()
    before = place.lstat().st_ino
    done = command("set", "--to", boards, runs=runs)
    assert done.exit_code == 1
    assert "is in the way (move it away and publish again)" in done.output
    assert str(place) in done.output
    assert (place.lstat().st_ino, mine.read_text()) == (before, "mine")
    assert record_ids(place.parent.parent) == {records(runs)["latency"].path.stem}


@pytest.mark.parametrize("damage", [b"", b"x" * 40], ids=["empty", "garbage"])
def test_a_published_sample_is_damaged(runs, boards, damage):
    publish(Store(runs), boards, "set")
    before = tree(boards)
    name = next(named_samples(records(runs)["ratio"].payload))
    (boards / "results" / "set" / "samples" / name).write_bytes(damage)
    assert publish(Store(runs), boards, "set").written == [f"samples/{name}"]
    assert tree(boards) == before


def test_published_components_are_gone(runs, boards):
    publish(Store(runs), boards, "set")
    before = tree(boards)
    shutil.rmtree(boards / "results" / "set" / "cells")
    publish(Store(runs), boards, "set")
    assert tree(boards) == before


def test_what_a_kill_left_in_writing(runs, boards):
    publish(Store(runs), boards, "set")
    before = tree(boards)
    for name in (f"samples/.{SAMPLE}.123", f".{'0' * 24}.json.9", f"cells/.{'0' * 24}.jsonl.4"):
        (boards / "results" / "set" / name).write_bytes(b"half")
    publish(Store(runs), boards, "set")
    assert tree(boards) == before


# --- kills, full disks, several at once ---


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("call", ["replace", "unlink"])
def test_killed_at_any_moment(runs, boards, monkeypatch, call):
    """Between any two changes each record has its samples, and the next publication ends as if nothing had happened."""
    publish(Store(runs), boards, "set")
    (boards / "results" / "set" / "samples" / SAMPLE).write_bytes(b"of an older record")
    newer_record(runs)
    as_seed(runs, records(runs)["latency"].payload, 5)
    expected = Path(shutil.copytree(boards, runs.parent / "expected"))
    publish(Store(runs), expected, "set")
    genuine, left, kills = getattr(Path, call), 0, 0

    def counted(path, *arguments, **options):
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return genuine(path, *arguments, **options)

    for moment in range(8):
        trial = Path(shutil.copytree(boards, runs.parent / f"trial-{moment}"))
        left = moment
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr(Path, call, counted)
            publish(Store(runs), trial, "set")
        kills += left < 0
        assert len(record_ids(trial / "results" / "set")) >= 2
        publish(Store(runs), trial, "set")
        assert tree(trial) == tree(expected)
    assert 3 <= kills < 8


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize("after", [0, 3])
def test_the_disk_refuses_in_the_middle(runs, boards, monkeypatch, code, after):
    publish(Store(runs), boards, "set", [records(runs)["latency"].path.stem])
    fsync, count = os.fsync, 0

    def refusing(descriptor):
        nonlocal count
        count += 1
        if count > after:
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refusing)
        with pytest.raises(EnvironmentFault) as error:
            publish(Store(runs), boards, "set")
    assert str(boards) in error.value.cause
    assert "--to DIR" in error.value.remedy
    assert record_ids(boards / "results" / "set") == {records(runs)["latency"].path.stem}
    assert publish(Store(runs), boards, "set").taken
    assert len(record_ids(boards / "results" / "set")) == 2


def test_a_target_below_a_file(runs, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(EnvironmentFault, match="cannot write to") as error:
        publish(Store(runs), tmp_path / "file", "set")
    assert "--to DIR" in error.value.remedy
    assert (tmp_path / "file").read_text() == "mine"


def _publish_often(runs, boards, cells, ready):
    ready.wait()
    for _ in range(4):
        for cell in cells:
            publish(Store(runs), boards, "set", [cell])


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked there")
def test_two_processes_at_once(runs, boards):
    """One removes samples that no record names yet, while the other is about to write that record."""
    base = records(runs)["ratio"].payload
    cells = [as_seed(runs, base, seed)["id"] for seed in range(2, 8)]
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(2)
    workers = [context.Process(target=_publish_often, args=(runs, boards, cells[at::2], ready)) for at in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert record_ids(boards / "results" / "set") == set(cells)


# --- records that are not what they say ---


def test_two_records_of_one_question_with_equal_times(runs, boards):
    payload = records(runs)["ratio"].payload
    pair = sorted([payload["id"], as_version(runs, payload, "another")["id"]])
    for _ in range(2):
        done = publish(Store(runs), boards, "set")
        assert done.older == {pair[0]: pair[1]}
        assert pair[1] in record_ids(done.folder)
        assert pair[0] not in record_ids(done.folder)


def test_two_published_records_of_one_question_are_left_by_a_kill(runs, boards):
    publish(Store(runs), boards, "set")
    cell, folder = newer_record(runs), boards / "results" / "set"
    other = runs.parent / "other"
    publish(Store(runs), other, "set")
    shutil.copytree(other, boards, dirs_exist_ok=True)
    assert len(list(folder.glob("*.json"))) == 3
    done = publish(Store(runs), boards, "set")
    assert cell in record_ids(folder)
    assert len(record_ids(folder)) == 2
    assert done.replaced == [records(runs)["ratio"].path.stem] or len(done.replaced) == 1


def test_a_sample_that_two_records_share_stays_with_the_other(runs, boards):
    payload = records(runs)["ratio"].payload
    other = as_seed(runs, payload, 3)
    publish(Store(runs), boards, "set")
    newer_record(runs)
    done = publish(Store(runs), boards, "set")
    assert done.replaced == [payload["id"]]
    assert other["id"] in record_ids(done.folder)


@pytest.mark.parametrize("where", ["latency", "scores", "sustained"])
@pytest.mark.parametrize("name", ["../../secret/{}", "/etc/passwd", "sub/{}", "..", "{}/../{}", "x.json.gz"])
def test_samples_named_by_a_path(runs, boards, where, name):
    """The reproduction: a record whose samples lie elsewhere, sealed anew, was published to elsewhere."""
    entry = records(runs)["ratio"]
    payload, before = entry.payload, tree(runs.parent)
    (latency,) = payload["latency"].values()
    own = latency["samples"]
    name = name.format(own, own)
    for place in (runs / "secret", runs.parent / "secret", runs / "samples" / "sub"):
        place.mkdir()
        shutil.copy(runs / "samples" / own, place / own)
    if where == "latency":
        latency["samples"] = name
    elif where == "scores":
        next(iter(payload["scores"].values()))["samples"] = name
    else:
        latency["sustained"] = {"seconds": 1.0, "first_ns": 1.0, "last_ns": 1.0, "samples": name}
    reseal(entry.path, payload)
    done = command("set", "--to", boards, runs=runs)
    assert done.exit_code == 1, done.exception
    assert f"refused  {payload['id'][:12]}" in done.output
    shutil.rmtree(runs / "secret")
    shutil.rmtree(runs.parent / "secret")
    shutil.rmtree(runs / "samples" / "sub")
    assert record_ids(boards / "results" / "set") == {records(runs)["latency"].path.stem}
    left = {name: content for name, content in tree(runs.parent).items() if not name.startswith("boards")}
    del left[f"runs/records/{entry.path.name}"], before[f"runs/records/{entry.path.name}"]
    assert left == before


def test_a_record_copied_under_another_id(runs, boards):
    entry = records(runs)["ratio"]
    payload = json.loads(entry.path.read_text())
    payload["id"] = "f" * 24
    reseal(runs / "records" / f"{'f' * 24}.json", payload)
    shutil.copy(runs / "stages" / "cell" / entry.path.name, runs / "stages" / "cell" / f"{'f' * 24}.json")
    done = command("set", "--to", boards, runs=runs)
    assert done.exit_code == 1
    assert "refused  ffffffffffff: its id is not the hash of its cell's components" in done.output
    assert len(record_ids(boards / "results" / "set")) == 2


def test_samples_of_dense_and_pruned_are_swapped(runs, boards):
    entry = records(runs)["ratio"]
    for score in entry.payload["scores"].values():
        score["samples"], score["dense_samples"] = score["dense_samples"], score["samples"]
    reseal(entry.path, entry.payload)
    done = command("set", "--to", boards, runs=runs)
    assert "passages:window=64: value is" in done.output
    assert record_ids(boards / "results" / "set") == {records(runs)["latency"].path.stem}


@pytest.mark.parametrize("damage", ["gone", "truncated", "of another cell", "a folder", "a list"])
def test_components_of_a_cell_cannot_be_published(runs, boards, damage):
    entry, other = records(runs)["ratio"], records(runs)["latency"]
    path = runs / "stages" / "cell" / entry.path.name
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "of another cell":
        shutil.copy(runs / "stages" / "cell" / other.path.name, path)
    elif damage == "a list":
        path.write_text("[]")
    else:
        path.unlink()
    if damage == "a folder":
        path.mkdir()
    done = command("set", "--to", boards, runs=runs)
    assert done.exit_code == 1
    (line,) = [line for line in done.output.splitlines() if line.startswith(f"refused  {entry.path.stem[:12]}")]
    assert "components" in line or str(path) in line
    assert record_ids(boards / "results" / "set") == {other.path.stem}


@pytest.mark.parametrize("by", [{"days": 30}, {"days": 2}], ids=["a month", "two days"])
def test_a_record_from_the_future_does_not_replace_what_is_published(runs, boards, by):
    publish(Store(runs), boards, "set")
    before = tree(boards)
    as_version(runs, later(records(runs)["ratio"].payload, **by), "future")
    done = command("set", "--to", boards, runs=runs)
    assert "its times are in the future" in done.output
    assert tree(boards) == before


def test_text_of_a_record_does_not_reach_the_terminal_as_it_is(runs, boards):
    entry = records(runs)["ratio"]
    evil = "\x1b]0;owned\x07\n\x1b[2Jdone\u202e"

    def alter(payload, parts):
        payload.update(unscored={evil: evil})
        payload["spec"]["evaluators"].append(evil)
        parts["eval"][evil] = None

    another_cell(runs, entry.payload, alter)
    done = command("set", "--to", boards, runs=runs)
    assert done.exit_code == 1
    assert "no score of" in done.output
    assert not [letter for letter in done.output if not letter.isprintable() and letter != "\n"]
    assert done.output.count("\n") == 3
