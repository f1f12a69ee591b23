"""A temporary folder on a remote machine: created on first use and deleted at the end.

Folders of processes that were killed are deleted by the next process from the same host.
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

from harness.devices.remote.transport import TransferFailed, Transport, Unreachable
from harness.errors import EnvironmentFault
from harness.system import locks
from harness.system.locks import alive
from harness.system.process import last_line

__all__ = ["Folder"]

FOLDER_NAME = re.compile(r"harness-([\w.-]+)-(\d+)-[0-9a-f]{8}")
ABSOLUTE = re.compile(r"/|[A-Za-z]:/")
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*")
SPARE = 64 << 20  # bytes that must stay free beside a pushed file


class Folder:
    """`root` is an absolute remote path; if it is empty, the temporary folder of the machine is used."""

    def __init__(self, transport: Transport, root: str = "") -> None:
        self.transport, self.shell, self.root = transport, transport.shell, root
        self._path = ""  # of the folder, once it exists

    @property
    def path(self) -> str:
        """The absolute path of the folder, which is created if it does not exist yet."""
        if not self._path:
            self.root = self.root or self._run(self.shell.temporary(), "name its temporary folder")
            if not ABSOLUTE.match(self.root):
                raise EnvironmentFault(
                    f"{self.transport.machine} names {self.root!r} as its temporary folder, which is no absolute path",
                    "set folder in the device's file",
                )
            self._remove_stale_folders()
            path = f"{self.root}/harness-{_host_id()}-{os.getpid()}-{secrets.token_hex(4)}"
            self._run(self.shell.make(path), f"make {path}")
            self._path = path
            atexit.register(self.end)  # devices are never closed, only the models on them
        return self._path

    def push(self, source: Path, name: str) -> str:
        """Copy a file to `name` in this folder and return its remote path. `name` may have one subfolder."""
        assert all(PLAIN_NAME.fullmatch(part) for part in name.split("/")), name
        subfolder, _, _ = name.rpartition("/")
        if subfolder:
            self._run(self.shell.make(f"{self.path}/{subfolder}"), f"make {subfolder}")
        target = f"{self.path}/{name}"
        size = source.stat().st_size
        free = self.free()
        if free is not None and size + SPARE > free:
            disk = f"{self.transport.machine}:{self.root}"
            raise EnvironmentFault(
                f"{disk} has {free / 1e6:,.0f} MB free, {source.name} takes {size / 1e6:,.0f} MB",
                "free some space there, or set another folder in the device's file",
            )
        try:
            self.transport.push(source, target)
        except TransferFailed:
            self.remove(name)
            raise
        return target

    def hashes(self, paths: Sequence[str]) -> list[str]:
        """SHA-256 of remote files, in the same order."""
        result = self.transport.run(self.shell.hashes(paths), timeout_s=600)
        sums = [line.lstrip("\\").partition(" ")[0] for line in result.out.splitlines() if line.strip()]
        if result.code or len(sums) != len(paths):
            raise EnvironmentFault(
                f"{self.transport.machine} cannot hash what it was sent: {result.message}", "try it again"
            )
        return sums

    def free(self) -> int | None:
        """Free bytes on its disk, or None if the machine does not report them."""
        result = self.transport.run(self.shell.free(self.path))
        columns = [] if result.code else last_line(result.out, "").split()
        return int(columns[3]) * 1024 if len(columns) > 3 and columns[3].isdigit() else None

    def remove(self, *names: str) -> None:
        """Delete files or subfolders of this folder."""
        assert all(PLAIN_NAME.fullmatch(part) for name in names for part in name.split("/")), names
        if names and self._path:
            self.transport.run(self.shell.remove([f"{self._path}/{name}" for name in names]))

    def close(self) -> None:
        """Delete the folder. If the machine cannot be reached, a later process will delete it."""
        path, self._path = self._path, ""
        if path:
            with suppress(Unreachable):
                self.transport.run(self.shell.remove([path]))

    def end(self) -> None:
        """Delete the folder and close the connection."""
        self.close()
        self.transport.close()
        atexit.unregister(self.end)

    def _remove_stale_folders(self) -> None:
        for name in self._stale_names(self.transport.run(self.shell.names(self.root)).out.split()):
            self.transport.run(self.shell.remove([f"{self.root}/{name}"]))

    def _stale_names(self, names: list[str]) -> Iterator[str]:
        """The folders among them that belong to dead processes of this host."""
        for name in names:
            match = FOLDER_NAME.fullmatch(name)
            if match and match[1] == _host_id() and not alive(int(match[2])):
                yield name

    def _run(self, command: list[str], action: str) -> str:
        """Run a command that must succeed. The last line of its output is returned: a login may print above it."""
        result = self.transport.run(command)
        if result.code:
            raise EnvironmentFault(
                f"{self.transport.machine} cannot {action}: {result.message}", "set another folder in the device's file"
            )
        return last_line(result.out, "")


def _host_id() -> str:
    """This host and container, as a part of a file name. The host name alone may not be unique."""
    return re.sub(r"[^\w.-]", "-", f"{socket.gethostname()}-{uuid.getnode():x}-{locks.pid_space()}")
