"""A server process that imports the libraries once and forks a child for each job.

A child starts with fresh memory, without the seconds that the imports take.

Client, server and child exchange messages over the server's standard input and output. A message is a JSON object on
a line of its own. The client numbers its requests. A request without `job` starts a job, and its number is the number
of the job. A request with `job` is for the child that runs this job, which reads it from the same pipe.

    server -> client   {"number": 0, "ready": true}          the libraries are imported
    client -> server   {"number": 1, ...}                    start job 1; with `log`, its output goes to that file
    child  -> client   {"number": 1, "pid": 4711}            it leads a session and process group of its own
    child  -> client   {"number": 1, "result": ...}          or {"number": 1, "error": cause, "remedy": ...}
    client -> child    {"number": 2, "job": 1, ...}
    child  -> client   {"number": 2, "result": ...}
    server -> client   {"number": 1, "exit": 0}              exit code of the child, or minus the signal that killed it

One job runs at a time. What happens when a process dies:

- The client dies: on Linux the kernel kills the server and the child. Elsewhere the server stops at the end of its
  input, after its child.
- The server dies: on Linux the kernel kills the child. The client reads the end of the pipe and raises ServerEnded.
- The child dies: the server reports its exit. If the child was reading a line, the server may read the rest of that
  line and ignores it. If it was writing a line, the client ignores the part that arrived: the exit starts a new line.

`harness.devices.remote.agent` has a protocol of its own: it is copied to other machines as one file and cannot import
this one.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, cast

from harness.errors import HarnessError
from harness.system.interrupts import interrupts

Message = dict[str, Any]  # a JSON object

READY = 0  # number of the message that the libraries are imported; requests count from 1
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent dies, so that it does not run on unnoticed. Linux only.

    If the process id of the `parent` is given and that process has already ended, this process ends too.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
        if parent is not None and os.getppid() != parent:
            os._exit(1)


def describe_exit(code: int) -> str:
    """A sentence that says how a process ended which should have given an answer."""
    if code >= 0:
        return f"the process ended with exit code {code} before it answered"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"the process was ended by {name}" + (" (probably out of memory)" if name == "SIGKILL" else "")


def check_fork_is_safe() -> None:
    """Raise if this process has initialised CUDA, which does not survive a fork."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise RuntimeError("this process has initialised CUDA and must not fork")


def _parse(line: bytes) -> Message | None:
    """The message on a line; None for a blank line or a part of one."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) and isinstance(message.get("number"), int) else None


# --- the client ---


class ServerEnded(HarnessError):
    """The server process has ended; it answers no more."""


class ChildEnded(HarnessError):
    """The child of a job ended before it answered."""

    def __init__(self, code: int) -> None:
        super().__init__(describe_exit(code))
        self.code = code


@dataclass(frozen=True)
class JobEnd:
    """How a job ended: the exit code of its child, and the last result it gave."""

    code: int
    has_result: bool = False
    result: Any = None


class ForkServer:
    """The client of a server process. It runs one job at a time and is used by one thread."""

    def __init__(
        self,
        module: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        stderr: IO[Any] | int | None = None,
    ) -> None:
        """Start `python -m MODULE ARGUMENTS`, which calls `serve`. `environment` is added to that of this process."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**os.environ, **(environment or {})},
        )
        self._requests = cast("IO[bytes]", self.process.stdin)
        self._replies = cast("IO[bytes]", self.process.stdout)
        self._ready = False
        self._last_number = READY
        self.job = 0  # number of the running job; 0 if none is
        self.child = 0  # process id of its child

    def wait_until_ready(self) -> None:
        """Wait until the server has imported its libraries."""
        while not self._ready:
            self._ready = self._receive()["number"] == READY

    def start(self, **job: Any) -> None:
        """Start a job and wait until its child runs.

        Its fields are for the child, except `log`, which names a file for its output. `number` and `job` are reserved.
        """
        self.wait_until_ready()
        self.child = 0
        self.job = self._send(job)
        while "pid" not in (message := self._receive_for_job()):
            self._raise_if_ended(message)
        self.child = message["pid"]

    def result(self) -> Any:
        """Wait for the running job's reply to the request that started it."""
        return self._reply_to(self.job)

    def request(self, **request: Any) -> Any:
        """Send a request to the child of the running job and wait for its reply."""
        if not self.job:
            raise HarnessError("no job is running")
        return self._reply_to(self._send({"job": self.job, **request}))

    def _reply_to(self, number: int) -> Any:
        while True:
            message = self._receive()
            if message["number"] == number and "result" in message:
                return message["result"]
            if message["number"] == number and "error" in message:
                raise HarnessError(message["error"], message["remedy"])
            if message["number"] == self.job:
                self._raise_if_ended(message)

    def _raise_if_ended(self, message: Message) -> None:
        if "exit" in message:
            self.job = self.child = 0
            raise ChildEnded(message["exit"])

    def wait(self, timeout_s: float | None = None) -> JobEnd:
        """Wait until the child of the running job has ended. Raise TimeoutError if it was killed after `timeout_s`."""
        if not self.job:
            raise HarnessError("no job is running")
        timed_out = threading.Event()

        def kill_late_child() -> None:
            timed_out.set()
            self.kill()

        timer = threading.Timer(timeout_s, kill_late_child) if timeout_s else None
        try:
            if timer:
                timer.start()
            end = self._wait()
        finally:
            if timer:
                timer.cancel()
        self.job = self.child = 0
        if timed_out.is_set():
            raise TimeoutError(f"the job took longer than {timeout_s:g} s")
        return end

    def _wait(self) -> JobEnd:
        has_result, result = False, None
        while "exit" not in (message := self._receive_for_job()):
            if "result" in message:
                has_result, result = True, message["result"]
        return JobEnd(message["exit"], has_result, result)

    def kill(self) -> None:
        """Kill the child of the running job and what it started. The server reports its exit."""
        if self.child and hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.child, signal.SIGKILL)

    def close(self, wait_s: float = 0.0) -> None:
        """Kill the child, and the server too if it has not ended by itself after `wait_s`."""
        self.kill()
        self.job = self.child = 0
        with contextlib.suppress(OSError):
            self._requests.close()
        try:
            self.process.wait(wait_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._replies.close()

    def _send(self, request: Message) -> int:
        self._last_number += 1
        try:
            self._requests.write(json.dumps({**request, "number": self._last_number}).encode() + b"\n")
            self._requests.flush()
        except BrokenPipeError:
            raise self._server_ended() from None
        return self._last_number

    def _receive_for_job(self) -> Message:
        """The next message about the running job; the exit of an earlier one may come before it."""
        while (message := self._receive())["number"] != self.job:
            pass
        return message

    def _receive(self) -> Message:
        while line := self._replies.readline():
            if message := _parse(line):
                return message
        raise self._server_ended()

    def _server_ended(self) -> ServerEnded:
        self.job = self.child = 0
        return ServerEnded("the process that runs jobs has ended")


# --- the server and its children ---


class Channel:
    """The server's ends of the two pipes. A child inherits them."""

    def __init__(self, reader: int, writer: int) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    def from_standard_streams(cls) -> Channel:
        """Take over standard input and output. What is printed from now on goes to standard error."""
        channel = cls(os.dup(0), os.dup(1))
        _redirect(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        return channel

    def requests(self) -> Iterator[Message]:
        """Requests until the end of the input. Nothing is read ahead, since a child may read the next request."""
        while True:
            line = b""
            while not line.endswith(b"\n"):
                byte = os.read(self.reader, 1)
                if not byte:
                    return
                line += byte
            if request := _parse(line):
                yield request

    def send(self, message: Message) -> None:
        """Write a message on a new line, since a child may have been killed in the middle of one."""
        data = b"\n" + json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self.writer, data) :]

    def close(self) -> None:
        for descriptor in (self.reader, self.writer):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.reader = self.writer = -1


