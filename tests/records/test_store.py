"""What is written survives, and what was damaged is named and never used."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.errors import EnvironmentFault
from harness.records.schema import Record, digest, seal
from harness.records.store import Store

from ..conftest import ROOT

GOLDEN = sorted((ROOT / "tests" / "golden").glob("record-*.json"))


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "runs")
    made.prepare()
    return made


def test_stage_results_come_back(store):
    store.save_stage("eval", "k", {"a": 1}, {"value": 2.5})
    assert store.stage("eval", "k") == {"value": 2.5}
    assert store.components("eval") == {"k": {"a": 1}}
    assert store.stage("eval", "other") is None


@pytest.mark.parametrize("harm", ["truncate", "edit", "empty", "binary", "move"])
def test_damaged_stage_is_named_and_not_used(store, harm):
    store.save_stage("eval", "k", {}, {"value": 2.5})
    path = store.path("stages", "eval", "k.json")
    text = path.read_text()
    if harm == "move":  # a result under another's key is not that one's result
        path = path.rename(path.with_name("other.json"))
    else:
        path.write_bytes(
            {
                "truncate": text[:40].encode(),
                "edit": text.replace("2.5", "2.6").encode(),
                "empty": b"",
                "binary": b"\xff\xfe\x00",
            }[harm]
        )
    assert store.stage("eval", path.stem) is None
    assert path.name in store.notices[0]
    assert path.with_name(path.name + ".damaged").exists()


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_records_of_every_schema_version_load(path):
    words = json.loads(path.read_text())
    record = Record.model_validate(words)
    assert record.digest == digest(words)
    assert_holds(record.to_dict(), words)


def assert_holds(now, then, where=""):
    """Every word of the old record is still there, under its old name; newer fields may stand beside it."""
    if isinstance(then, dict):
        for name, value in then.items():
            assert name in now, f"{where}.{name}"
            assert_holds(now[name], value, f"{where}.{name}")
    else:
        assert now == then, where


def test_there_is_a_golden_record():
    assert GOLDEN


@pytest.mark.parametrize("field", ["reason", "started", "status", "spec", "nonsense"])
def test_an_edited_record_is_not_used(store, field):
    words = json.loads(GOLDEN[0].read_text())
    words[field] = "failed" if field == "status" else "edited"
    if field == "spec":
        words["spec"] = json.loads(GOLDEN[0].read_text())["spec"] | {"seed": 99}
    store.write(store.record_path(words["id"]), words)
    assert store.record(words["id"]) is None
    assert words["id"] in store.notices[0]


def test_trust_and_history_are_outside_the_digest(store):
    words = json.loads(GOLDEN[0].read_text())
    words["trust"] = "reproduced"
    words["history"].append({"when": "2030-01-01T00:00:00+00:00", "what": "reproduced", "command": ""})
    assert digest(words) == words["digest"]
    words["seal"] = seal(words)
    store.write(store.record_path(words["id"]), words)
    assert store.record(words["id"]).trust == "reproduced"


def test_a_record_under_another_name_is_not_used(store):
    words = json.loads(GOLDEN[0].read_text())
    store.write(store.record_path("another"), words)
    assert store.record("another") is None


def test_side_files_are_checked_against_their_name(store):
    name = store.side_file({"documents": {"a": 1.0}})
    assert store.read_side_file(name) == {"documents": {"a": 1.0}}
    assert store.side_file({"documents": {"a": 1.0}}) == name
    path = store.path("samples", name)
    path.write_bytes(store.path("samples", store.side_file({"b": 2})).read_bytes())
    assert store.read_side_file(name) is None
    assert store.notices


LEAVES_SCRATCH = """
import os, signal, sys
from pathlib import Path
from harness.records.store import Store
folder = Store(Path(sys.argv[1])).scratch("artefact-x")
print(folder, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_scratch_of_the_dead_is_swept_and_of_the_living_kept(store):
    command = [sys.executable, "-c", LEAVES_SCRATCH, str(store.root)]
    dead = Path(subprocess.run(command, capture_output=True, text=True).stdout.strip())
    assert dead.is_dir()
    older = store.path("tmp", f"artefact-x@{socket.gethostname()}@{2**22 + 1}-0")  # who made it cannot be told
    older.mkdir()
    mine = store.scratch("artefact-y")
    store.prepare()
    assert not dead.exists()
    assert older.exists()
    assert mine.exists()
    store.sweep(mine=True)
    assert not mine.exists()
    assert list(store.path("tmp").iterdir()) == [older]


def test_commit_replaces_whole(store):
    for content in ("one", "two"):
        scratch = store.scratch("artefact")
        (scratch / "file").write_text(content)
        store.commit(scratch, store.path("artefacts", "a"))
    assert (store.path("artefacts", "a") / "file").read_text() == "two"
    store.sweep(mine=True)
    assert list(store.path("tmp").iterdir()) == []


def test_lease_shows_who_and_where(store):
    with store.lease("cell") as beat:
        beat("prune")
        lease = store.leases()["cell"]
        assert (lease["pid"], lease["stage"], lease["alive"]) == (os.getpid(), "prune", True)
    assert store.leases() == {}


def test_a_second_process_waits_for_the_first(store):
    code = (
        "import sys, time; from pathlib import Path; from harness.records.store import Store\n"
        f"s = Store(Path({str(store.root)!r}))\n"
        "with s.lease('cell'):\n    print('have', flush=True); time.sleep(1.5)\n"
    )
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "have\n"
    told: list[str] = []
    start = time.monotonic()
    with store.lease("cell", told.append):
        assert time.monotonic() - start > 0.3
        assert "another process" in told[0]
    first.wait()


def test_a_killed_process_leaves_no_lock(store):
    code = (
        "import os, signal; from pathlib import Path; from harness.records.store import Store\n"
        f"s = Store(Path({str(store.root)!r}))\n"
        "with s.lease('cell') as beat:\n    beat('prune'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert store.leases()["cell"]["alive"] is False
    with store.lease("cell"):
        pass


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(EnvironmentFault, match=r"cannot use .*Not a directory") as caught:
        Store(blocked / "runs").prepare()
    assert "HARNESS_RUNS" in caught.value.remedy
