"""However a method, a recovery or an evaluator ends, there is a row with its reason, and the command says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from harness.records.store import Store

from ..forks import command
from .hostile import install

CELL = ["run", "--model", "tiny", "--device", "null", "--ratio", "0.2", "--limit", "1", "--eval"]
PRUNE = [*CELL, "footprint", "--pruner", "hostile"]
WAYS = {
    "prepare": PRUNE,
    "prune": PRUNE,
    "shape": [*CELL, "footprint", "--pruner", "shaped"],
    "recover": [*CELL, "footprint", "--pruner", "magnitude", "--recovery", "hostile"],
    "evaluate": [*CELL, "hostile", "--pruner", "magnitude"],
}
ENDS = {
    "exit-0": "ended with exit code 0 before it answered",
    "exit-7": "ended with exit code 7 before it answered",
    "sys-exit-0": "SystemExit: 0",
    "sigkill": "ended by SIGKILL (probably out of memory)",
    "sigterm": "ended by SIGTERM",
    "sigsegv": "ended by SIGSEGV",
    "sigabrt": "ended by SIGABRT",
    "sigalrm": "ended by SIGALRM",
    "base-exception": "raised Own: an exception of its own",
    "generator-exit": "raised GeneratorExit",
    "cancelled": "raised CancelledError",
    "keyboard-interrupt": "raised KeyboardInterrupt",
    "stop-iteration": "StopIteration",
    "memory-error": "MemoryError",
    "recursion": "RecursionError: maximum recursion depth exceeded",
    "surrogate": r"No such file or directory: '/nowhere/\udcff\udcfe'",
    "surrogate-message": r"ValueError: \udcff",
    "silent-message": "Silent: its message cannot be read (ValueError)",
    "long-message": "ValueError: xxxxxxxx",
    "escape-message": "ValueError: one # two ]0;owned three",
    "fork-returns": "forked this process and returned from both",
    "fork-raises": "forked this process and returned from both",
    "working-folder": "changed the working folder (",
    "deleted-folder": "to a deleted folder) and did not set it back",
    "default-dtype": "changed torch's default dtype (torch.float32 to torch.float64) and did not set it back",
    "threads": "changed torch's number of threads (",
    "signal-handler": "changed signal handlers and did not set it back",
    "stdout-closed": "changed the standard streams and did not set it back",
    "stdout-replaced": "changed the standard streams and did not set it back",
    "all-files-closed": "ended with exit code 0 before it answered",
}
EVERYWHERE = ("exit-0", "sigsegv", "base-exception", "default-dtype", "fork-returns")


@pytest.fixture
def hostile(tmp_path, runs):
    environment = install(tmp_path / "site")

    def run(deed: str, *words: str):
        return command(*words, "--json", cwd=tmp_path, HOSTILE=deed, **environment)

    return run


def case(place: str, deed: str, fast: bool = True):
    return pytest.param(place, deed, id=f"{place}-{deed}", marks=() if fast else pytest.mark.slow)


CASES = [case("prune", deed) for deed in ENDS]
CASES += [case(place, deed, deed == "exit-0") for place in WAYS if place != "prune" for deed in EVERYWHERE]


@pytest.mark.parametrize(("place", "deed"), CASES)
def test_every_end_is_a_row(hostile, runs, lost, place, deed):
    done = hostile(f"{place}:{deed}", *WAYS[place])
    assert done.returncode == 1, done.stderr
    row = json.loads(done.stdout)
    assert row["status"] == "failed"
    assert ENDS[deed] in row["reason"], row["reason"]
    assert len(row["reason"]) <= 2000
    assert row["reason"].isprintable()
    lost([row["id"]], Store(runs))
    if deed == "exit-0":  # a failure is no answer
        again = hostile("", *WAYS[place])
        assert json.loads(again.stdout)["status"] == "ok", again.stderr


@pytest.mark.parametrize("deed", ["print", "atexit", "atexit-exit", "process-left", "thread-left"])
def test_stdout_holds_the_answer_alone(hostile, deed):
    done = hostile(f"prune:{deed}", *PRUNE)
    assert json.loads(done.stdout)["status"] == "ok", done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("deed", ["hang", "hang-deaf"])
def test_a_hang_past_the_limit_is_a_timeout(hostile, runs, lost, deed):
    done = hostile(f"prune:{deed}", *PRUNE, "--timeout", "0.1")
    row = json.loads(done.stdout)
    assert (done.returncode, row["status"]) == (1, "timeout"), done.stderr
    assert "took longer than 6 s" in row["reason"]
    assert row["reason"].startswith(("plan the run: ", "find the weights: ", "load: ", "prune to ratio 0.2: "))
    lost([row["id"]], Store(runs))


@pytest.mark.slow
@pytest.mark.parametrize("deed", ["exit-0", "sigkill", "base-exception", "keyboard-interrupt", "fork-returns"])
def test_a_sweep_goes_on(hostile, tmp_path, runs, lost, deed):
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "pruners: [hostile, magnitude]\nmodels: [tiny]\ndevices: ['null']\nbudgets: [0.2]\n"
        "evaluators: [footprint]\nlimit: 1\n"
    )
    done = hostile(f"prune:{deed}", "sweep", str(suite))
    rows = {row["label"].split(", ")[1]: row for row in json.loads(done.stdout)}
    assert done.returncode == 1
    assert (rows["hostile"]["status"], rows["magnitude"]["status"]) == ("failed", "ok"), done.stderr
    lost([row["id"] for row in rows.values()], Store(runs))


@pytest.mark.parametrize("deed", ["exit-0", "sigsegv", "base-exception", "keyboard-interrupt"])
def test_a_check_of_a_method_that_ends_it_fails(hostile, deed):
    done = hostile(f"prune:{deed}", "check", "hostile")
    assert done.returncode == 1
    assert "ended" in done.stderr or "raised" in done.stdout


IMPORTS = {
    "exit-0": "while it was imported, the process ended with exit code 0 before it answered",
    "sigkill": "while it was imported, the process was ended by SIGKILL (probably out of memory)",
    "base-exception": "it raised Own: an exception of its own",
    "keyboard-interrupt": "it raised KeyboardInterrupt",
    "stdout-replaced": "it changed the standard streams and did not set it back",
    "stdout-closed": "it changed the standard streams and did not set it back",
    "working-folder": "it changed the working folder",
    "signal-handler": "it changed signal handlers",
    "fork-returns": "it forked this process and returned from both",
}


TRACED = "import harness.cell.tracing as t; import os, sys, time; t.trace = lambda *_: "


@pytest.mark.slow
@pytest.mark.parametrize(("deed", "code"), [("os._exit(0)", "exit code 0"), ("time.sleep(600)", "took longer")])
def test_an_end_after_the_answer(tmp_path, runs, lost, deed, code):
    """Tracing follows the record: what ends it leaves one answer on stdout, a reason, and an exit code other than 0."""
    command(*PRUNE[:-1], "random", cwd=tmp_path)  # the record is there, so that all the time is the trace's
    command_line = [*PRUNE[:-1], "random", "--json", "--trace", *(["--timeout", "1"] if "sleep" in deed else [])]
    code_line = f"{TRACED}{deed}\nfrom harness.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code_line, *command_line], capture_output=True, text=True, cwd=tmp_path
    )
    row = json.loads(done.stdout)
    assert (done.returncode, row["status"]) == (1, "ok"), done.stderr
    assert f"{code}" in done.stderr
    assert "is complete" in done.stderr
    lost([row["id"]], Store(runs))


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "1e9"])
def test_a_timeout_that_cannot_be_kept(runs, minutes):
    done = command(*PRUNE[:-1], "random", "--timeout", minutes)
    assert done.returncode == 2
    assert "minutes is not possible" in done.stderr


@pytest.mark.parametrize(
    ("place", "deed"),
    [case("import", deed) for deed in IMPORTS] + [case("register", deed, deed == "exit-0") for deed in IMPORTS],
)
def test_a_harmful_import_is_one_line_of_the_list(hostile, place, deed):
    done = hostile(f"{place}:{deed}", "list")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    (line,) = [row for row in rows if not row["ok"]]
    assert (line["name"], line["kind"]) == ("hostile", "plugin")
    assert IMPORTS[deed] in line["reason"]
    assert any(row["name"] == "magnitude" for row in rows)


@pytest.mark.parametrize(
    "deed", [pytest.param(deed, marks=() if deed == "exit-0" else pytest.mark.slow) for deed in IMPORTS]
)
def test_a_harmful_import_does_not_stop_a_run(hostile, runs, lost, deed):
    """A run starts other processes, which load the plug-ins as well. None of them imports what ended the first one."""
    done = hostile(f"import:{deed}", *CELL, "footprint", "--pruner", "random")
    row = json.loads(done.stdout)
    assert (done.returncode, row["status"]) == (0, "ok"), done.stderr
    lost([row["id"]], Store(runs))


@pytest.mark.parametrize("deed", ["print", "atexit"])
def test_what_an_import_prints_is_not_in_the_answer(hostile, deed):
    done = hostile(f"import:{deed}", "list")
    assert all(row["ok"] for row in json.loads(done.stdout))


@pytest.mark.parametrize("source", ["while True: pass", "import time; time.sleep(600)"], ids=["loop", "sleep"])
def test_an_import_that_does_not_end(tmp_path, runs, monkeypatch, source):
    environment = install(tmp_path / "site", "endless", source)
    done = command("list", "--json", HARNESS_IMPORT_S="1", **environment)
    (line,) = [row for row in json.loads(done.stdout) if not row["ok"]]
    assert "its import took longer than 1 s" in line["reason"]


def test_a_generator_of_endless_specs(tmp_path, runs):
    source = (
        "from harness import PrunerSpec, hookimpl\n@hookimpl\ndef harness_register_pruners():\n    n = 0\n"
        "    while True:\n        n += 1\n        yield PrunerSpec(name=f'p{n}', target='a:B', summary='')\n"
    )
    environment = install(tmp_path / "site", "endless", source)
    done = command("list", "--json", **environment)
    (line,) = [row for row in json.loads(done.stdout) if not row["ok"]]
    assert "10,000 specs or more" in line["reason"]


@pytest.mark.parametrize("deed", ["exit-0", "base-exception", "working-folder", "print"])
def test_a_listener_of_events(hostile, deed):
    done = hostile(f"event:{deed}", *[word if word != "hostile" else "magnitude" for word in PRUNE])
    row = json.loads(done.stdout)
    assert row["status"] == ("failed" if deed == "exit-0" else "ok"), row["reason"]
    assert done.returncode == int(deed == "exit-0")


def test_nothing_is_left_running(hostile, tmp_path):
    hostile("prune:process-left", *PRUNE)
    mine = f"HARNESS_RUNS={os.environ['HARNESS_RUNS']}".encode()
    left = []
    for process in os.listdir("/proc"):
        if process.isdigit() and int(process) != os.getpid():
            try:
                with open(f"/proc/{process}/environ", "rb") as environment, open(f"/proc/{process}/comm") as name:
                    if mine in environment.read() and name.read().strip() == "sleep":
                        left.append(process)
            except OSError:
                continue
    assert not left


def test_a_process_that_started_cuda_does_not_fork_for_work(monkeypatch):
    import torch

    from harness.system.fork_server import check_fork_is_safe

    check_fork_is_safe()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match="must not fork"):
        check_fork_is_safe()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_to_the_supervisor_ends_both_processes(tmp_path, number):
    code = (
        "import os, sys, time; from harness.system.supervisor import supervise\n"
        "ending = supervise(lambda: (print(os.getpid(), flush=True), time.sleep(60)) and 0)\n"
        "print(ending.code, 'interrupted' in ending.reports)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    process.send_signal(number)
    assert process.communicate(timeout=30)[0].split()[-1] == "True"
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_the_supervised_process_dies_with_its_supervisor():
    code = (
        "import os, time; from harness.system.supervisor import supervise\n"
        "supervise(lambda: (print(os.getpid(), flush=True), time.sleep(60)) and 0)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{child}") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not os.path.exists(f"/proc/{child}")
