"""Another machine by the system's OpenSSH clients: its configuration, keys and agents serve as they are.

One connection carries everything. Nobody is asked anything: what needs a person's answer is an error that says so.
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

from harness.devices.remote.shells import NOTHING_CAME, Posix, Shell, ended
from harness.devices.remote.transport import Done, Lost, Refused, Talk, Unreachable, call
from harness.devices.remote.values import plain_value
from harness.errors import UsageError, one_line

LOST = 255  # what ssh ends with when the line and not the command is at fault
NAME = re.compile(r"[A-Za-z0-9_][\w.-]*")
OPTION = re.compile(r"[A-Za-z][A-Za-z0-9]*")
HOST = re.compile(r"[A-Za-z0-9_\[:][\w.:%\[\]-]*")
WHY = {  # in the words of OpenSSH
    "Permission denied": ("does not let {user} in", "add the public key to its authorized_keys, or name another key"),
    "Host key verification failed": ("is not a known host, or has another key than it had", "ssh {host} once, by hand"),
    "Could not resolve hostname": ("has no address", "check the name of the host"),
    "Connection refused": ("has no SSH server at this port", "start sshd there, or name the port"),
    "timed out": ("does not answer", "check that it is on and in this network"),
    "No route to host": ("is in no network that this machine reaches", "check that it is on and in this network"),
}


def check(host: str, user: str, key: str, options: Mapping[str, str]) -> None:
    """Refuse what would be an option or several words to OpenSSH."""
    for word, known, what in (
        (host, HOST, "the name of a host"),
        (user or "none", NAME, "the name of a user"),
        *((name, OPTION, "a word of ssh_config") for name in options),
    ):
        if not known.fullmatch(word):
            raise UsageError(f"{one_line(word, 100)!r} is not {what}", "check the device's file")
    for word, what in ((key, "key"), *((value, f"option {name}") for name, value in options.items())):
        plain_value(word, what)
    if '"' in key:
        raise UsageError(f"key {one_line(key, 100)} holds a quotation mark", "rename the file")


class Ssh:
    """`options` are words of ssh_config, such as {"UserKnownHostsFile": "..."}."""

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
        self.where = f"{user}@{host}" if user else host
        self._control = tempfile.mkdtemp(prefix="harness-ssh-")  # short, for a socket's path must be
        set_ = {
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
        self._options = [word for name, value in set_.items() for word in ("-o", f"{name}={value}")]
        self._answered = False
        atexit.register(self.close)

    def run(self, words: Sequence[str], timeout_s: float = 60) -> Done:
        return self._judged(call(self._client(words), timeout_s, self.where))

    def start(self, words: Sequence[str]) -> Talk:
        return Talk(self._client(words, talks=True), self.where, self._judged)

    def _client(self, words: Sequence[str], talks: bool = False) -> list[str]:
        return ["ssh", "-T", *self._options, "--", self.host, self.shell.line(words, talks)]

    def _judged(self, done: Done) -> Done:
        code, out = ended(done.out)
        if code == NOTHING_CAME and done.code == LOST:
            raise self._unreachable(done.err)
        self._answered = True
        return Done(code, out, done.err)

    def push(self, source: Path, target: str) -> None:
        self._sftp(f"put {_quoted(source.absolute().as_posix())} {_quoted(there(target))}")

    def pull(self, source: str, target: Path) -> None:
        self._sftp(f"get {_quoted(there(source))} {_quoted(target.absolute().as_posix())}")

    def _sftp(self, order: str, timeout_s: float = 3600) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".sftp", encoding="utf-8") as batch:
            batch.write(order + "\n")
            batch.flush()
            done = call(["sftp", "-b", batch.name, *self._options, "--", self.host], timeout_s, self.where)
        if done.code == LOST:
            raise self._unreachable(done.err)
        if done.code:
            raise Refused(self.where, order.split()[0], done.message)
        self._answered = True

    def _unreachable(self, said: str) -> Unreachable:
        for words, (cause, remedy) in WHY.items():
            if words in said:
                known = {"user": self.user or "this user", "host": self.host}
                return Unreachable(f"{self.where} {cause.format(**known)}", remedy.format(**known))
        last = (said.strip().splitlines() or ["no word from it"])[-1]
        if self._answered:
            return Lost(self.where, last)
        if "Connection reset" in said or "Connection closed" in said:
            return Unreachable(f"{self.where} broke the connection off: {last}", "check that it is on, and its log")
        return Unreachable(f"{self.where} cannot be reached: {last}", f"ssh {self.where} true, by hand")

    def close(self) -> None:
        atexit.unregister(self.close)
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            end = ["ssh", *self._options, "-O", "exit", "--", self.host]
            subprocess.run(end, capture_output=True, timeout=10, check=False)
        shutil.rmtree(self._control, ignore_errors=True)


def there(path: str) -> str:
    """As sftp servers on Windows want it: `/C:/folder`."""
    return f"/{path}" if path[1:2] == ":" else path


def _quoted(path: str) -> str:
    """For sftp, which takes no line breaks and knows quotes and backslashes as a shell does."""
    if "\n" in path or "\r" in path:
        raise UsageError(f"a file name holds a line break: {path!r}", "rename it")
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'
