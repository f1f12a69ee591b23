"""A transport by the system's OpenSSH clients, with the user's configuration, keys and agents.

One connection carries everything. There are no prompts: what needs a person's answer is an error that says so.
"""

from __future__ import annotations

import atexit
import contextlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.devices.remote.shells import NO_EXIT_CODE, Posix, Shell, split_exit_code
from harness.devices.remote.transport import (
    CommandResult,
    ConnectionLost,
    RemoteProgram,
    TransferFailed,
    Unreachable,
    run_client,
)
from harness.devices.remote.values import plain_value
from harness.errors import UsageError, one_line
from harness.system.process import last_line

CONNECTION_ERROR = 255  # exit code of ssh when the connection failed, not the command
NAME = re.compile(r"[A-Za-z0-9_][\w.-]*")
OPTION = re.compile(r"[A-Za-z][A-Za-z0-9]*")
HOST = re.compile(r"[A-Za-z0-9_\[:][\w.:%\[\]-]*")
FAILURES = {  # a part of OpenSSH's message -> cause and remedy
    "Permission denied": ("refuses to log {user} in", "add the public key to its authorized_keys, or name another key"),
    "Host key verification failed": ("is not a known host, or its host key has changed", "ssh {host} once, by hand"),
    "Could not resolve hostname": ("has no known address", "check the name of the host"),
    "Connection refused": ("has no SSH server at this port", "start sshd there, or name the port"),
    "timed out": ("does not answer", "check that it is on and in this network"),
    "No route to host": ("is in no network that this machine can reach", "check that it is on and in this network"),
}


def check(host: str, user: str, key: str, options: Mapping[str, str]) -> None:
    """Refuse values that OpenSSH would take for an option or for several arguments."""
    for value, pattern, what in (
        (host, HOST, "the name of a host"),
        (user or "none", NAME, "the name of a user"),
        *((name, OPTION, "an option of ssh_config") for name in options),
    ):
        if not pattern.fullmatch(value):
            raise UsageError(f"{one_line(value, 100)!r} is not {what}", "check the device's file")
    for value, what in ((key, "key"), *((value, f"option {name}") for name, value in options.items())):
        plain_value(value, what)
    if '"' in key:
        raise UsageError(f"key {one_line(key, 100)} contains a quotation mark", "rename the file")


class Ssh:
    """`options` are options of ssh_config, such as {"UserKnownHostsFile": "..."}."""

    def __init__(
        self,
        host: str,
        user: str = "",
        port: int | None = None,
        key: str = "",
        options: dict[str, str] | None = None,
        shell: Shell | None = None,
    ) -> None:
        check(host, user, key, options or {})
        self.host, self.user, self.shell = host, user, shell or Posix()
        self.machine = f"{user}@{host}" if user else host
        self._control = tempfile.mkdtemp(prefix="harness-ssh-")  # short, because the path of a socket must be short
        settings = {
            "BatchMode": "yes",
            "ConnectTimeout": "10",
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "3",
            "ControlMaster": "auto",
            "ControlPersist": "60",
            "ControlPath": f"{self._control}/%C",
            **({"Port": str(port)} if port else {}),
            **({"User": user} if user else {}),
            **({"IdentityFile": f'"{key}"' if " " in key else key, "IdentitiesOnly": "yes"} if key else {}),
            **(options or {}),
        }
        self._options = [argument for name, value in settings.items() for argument in ("-o", f"{name}={value}")]
        self._has_answered = False
        atexit.register(self.close)

    def run(self, command: Sequence[str], timeout_s: float = 60) -> CommandResult:
        return self._interpret(run_client(self._client(command), timeout_s, self.machine))

    def start(self, command: Sequence[str]) -> RemoteProgram:
        return RemoteProgram(self._client(command, interactive=True), self.machine, self._interpret)

    def _client(self, command: Sequence[str], interactive: bool = False) -> list[str]:
        return ["ssh", "-T", *self._options, "--", self.host, self.shell.line(command, interactive)]

    def _interpret(self, result: CommandResult) -> CommandResult:
        code, out = split_exit_code(result.out)
        if code == NO_EXIT_CODE and result.code == CONNECTION_ERROR:
            raise self._unreachable(result.err)
        self._has_answered = True
        return CommandResult(code, out, result.err)

    def push(self, source: Path, target: str) -> None:
        self._sftp(f"put {_quoted(source.absolute().as_posix())} {_quoted(sftp_path(target))}")

    def pull(self, source: str, target: Path) -> None:
        self._sftp(f"get {_quoted(sftp_path(source))} {_quoted(target.absolute().as_posix())}")

    def _sftp(self, command: str, timeout_s: float = 3600) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".sftp", encoding="utf-8") as batch:
            batch.write(command + "\n")
            batch.flush()
            client = ["sftp", "-b", batch.name, *self._options, "--", self.host]
            result = run_client(client, timeout_s, self.machine)
        if result.code == CONNECTION_ERROR:
            raise self._unreachable(result.err)
        if result.code:
            raise TransferFailed(self.machine, command.split()[0], result.message)
        self._has_answered = True

    def _unreachable(self, message: str) -> Unreachable:
        for text, (cause, remedy) in FAILURES.items():
            if text in message:
                names = {"user": self.user or "this user", "host": self.host}
                return Unreachable(f"{self.machine} {cause.format(**names)}", remedy.format(**names))
        last = last_line(message, "ssh printed no message")
        if self._has_answered:
            return ConnectionLost(self.machine, last)
        if "Connection reset" in message or "Connection closed" in message:
            return Unreachable(f"{self.machine} closed the connection: {last}", "check that it is on, and its log")
        return Unreachable(f"{self.machine} cannot be reached: {last}", f"ssh {self.machine} true, by hand")

    def close(self) -> None:
        atexit.unregister(self.close)
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = ["ssh", *self._options, "-O", "exit", "--", self.host]
            subprocess.run(command, capture_output=True, timeout=10, check=False)
        shutil.rmtree(self._control, ignore_errors=True)


def sftp_path(path: str) -> str:
    """A remote path for sftp. Servers on Windows want `/C:/folder`."""
    return f"/{path}" if path[1:2] == ":" else path


def _quoted(path: str) -> str:
    """A path quoted for sftp, which allows no line breaks and reads quotes and backslashes as a shell does."""
    if "\n" in path or "\r" in path:
        raise UsageError(f"a file name contains a line break: {path!r}", "rename it")
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'