class Job:
    """A job as its child sees it: the request that started it, and the way to reply."""

    def __init__(self, request: Message, channel: Channel) -> None:
        self.request = request
        self.channel = channel
        self._number = request["number"]  # of the latest request

    def report_start(self, pid: int) -> None:
        """Tell the client which process group to kill."""
        self.channel.send({"number": self.request["number"], "pid": pid})

    def requests(self) -> Iterator[Message]:
        """Further requests for this job, until the client closes the pipe."""
        for request in self.channel.requests():
            self._number = request["number"]
            yield request

    def reply(self, result: Any) -> None:
        """Answer the latest request."""
        self.channel.send({"number": self._number, "result": result})

    def reply_error(self, cause: str, remedy: str = "") -> None:
        """Answer the latest request with an error, which the client raises."""
        self.channel.send({"number": self._number, "error": cause, "remedy": remedy})


def serve(
    libraries: Sequence[str],
    run_job: Callable[[Job], None],
    warm_up: Callable[[], None] = lambda: None,
    oom_score: int | None = None,
) -> None:
    """Serve jobs until the standard input ends.

    Args:
        libraries: Modules to import before the first job.
        run_job: What a child does. It may reply with a result. If it raises, the traceback is printed and the exit
            code is 1.
        warm_up: Called once, after the imports.
        oom_score: How willingly the kernel kills a child when memory runs out, from -1000 to 1000. Linux only.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the client decides what a Ctrl-C ends
    channel = Channel.from_standard_streams()
    for name in libraries:
        importlib.import_module(name)
    warm_up()
    channel.send({"number": READY, "ready": True})
    for request in channel.requests():
        if "job" in request:  # its child ended before it read this, and the client has the exit code
            continue
        code = _fork_and_wait(Job(request, channel), run_job, oom_score)
        channel.send({"number": request["number"], "exit": code})


def _fork_and_wait(job: Job, run_job: Callable[[Job], None], oom_score: int | None) -> int:
    """Run a job in a forked child, or in this process where there is no fork; the exit code."""
    if not hasattr(os, "fork"):
        job.report_start(pid=0)
        return _exit_code(job, run_job)
    check_fork_is_safe()
    _flush_output()
    server = os.getpid()
    child = os.fork()
    if not child:
        os._exit(_run_child(job, run_job, server, oom_score))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _run_child(job: Job, run_job: Callable[[Job], None], server: int, oom_score: int | None) -> int:
    """Set up the forked child and run its job; the exit code."""
    code = 1
    try:
        os.setsid()
        die_with_parent(server)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupts.heed()
        # A process that the job forks may outlive it and must not hold the pipes open.
        os.register_at_fork(after_in_child=job.channel.close)
        if oom_score is not None and sys.platform == "linux":
            with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
                file.write(str(oom_score))
        if log := job.request.get("log"):
            _redirect(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666), 1, 2)
        job.report_start(os.getpid())
        code = _exit_code(job, run_job)
    except BaseException:
        traceback.print_exc()
    finally:
        _flush_output()
    return code


def _exit_code(job: Job, run_job: Callable[[Job], None]) -> int:
    """Run a job; the exit code that a program with this job alone would have."""
    try:
        run_job(job)
    except SystemExit as end:
        print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # a job may have closed it
            stream.flush()


def _redirect(descriptor: int, *targets: int) -> None:
    """Make the targets refer to this file, and close its own descriptor."""
    for target in targets:
        os.dup2(descriptor, target)
    if descriptor not in targets:
        os.close(descriptor)
