"""A folder of ours on another machine: there from the first use to the last, with nothing of it left behind.

What a process leaves that was killed is swept by the next one from the same machine.
"""

from __future__ import annotations

import atexit
import os
import re
import secrets
import socket
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from harness.devices.remote.transport import Refused, Transport, Unreachable
from harness.errors import EnvironmentFault
from harness.system import locks
from harness.system.locks import alive

OURS = re.compile(r"harness-([\w.-]+)-(\d+)-[0-9a-f]{8}")
ABSOLUTE = re.compile(r"/|[A-Za-z]:/")
PLAIN = re.compile(r"[A-Za-z0-9_][\w.-]*")
SPARE = 64 << 20  # bytes that stay free beside what is pushed


class Folder:
    """`root` is an absolute path there; the temporary folder if empty."""

    def __init__(self, transport: Transport, root: str = "") -> None:
        self.transport, self.shell, self.root = transport, transport.shell, root
        self._made = ""

    @property
    def path(self) -> str:
        if not self._made:
            self.root = self.root or self._must(self.shell.temporary(), "name its temporary folder")
            if not ABSOLUTE.match(self.root):
                raise EnvironmentFault(f"{self.transport.where} names no folder but {self.root!r}", "name one: folder")
            self._sweep()
            made = f"{self.root}/harness-{_here()}-{os.getpid()}-{secrets.token_hex(4)}"
            self._must(self.shell.make(made), f"make {made}")
            self._made = made
            atexit.register(self.end)  # nobody closes a device, only models on it
        return self._made

    def push(self, source: Path, name: str) -> str:
        """A file under a plain name of ours, or one in a folder of such a name; where it lies then."""
        assert all(PLAIN.fullmatch(part) for part in name.split("/")), name
        inner, _, _ = name.rpartition("/")
        if inner:
            self._must(self.shell.make(f"{self.path}/{inner}"), f"make {inner}")
        target, size = f"{self.path}/{name}", source.stat().st_size
        free = self.free()
        if free is not None and size + SPARE > free:
            where = f"{self.transport.where}:{self.root}"
            raise EnvironmentFault(
                f"{where} has {free / 1e6:,.0f} MB free, {source.name} takes {size / 1e6:,.0f} MB",
                "free some space there, or name another folder in the device's file",
            )
        try:
            self.transport.push(source, target)
        except Refused:
            self.remove(name)
            raise
        return target

    def hashes(self, paths: Sequence[str]) -> list[str]:
        """SHA-256 of files there, in their order."""
        done = self.transport.run(self.shell.hashes(paths), timeout_s=600)
        found = [line.lstrip("\\").partition(" ")[0] for line in done.out.splitlines() if line.strip()]
        if done.code or len(found) != len(paths):
            raise EnvironmentFault(
                f"{self.transport.where} cannot hash what it was sent: {done.message}", "try it again"
            )
        return found

    def free(self) -> int | None:
        """Bytes; None where it does not tell."""
        done = self.transport.run(self.shell.free(self.path))
        words = done.out.strip().splitlines()[-1].split() if not done.code and done.out.strip() else []
        return int(words[3]) * 1024 if len(words) > 3 and words[3].isdigit() else None

    def remove(self, *names: str) -> None:
        assert all(PLAIN.fullmatch(part) for name in names for part in name.split("/")), names
        if names and self._made:
            self.transport.run(self.shell.remove([f"{self._made}/{name}" for name in names]))

    def close(self) -> None:
        """Everything of it is gone; a machine that is gone itself keeps it until the next time."""
        made, self._made = self._made, ""
        if made:
            with suppress(Unreachable):
                self.transport.run(self.shell.remove([made]))

    def end(self) -> None:
        self.close()
        self.transport.close()
        atexit.unregister(self.end)

    def _sweep(self) -> None:
        for name in self._dead(self.transport.run(self.shell.names(self.root)).out.split()):
            self.transport.run(self.shell.remove([f"{self.root}/{name}"]))

    def _dead(self, names: list[str]) -> Iterator[str]:
        for name in names:
            found = OURS.fullmatch(name)
            if found and found[1] == _here() and not alive(int(found[2])):
                yield name

    def _must(self, words: list[str], what: str) -> str:
        done = self.transport.run(words)
        if done.code:
            raise EnvironmentFault(f"{self.transport.where} cannot {what}: {done.message}", "name another folder")
        return (done.out.strip().splitlines() or [""])[-1]  # a login may print above it


def _here() -> str:
    """This machine and container, as a part of a file's name: two may be called alike."""
    return re.sub(r"[^\w.-]", "-", f"{socket.gethostname()}-{uuid.getnode():x}-{locks.pid_space()}")
