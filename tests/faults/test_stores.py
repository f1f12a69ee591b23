"""Stores that processes, containers and hosts share, on disks that fail: nothing live is swept, nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from harness.errors import EnvironmentFault, HarnessError, UsageError
from harness.records.files import write_file
from harness.records.store import Store

from ..conftest import ROOT
from .privileges import forked
from .records import GOOD, OTHER, SOURCE, contents, harness, runs_folder

RECORD = (SOURCE / f"{OTHER}.json").read_bytes()


@pytest.fixture
def store(tmp_path):
    return Store(runs_folder(tmp_path / "runs", *GOOD))


# --- names and joins ---

NAMES = {
    "empty": "",
    "parent": "..",
    "dot": ".",
    "hidden": ".git",
    "slash": "a/b",
    "backslash": "a\\b",
    "absolute": "/etc/passwd",
    "drive": "C:x",
    "line-break-at-the-end": "name\n",
    "nul": "a\0b",
    "escape": "a\x1b[31mb",
    "option": "-rf",
    "blank": "a b",
    "device": "NUL",
    "device-with-suffix": "com1.json",
    "dot-at-the-end": "name.",
    "letters-of-others": "naïve",
    "too-long": "a" * 101,
}
JOINS = {
    "parent": ("..",),
    "grandparent": ("a", "../.."),
    "absolute": ("/etc/passwd",),
    "itself": (".",),
    "link-out": ("out",),
    "below-link-out": ("out", "x"),
    "nul": ("a\0b",),
    "lone-surrogate": ("\ud800",),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_cannot_be_a_path_is_refused(name):
    from harness.system.paths import plain_name

    with pytest.raises(UsageError) as caught:
        plain_name(NAMES[name], "a folder of records")
    assert "a folder of records" in caught.value.cause
    assert caught.value.cause.isprintable()
    assert "letters" in caught.value.remedy


def test_ordinary_names_are_plain():
    from harness.system.paths import plain_name

    for name in ("smollm2-135m", "2026.1", "a", "console", "Orin_NX", "v1.0-rc.2"):
        assert plain_name(name, "a folder") == name


@pytest.mark.parametrize("kind", JOINS)
def test_a_join_that_leaves_its_folder_is_refused(tmp_path, kind):
    from harness.system.paths import below

    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to(tmp_path)
    with pytest.raises(HarnessError) as caught:
        below(root, *JOINS[kind])
    assert str(root) in caught.value.remedy


def test_a_join_may_pass_through_links_that_stay(tmp_path):
    from harness.system.paths import below

    root = tmp_path / "root"
    (root / "real").mkdir(parents=True)
    (root / "link").symlink_to("real")
    (tmp_path / "other-way").symlink_to(root)
    assert below(tmp_path / "other-way", "link", "file") == tmp_path / "other-way" / "link" / "file"


# --- containers ---

PLAYER = """
import os, sys, time
from pathlib import Path
from harness.records.store import Store

root, turns, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

def say(word):
    (turns / f"{name}-{word}").touch()

def wait(word):
    for _ in range(6000):
        if (turns / word).exists():
            return
        time.sleep(0.01)
    raise SystemExit(f"{name}: {word} never came")

store = Store(root)
store.prepare()
if name == "killed":
    store.scratch("artefact")
    os._exit(9)  # the first process of a container does not die of its own signals
if name == "first":
    scratch = store.scratch("artefact")
    (scratch / "file").write_text("whole")
    with store.lease("cell"):
        say("works")
        wait("second-swept")
        store.commit(scratch, store.path("artefacts", "first"))
    say("done")
else:
    wait("first-works")
    store.prepare()
    alive = store.leases()["cell"]["alive"]
    other = store.scratch("artefact")
    (other / "file").write_text("whole")
    store.sweep()
    say("swept")
    wait("first-done")
    store.commit(other, store.path("artefacts", "second"))
    print(alive)
