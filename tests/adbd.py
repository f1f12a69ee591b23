"""The device side of ADB's protocol on loopback: a phone as old as exit codes are missing, for the real adb client.

Streams are `shell:` and `sync:` (STAT, SEND, RECV); no authentication. What runs are real processes of this machine.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import socket
import struct
import subprocess
import threading
from pathlib import Path

import pytest

from harness.devices.remote.adb import Adb

from .sshd import free_port

CLIENT = shutil.which("adb")
HEADER = struct.Struct("<6I")
VERSION, MOST = 0x01000000, 4096
BANNER = b"device::ro.product.name=pretend;ro.product.model=Pretend;ro.product.device=pretend;\0"


class Phone:
    def __init__(self, home: Path, crlf: bool = False) -> None:
        if CLIENT is None:
            pytest.skip("no adb client is installed (apt install adb)")
        home.mkdir(parents=True, exist_ok=True)
        self.crlf, self.lines = crlf, []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.serial = f"127.0.0.1:{self.socket.getsockname()[1]}"
        self.server_port = free_port()
        self.env = {**os.environ, "HOME": str(home), "ANDROID_SDK_HOME": str(home)}
        threading.Thread(target=self._accept, daemon=True).start()
        self.adb("start-server")
        self.adb("connect", self.serial)

    def adb(self, *words: str) -> subprocess.CompletedProcess[str]:
        told = ["adb", "-P", str(self.server_port), *words]
        return subprocess.run(told, capture_output=True, text=True, env=self.env, timeout=60, check=False)

    def client(self) -> Adb:
        return Adb(self.serial, self.server_port)

    def unplug(self) -> None:
        for line in self.lines:
            line.close()
        with contextlib.suppress(OSError):
            self.socket.close()

    def close(self) -> None:
        self.adb("kill-server")
        self.unplug()

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self.socket.accept()
            except OSError:
                return
            self.lines.append(Line(link, self.crlf))


class Line:
    """One connection of an adb server, and its streams."""

    def __init__(self, link: socket.socket, crlf: bool) -> None:
        self.link, self.crlf = link, crlf
        self.sending, self.streams = threading.Lock(), {}
        threading.Thread(target=self._read, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.link.shutdown(socket.SHUT_RDWR)
        for stream in list(self.streams.values()):
            stream.end()

    def send(self, command: bytes, first: int, second: int, data: bytes = b"") -> None:
        word = int.from_bytes(command, "little")
        with self.sending, contextlib.suppress(OSError):
            head = HEADER.pack(word, first, second, len(data), sum(data) & 0xFFFFFFFF, word ^ 0xFFFFFFFF)
            self.link.sendall(head + data)

    def _take(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            part = self.link.recv(size - len(found))
            if not part:
                raise ConnectionError
            found += part
        return found

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                word, first, second, size, _, _ = HEADER.unpack(self._take(HEADER.size))
                self._heard(word.to_bytes(4, "little"), first, second, self._take(size))

    def _heard(self, command: bytes, theirs: int, ours: int, data: bytes) -> None:
        if command == b"CNXN":
            self.send(b"CNXN", VERSION, MOST, BANNER)
        elif command == b"OPEN":
            kind, _, words = data.rstrip(b"\0").partition(b":")
            made = {b"shell": Shell, b"sync": Sync}.get(kind)
            if made is None:
                self.send(b"CLSE", 0, theirs)
                return
            number = len(self.streams) + 1
            self.send(b"OKAY", number, theirs)
            self.streams[number] = made(self, number, theirs, words.decode())
        elif ours in self.streams:
            stream = self.streams[ours]
            if command == b"OKAY":
                stream.ready.set()
            elif command == b"WRTE":
                self.send(b"OKAY", ours, theirs)
                stream.heard.put(data)
            elif command == b"CLSE":
                stream.end()


class Stream:
    def __init__(self, line: Line, ours: int, theirs: int, words: str) -> None:
        self.line, self.ours, self.theirs, self.words = line, ours, theirs, words
        self.ready, self.heard, self.over = threading.Event(), queue.Queue(), False
        self.ready.set()
        threading.Thread(target=self._work, daemon=True).start()

    def write(self, data: bytes) -> None:
        for at in range(0, len(data), MOST):
            self.ready.wait(30)
            self.ready.clear()
            self.line.send(b"WRTE", self.ours, self.theirs, data[at : at + MOST])

    def end(self) -> None:
        self.over = True
        self.ready.set()
        self.heard.put(b"")

    def _work(self) -> None:
        with contextlib.suppress(EOFError):
            self.work()
        self.ready.wait(30)  # what was written last was taken
        self.line.send(b"CLSE", self.ours, self.theirs)

    def work(self) -> None:
        raise NotImplementedError


class Shell(Stream):
    """Standard error goes the way of standard output, and nobody is told how the command ended."""

    child: subprocess.Popen | None = None

    def work(self) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.child = subprocess.Popen(["sh", "-c", self.words], start_new_session=True, **pipes)
        threading.Thread(target=self._feed, daemon=True).start()
        while data := os.read(self.child.stdout.fileno(), MOST // 2):
            self.write(data.replace(b"\n", b"\r\n") if self.line.crlf else data)
        self.child.wait()

    def _feed(self) -> None:
        while data := self.heard.get():
            with contextlib.suppress(OSError, ValueError):
                self.child.stdin.write(data)
                self.child.stdin.flush()

    def end(self) -> None:
        super().end()
        if self.child is not None and self.child.poll() is None:
            os.killpg(self.child.pid, signal.SIGKILL)


class Sync(Stream):
    buffer = b""

    def _take(self, size: int) -> bytes:
        while len(self.buffer) < size:
            data = self.heard.get()
            if not data:
                raise EOFError
            self.buffer += data
        found, self.buffer = self.buffer[:size], self.buffer[size:]
        return found

    def _part(self) -> tuple[bytes, int]:
        return self._take(4), int.from_bytes(self._take(4), "little")

    def work(self) -> None:
        while True:
            order, size = self._part()
            if order == b"QUIT":
                return
            path = self._take(size).decode()
            try:
                {b"STAT": self._stat, b"SEND": self._save, b"RECV": self._read}[order](path)
            except OSError as error:
                said = str(error.strerror).encode()
                self.write(b"FAIL" + struct.pack("<I", len(said)) + said)

    def _stat(self, path: str) -> None:
        try:
            found = os.stat(path)
            self.write(b"STAT" + struct.pack("<3I", found.st_mode, found.st_size & 0xFFFFFFFF, int(found.st_mtime)))
        except OSError:
            self.write(b"STAT" + struct.pack("<3I", 0, 0, 0))

    def _save(self, words: str) -> None:
        path, _, _ = words.rpartition(",")
        data, kind, size = b"", *self._part()
        while kind == b"DATA":
            data += self._take(size)
            kind, size = self._part()
        Path(path).write_bytes(data)
        self.write(b"OKAY" + struct.pack("<I", 0))

    def _read(self, path: str) -> None:
        data = Path(path).read_bytes()
        for at in range(0, len(data), 65536):
            part = data[at : at + 65536]
            self.write(b"DATA" + struct.pack("<I", len(part)) + part)
        self.write(b"DONE" + struct.pack("<I", 0))
