"""The fork server: replies, errors, time-outs, and the death of each of its processes at an awkward moment."""

from __future__ import annotations

import os
import signal
import sys
import time

import psutil
import pytest

from harness.errors import HarnessError
from harness.system.fork_server import ChildEnded, ForkServer, ServerEnded, describe_exit

from ..house import ROOT

if sys.platform != "linux":
    pytest.skip("the kernel ends orphaned processes on Linux only", allow_module_level=True)

JOBS = """
import os, signal, subprocess, sys, time
from pathlib import Path
from harness.errors import HarnessError
from harness.system.fork_server import die_with_parent, serve

def run_job(job):
    what = job.request["what"]
    if what == "add":
        job.reply(sum(job.request["numbers"]))
    elif what == "converse":
        job.reply("open")
        for request in job.requests():
            if "close" in request:
                job.reply("closed")
                return
            if "fail" in request:
                job.reply_error("it failed", "try again")
                return
            job.reply(request["say"])
    elif what == "half a reply":
        os.write(job.channel.writer, b'{"number": 1, "resu')
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "half a request":
        os.read(job.channel.reader, 5)
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "sleep":
        child = subprocess.Popen(["sleep", "100"])
        Path(job.request["pids"]).write_text(f"{os.getpid()} {child.pid}")
        time.sleep(100)
    elif what == "leave a fork":
        if os.fork() == 0:
            time.sleep(100)
            os._exit(0)
        job.reply(None)
    elif what == "raise":
        print("before")
        raise ValueError("of its own")
    elif what == "exit":
        os.close(1)
        sys.stdout.close()
        sys.exit(job.request["code"])
    elif what == "facts":
        job.reply({
            "session": os.getsid(0) == os.getpid(),
            "oom": Path("/proc/self/oom_score_adj").read_text().strip(),
            "interrupt": signal.getsignal(signal.SIGINT) != signal.SIG_IGN,
            "input": sys.stdin.read(),
        })

if __name__ == "__main__":
    die_with_parent()
    print("a library prints")
    serve(["json"], run_job, warm_up=lambda: print("and another"), oom_score=300)
"""


@pytest.fixture
def server(tmp_path):
    (tmp_path / "fork_jobs.py").write_text(JOBS)
    started = ForkServer("fork_jobs", environment={"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"})
    yield started
    started.close()


def ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def wait_until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def add(server: ForkServer) -> int:
    server.start(what="add", numbers=[1, 2])
    end = server.wait()
    assert (end.code, end.has_result) == (0, True)
    return end.result


def test_jobs_reply_with_results_one_after_the_other(server):
    assert [add(server), add(server)] == [3, 3]
    with pytest.raises(HarnessError, match="no job"):
        server.wait()
    server.close(20)
    assert server.process.returncode == 0


def test_a_child_leads_a_session_and_heeds_interrupts(server):
    server.start(what="facts")
    assert server.wait().result == {"session": True, "oom": "300", "interrupt": True, "input": ""}


def test_a_conversation_ends_when_it_is_closed_or_fails(server):
    server.start(what="converse")
    assert server.result() == "open"
    assert server.request(say="x" * 100_000) == "x" * 100_000
    assert server.request(close=True) == "closed"
    server.start(what="converse")  # reads past the exit of the first
    assert server.result() == "open"
    with pytest.raises(HarnessError, match="it failed") as error:
        server.request(fail=True)
    assert error.value.remedy == "try again"
    with pytest.raises(ChildEnded, match="exit code 0"):
        server.request(say="are you there")
    with pytest.raises(HarnessError, match="no job"):
        server.request(say="are you there")
    assert add(server) == 3


def test_a_child_killed_while_it_writes_or_reads_leaves_the_next_alone(server):
    server.start(what="half a reply")
    with pytest.raises(ChildEnded, match="SIGKILL"):
        server.result()
    server.start(what="half a request")
    with pytest.raises(ChildEnded, match="SIGKILL"):
        server.request(say="this line loses its first letters")
    assert add(server) == 3


def test_a_job_that_takes_too_long_is_killed_with_what_it_started(server, tmp_path):
    pids = tmp_path / "pids"
    server.start(what="sleep", pids=str(pids))
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    with pytest.raises(TimeoutError, match=r"longer than 0\.1 s"):
        server.wait(0.1)
    wait_until(lambda: all(ended(int(pid)) for pid in pids.read_text().split()))
    assert add(server) == 3


def test_closing_ends_a_running_job_and_what_it_started(server, tmp_path):
    pids = tmp_path / "pids"
    server.start(what="sleep", pids=str(pids))
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    server.close()
    wait_until(lambda: all(ended(int(pid)) for pid in pids.read_text().split()))


def test_a_killed_server_takes_its_child_along_and_is_noticed(server, tmp_path):
    pids = tmp_path / "pids"
    server.start(what="sleep", pids=str(pids))
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    server.process.kill()
    with pytest.raises(ServerEnded):
        server.wait()
    wait_until(lambda: ended(int(pids.read_text().split()[0])))
    with pytest.raises(ServerEnded):
        server.start(what="add", numbers=[])


def test_the_end_of_the_server_is_noticed_though_a_fork_of_a_job_lives_on(server):
    server.start(what="leave a fork")
    child = server.child
    assert server.wait().code == 0
    server.process.kill()
    try:
        with pytest.raises(ServerEnded):
            server.start(what="add", numbers=[])
    finally:
        os.killpg(child, signal.SIGKILL)


def test_exit_codes_and_output_of_jobs(server, tmp_path):
    log = tmp_path / "log.txt"
    server.start(what="raise", log=str(log))
    assert server.wait().code == 1
    assert log.read_text().startswith("before\nTraceback")
    assert log.read_text().endswith("ValueError: of its own\n")
    for code, expected in ((0, 0), (5, 5), ("a reason", 1), (None, 0)):
        server.start(what="exit", code=code, log=str(log))
        end = server.wait()
        assert (end.code, end.has_result) == (expected, False)
    assert "a reason" in log.read_text()


def test_a_server_that_does_not_start_is_noticed():
    server = ForkServer("harness.no_such_module", stderr=-3)
    with pytest.raises(ServerEnded):
        server.wait_until_ready()
    server.close()


def test_the_reason_of_an_end_is_a_sentence():
    assert describe_exit(3) == "the process ended with exit code 3 before it answered"
    assert describe_exit(-signal.SIGKILL) == "the process was ended by SIGKILL (probably out of memory)"
    assert describe_exit(-63) == "the process was ended by signal 63"