store.sweep(mine=True)
"""
NAMESPACE = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]


def contained(*flags):
    """The command that starts a program in a PID namespace of its own, with the host name of this machine."""
    command = [*(NAMESPACE if os.geteuid() else ["unshare", "--pid", "--fork"]), *flags]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system does not let a test have a PID namespace of its own (unshare)")
    return command


@pytest.mark.parametrize("flags", [("--mount-proc",), ()], ids=["with-its-own-proc", "with-the-proc-of-the-host"])
def test_two_containers_with_one_host_name_share_a_store(tmp_path, flags):
    """Each works while the other sweeps; what a killed one left is swept by any of them."""
    root, turns = tmp_path / "runs", tmp_path / "turns"
    turns.mkdir()
    command = [*contained(*flags), sys.executable, "-c", PLAYER, str(root), str(turns)]
    places = {"cwd": ROOT, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    killed = subprocess.run([*command, "killed"], cwd=ROOT, capture_output=True)
    assert killed.returncode == 9
    assert list((root / "tmp").rglob("artefact*"))
    players = [subprocess.Popen([*command, name], **places) for name in ("first", "second")]
    said = [player.communicate(timeout=120) for player in players]
    assert [player.returncode for player in players] == [0, 0], said
    assert said[1][0] == "True\n"  # the lease of the other container is alive
    for name in ("first", "second"):
        assert (root / "artefacts" / name / "file").read_text() == "whole"
    assert not list((root / "tmp").rglob("artefact*"))
    assert Store(root).leases() == {}


# --- who made scratch, and whether it lives ---


def scratch_of(store, locked, **changes):
    """Scratch as another process would have left it; `locked` keeps its lock."""
    from dataclasses import replace

    from harness.system.locks import Owner, create_locked

    shared = store.path("tmp")
    shared.mkdir(exist_ok=True)
    owner = replace(Owner.here(shared), **changes)
    folder = shared / f"{owner}-{'0' * 12}"
    (folder / "artefact-x.0").mkdir(parents=True)
    lock = create_locked(folder / "lock")
    if not locked:
        os.close(lock)
    return folder


BOOT, DEAD = "0123456789ab", {"pid": 2**22 + 1, "start": 1}
OWNERS = {  # changes to this process, whether it holds its lock, the file system, whether locks work: is it swept?
    "killed": (DEAD, False, "ext4", True, True),
    "killed-and-its-id-is-another's": ({"start": 1}, False, "ext4", True, True),
    "killed-where-locks-do-not-work": (DEAD, False, "nfs4", False, True),
    "killed-before-with-this-id-without-locks": ({"start": 1}, False, "nfs4", False, True),
    "killed-in-another-container": ({"namespace": 7}, False, "ext4", True, True),
    "killed-in-another-container-on-nfs": ({"namespace": 7}, False, "nfs4", True, True),
    "killed-before-a-restart": ({"boot": BOOT}, False, "ext4", True, True),
    "at-work": ({}, True, "ext4", True, False),
    "at-work-where-locks-do-not-work": ({}, False, "nfs4", False, False),
    "at-work-in-another-container": ({"namespace": 7, **DEAD}, True, "ext4", True, False),
    "at-work-in-another-container-without-locks": ({"namespace": 7, **DEAD}, False, "nfs4", False, False),
    "at-work-by-a-child-that-outlived-it": (DEAD, True, "ext4", True, False),
    "on-another-host-with-this-name": ({"boot": BOOT, **DEAD}, False, "nfs4", True, False),
    "on-another-host-with-its-lock": ({"boot": BOOT, **DEAD}, True, "nfs4", True, False),
    "on-another-mount-of-the-same-files": ({"device": 1, "namespace": 7}, False, "fuse", True, False),
    "on-a-host-that-hides-its-boot": ({"boot": "", **DEAD}, False, "ext4", True, False),
    "on-a-host-that-hides-its-namespace": ({"namespace": 0, **DEAD}, False, "nfs4", False, False),
}


@pytest.mark.parametrize("kind", OWNERS)
def test_only_what_is_proven_dead_is_swept(store, monkeypatch, lost, kind):
    changes, locked, system, locks_work, swept = OWNERS[kind]
    folder = scratch_of(store, locked, **changes)
    monkeypatch.setattr("harness.system.locks._file_system", lambda folder: system)
    if not locks_work:
        fail(monkeypatch, "fcntl.flock", errno.ENOLCK)
    store.sweep()
    assert folder.exists() != swept
    lost(GOOD, store)


def test_a_clock_that_jumps_sweeps_nothing(store, monkeypatch):
    mine, now = store.scratch("artefact"), time.time()
    other = scratch_of(store, True, namespace=7)
    for jump in (-86400, 86400, 10**10):
        monkeypatch.setattr(time, "time", lambda jump=jump: now + jump)
        os.utime(mine, (now - jump, now - jump))
        Store(store.root).prepare()
        assert mine.is_dir()
        assert other.is_dir()


def test_names_of_others_in_scratch_stay(store):
    shared = store.path("tmp")
    shared.mkdir()
    kept = [shared / "notes.txt", shared / f"x@{socket.gethostname()}@{2**22 + 1}-0", shared / "0.0.0.0.0-0"]
    for path in kept:
        path.write_text("mine")
    (shared / f"{BOOT}.1.1.1.1-000000000000").symlink_to(store.root)
    store.prepare()
    assert [path.read_text() for path in kept] == ["mine"] * 3
    assert store.path("records").is_dir()


def test_a_fork_does_not_sweep_its_parents_scratch(store):
    mine = store.scratch("artefact")

    def work():
        own = store.scratch("artefact")
        store.sweep(mine=True)
        Store(store.root).prepare()
        return str(own)

    assert forked(work, unprivileged=False) != str(mine)
    assert mine.is_dir()


def test_two_stores_of_one_process_do_not_sweep_each_other(store):
    mine, other = store.scratch("artefact"), Store(store.root)
    theirs = other.scratch("artefact")
    other.sweep(mine=True)
    assert mine.is_dir()
    assert not theirs.exists()


def test_a_store_that_was_wiped_meanwhile_is_made_again(store):
    store.scratch("artefact")
    shutil.rmtree(store.root)
    store.write(store.path("stages", "k.json"), {"a": 1})
    assert store.read(store.path("stages", "k.json")) == {"a": 1}
    assert store.scratch("artefact").is_dir()


# --- leases ---


def lease_of(store, **changes):
    from harness.system.locks import Owner

    folder = store.path("leases")
    folder.mkdir(exist_ok=True)
    words = {"pid": os.getpid(), "host": socket.gethostname(), "stage": "prune", "started": 0.0}
    words |= {"heartbeat": time.time(), "owner": str(Owner.here(folder))}
    (folder / "cell.json").write_text(json.dumps(words | changes))
    return folder / "cell.lock"


DEAD_LEASES = {
    "pid-below-zero": {"pid": -1, "owner": None, "heartbeat": 0},
    "pid-too-large": {"pid": 2**70, "owner": None, "heartbeat": 0},
    "heartbeat-in-the-future": {"heartbeat": time.time() + 86400, "owner": None},
    "heartbeat-at-the-end-of-time": {"heartbeat": 1e300, "owner": None},
    "owner-of-another-boot": {"owner": f"{BOOT}.1.1.1.1", "heartbeat": 0},
    "owner-below-zero": {"owner": f"{BOOT}.1.1.-1.1", "heartbeat": 0},
    "owner-too-large": {"owner": f"{BOOT}.1.1.{2**70}.1", "heartbeat": 0},
}


@pytest.mark.parametrize("kind", DEAD_LEASES)
def test_a_dead_lease_is_not_at_work(store, kind):
    lock = lease_of(store, **DEAD_LEASES[kind])
    for there in (False, True):
        if there:
            lock.touch()
        assert [lease["alive"] for lease in store.leases().values()] == [False]


def test_a_lease_whose_lock_is_free_is_dead_whatever_its_clock_says(store):
    lease_of(store, heartbeat=time.time() + 86400).touch()
    assert store.leases()["cell"]["alive"] is False


@pytest.mark.parametrize("jump", [-86400, 86400, -(10**9)])
def test_a_lease_is_alive_whatever_the_clock_says(store, monkeypatch, jump):
    now = time.time()
    with store.lease("cell"):
        monkeypatch.setattr(time, "time", lambda: now + jump)
        assert store.leases()["cell"]["alive"] is True


def test_a_lease_of_a_killed_process_is_dead_at_once(store):
    code = (
        "import os, signal, sys; from pathlib import Path; from harness.records.store import Store\n"
        "with Store(Path(sys.argv[1])).lease('cell') as beat:\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(store.root)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    lease = json.loads(store.path("leases", "cell.json").read_text())
    store.path("leases", "cell.json").write_text(json.dumps(lease | {"heartbeat": time.time() + 1000}))
    assert store.leases()["cell"]["alive"] is False


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_locks_do_not_work_a_process_is_asked(store, monkeypatch, number):
    lease_of(store).touch()
    fail(monkeypatch, "fcntl.flock", number)
    assert store.leases()["cell"]["alive"] is True
    lease_of(store, owner=f"{BOOT}.1.1.1.1", heartbeat=0)
    assert store.leases()["cell"]["alive"] is False


@pytest.mark.parametrize("kind", ["folder", "link-to-itself", "link-to-a-file", "pipe"])
def test_something_in_place_of_a_lock_is_named(store, tmp_path, kind):
    path = store.path("leases", "cell.lock")
    path.parent.mkdir()
    (tmp_path / "mine.txt").write_text("mine")
    {
        "folder": path.mkdir,
        "link-to-itself": lambda: path.symlink_to(path),
        "link-to-a-file": lambda: path.symlink_to(tmp_path / "mine.txt"),
        "pipe": lambda: os.mkfifo(path),
    }[kind]()
    with suppress(EnvironmentFault), store.lease("cell"):
        pass
    assert (tmp_path / "mine.txt").read_text() == "mine"
    lease_of(store)
    assert store.leases()["cell"]["alive"] in (True, False)


# --- disks ---


def fail(monkeypatch, name, number):
    def raising(*words, **named):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(name, raising)


NUMBERS = {
    "full": (errno.ENOSPC, "make room"),
    "quota": (errno.EDQUOT, "quota"),
    "read-only": (errno.EROFS, "can be written"),
    "not-permitted": (errno.EACCES, "can be written"),
    "broken": (errno.EIO, "can be written"),
}
CALLS = {
    "on-writing": "os.fsync",
    "on-renaming": "pathlib.Path.replace",
    "on-making-a-file": "pathlib.Path.open",
    "on-making-a-folder": "pathlib.Path.mkdir",
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", NUMBERS)
def test_a_disk_that_fails_keeps_what_was_there(tmp_path, monkeypatch, lost, kind, call):
    number, remedy = NUMBERS[kind]
    store = Store(runs_folder(tmp_path / "runs", *GOOD))
    record = store.record(GOOD[0])
    with monkeypatch.context() as patch:
        fail(patch, CALLS[call], number)
        with pytest.raises(EnvironmentFault) as caught:
            store.save_record(record.model_copy(update={"reason": "later"}))
    assert caught.value.exit_code == 3
    assert str(store.root) in caught.value.cause
    assert os.strerror(number) in caught.value.cause
    assert remedy in caught.value.remedy
    assert "HARNESS_RUNS" in caught.value.remedy
    left = [path for path in store.path("tmp").rglob("*") if path.is_file() and path.name != "lock"]
    assert not left
    assert store.record(GOOD[0]) == record
    lost(GOOD, store)


@pytest.mark.parametrize("kind", NUMBERS)
def test_a_disk_that_fails_is_said_before_the_work(tmp_path, monkeypatch, kind):
    number, remedy = NUMBERS[kind]
    store = Store(tmp_path / "runs")
    fail(monkeypatch, "os.mkdir", number)
    for work in (store.prepare, lambda: store.scratch("artefact"), lambda: store.lease("cell").__enter__()):
        with pytest.raises(EnvironmentFault) as caught:
            work()
        assert str(store.root) in caught.value.cause
        assert remedy in caught.value.remedy


@pytest.mark.parametrize("kind", NUMBERS)
def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch, kind):
    number, remedy = NUMBERS[kind]
    page = tmp_path / "page.html"
    page.write_text("old")
    fail(monkeypatch, "os.fsync", number)
    with pytest.raises(EnvironmentFault) as caught:
        write_file(page, b"new")
    assert remedy in caught.value.remedy
    assert "HARNESS_RUNS" not in caught.value.remedy  # it is not the runs folder
    assert page.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


UNREADABLE = {
    "too-many-open-files": errno.EMFILE,
    "broken": errno.EIO,
    "gone-on-the-server": errno.ESTALE,
    "not-permitted": errno.EACCES,
    "no-memory": errno.ENOMEM,
    "interrupted": errno.ETIMEDOUT,
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_read_now_is_left_where_it_is(store, monkeypatch, lost, kind):
    number = UNREADABLE[kind]
    before, inner = contents(store.root), os.open

    def raising(path, *words, **named):
        if str(path).endswith(".json"):
            raise OSError(number, os.strerror(number))
        return inner(path, *words, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", raising)
        assert store.record(GOOD[0]) is None
        assert store.records() == []
    assert GOOD[0] in store.notices[0]
    assert os.strerror(number) in store.notices[0]
    assert contents(store.root) == before
    lost(GOOD, store)


# --- the runs folder itself ---


FOLDERS = {
    "file": "{}/mine.txt",
    "below-a-device": "/dev/null/runs",
    "below-a-file": "{}/mine.txt/runs",
    "link-to-itself": "{}/loop",
    "too-long": "{}" + "/x" * 2100,
    "too-long-a-name": "{}/" + "x" * 4220,
    "not-utf-8": "{}/" + os.fsdecode(b"runs-\xff"),
    "in-a-deleted-folder": "runs",
}


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("command", ["status", "leaderboard", "validate"])
def test_a_runs_folder_that_cannot_be_one(tmp_path, monkeypatch, command, kind):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "gone").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    if kind == "in-a-deleted-folder":
        monkeypatch.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
    code, text = harness(command, HARNESS_RUNS=FOLDERS[kind].format(tmp_path))
    assert code == 3
    assert "as the runs folder" in text
    assert "HARNESS_RUNS=DIR" in text
    assert len(text) < 1000
    assert (tmp_path / "mine.txt").read_text() == "mine"


# --- permissions ---


def permitted(folder, mode):
    """All of a folder with these permissions: for its owner, as root keeps all rights otherwise."""
    for path in [folder, *folder.rglob("*")]:
        path.chmod(mode | (0o111 if path.is_dir() else 0))


def answers(root, *commands):
    """What commands answer to a user who may not do all."""
    return forked(lambda: [harness(command, HARNESS_RUNS=str(root)) for command in commands])


def test_a_read_only_store_is_answered_from(tmp_path, lost):
    runs = runs_folder(tmp_path / "runs", *GOOD)
    name = Store(runs).side_file({"documents": {"a": 1.0}})
    (runs / "records" / f"{OTHER}.json").write_bytes(RECORD[:100])
    shutil.rmtree(runs / "tmp")
    before = contents(runs)
    permitted(runs, 0o444)

    def work():
        store = Store(runs)
        fault = store.unwritable()
        found = [store.record(cell).id for cell in GOOD]
        return [fault.cause, fault.remedy, found, store.read_side_file(name), store.leases(), store.notices]

    cause, remedy, found, documents, leases, notices = forked(work)
    assert f"cannot write to {runs}: Permission denied" in cause
    assert "HARNESS_RUNS" in remedy
    assert found == list(GOOD)
    assert (documents, leases, notices) == ({"documents": {"a": 1.0}}, {}, [])
    for code, text in answers(runs, "status", "leaderboard"):
        assert code == 0
        assert GOOD[0][:8] in text
        assert f"{OTHER}.json is truncated or not JSON; not used" in text
    permitted(runs, 0o644)
    assert contents(runs) == before
    lost(GOOD, Store(runs))


def test_the_lease_of_a_read_only_store_shows_who_works(tmp_path):
    store = Store(runs_folder(tmp_path / "runs", *GOOD))
    store.save_stage("cell", OTHER, {}, json.loads(RECORD)["spec"])
    with store.lease(OTHER) as beat:
        beat("prune")
        permitted(store.root, 0o444)
        ((code, text),) = answers(store.root, "status")
        permitted(store.root, 0o644)
    assert code == 0
    assert "running" in text


NO_ENTRY = {"the-store": ".", "the-records": "records"}


@pytest.mark.parametrize("kind", NO_ENTRY)
def test_a_folder_without_entry_is_not_an_empty_one(tmp_path, kind):
    runs = runs_folder(tmp_path / "runs", *GOOD)
    folder = runs / NO_ENTRY[kind]
    folder.chmod(0)
    try:
        for code, text in answers(runs, "status", "leaderboard", "validate"):
            assert code == 3
            assert str(folder) in text
            assert "Permission denied" in text
            assert "HARNESS_RUNS" in text
    finally:
        folder.chmod(0o755)


def test_a_record_without_permission_is_named_and_left(tmp_path, lost):
    runs = runs_folder(tmp_path / "runs", *GOOD, OTHER)
    path = runs / "records" / f"{OTHER}.json"
    path.chmod(0)
    for code, text in answers(runs, "status", "leaderboard"):
        assert code == 0
        assert f"{path} cannot be read: Permission denied; not used" in text
        assert GOOD[0][:8] in text
    ((code, text),) = answers(runs, "validate")
    assert code == 1
    assert "cannot be read: Permission denied" in text
    path.chmod(0o644)
    assert path.read_bytes() == RECORD
    lost([*GOOD, OTHER], Store(runs))


def test_a_folder_that_may_not_be_written_is_said_with_a_remedy(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)

    def work():
        fault = Store(tmp_path / "closed" / "runs").unwritable()
        return [fault.cause, fault.remedy, fault.exit_code]

    cause, remedy, code = forked(work)
    assert cause.endswith("Permission denied")
    assert str(tmp_path / "closed") in cause
    assert "HARNESS_RUNS=DIR" in remedy
    assert code == 3
    assert list((tmp_path / "closed").iterdir()) == []


CACHES = {  # by the variables that name a folder
    "the-cache": {"HARNESS_CACHE": "{}/closed/cache"},
    "the-home": {"HARNESS_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "{}/closed"},
    "no-home": {"HARNESS_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "{}/closed/nowhere"},
    "a-file-as-cache": {"HARNESS_CACHE": "{}/mine.txt"},
}


@pytest.mark.parametrize("kind", CACHES)
def test_a_cache_that_cannot_be_written_is_said_with_a_remedy(tmp_path, monkeypatch, kind):
    from harness.models.loading.cache import once
    from harness.system.host import add_cache_notes, read_cache_notes

    (tmp_path / "closed").mkdir(mode=0o555)
    (tmp_path / "mine.txt").write_text("mine")
    for name, value in CACHES[kind].items():
        monkeypatch.setenv(name, value.format(tmp_path))

    def work():
        add_cache_notes("hashes.json", {"a": 1})  # what is only remembered is measured again
        with pytest.raises(EnvironmentFault) as caught:
            once("model", lambda folder: None)
        return [caught.value.cause, caught.value.remedy, read_cache_notes("hashes.json")]

    cause, remedy, known = forked(work)
    assert str(tmp_path) in cause
    assert "HARNESS_CACHE" in remedy
    assert known == {}
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert list((tmp_path / "closed").iterdir()) == []


# --- a process is told apart ---

TEXTS = ["", "x", "1.2.3.4.5", f"{BOOT}.1.1.{10**11}.1", "é" * 12, None, 7, [1]]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_what_names_no_owner_is_none(text):
    from harness.system.locks import Owner

    assert Owner.parse(text) is None


def test_an_owner_is_read_back(tmp_path):
    from harness.system.locks import Owner

    owner = Owner.here(tmp_path)
    assert Owner.parse(str(owner)) == owner
    assert owner.alive(tmp_path / "there-is-no-such-lock") is True
