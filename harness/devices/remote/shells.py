"""Command lines for remote machines: by a POSIX shell or, on Windows, by Python.

Both support the same few file operations, so that no other module needs to know which of them is used.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Sequence
from typing import Protocol

MARK = "__HARNESS_ENDED_WITH_"
NO_EXIT_CODE = -1  # the end of a command was not reported: it was killed, or the connection was lost


def split_exit_code(out: str) -> tuple[int, str]:
    """Exit code and output of a command.

    The code is printed after the output, behind a mark, because old adb daemons do not report it.
    """
    text, mark, code = out.replace("\r\n", "\n").rpartition(f"\n{MARK}")
    if not mark or not re.fullmatch("[0-9]{1,9}", code.strip()):
        return NO_EXIT_CODE, out
    return int(code), text


class Shell(Protocol):
    """Wraps commands and gives the commands for file operations."""

    def argv(self, command: Sequence[str], interactive: bool = False) -> list[str]:
        """A program and its arguments that run this command and print its exit code behind the mark.

        The command is killed when stdin ends. An `interactive` command reads stdin itself and must end by itself.
        """

    def line(self, command: Sequence[str], interactive: bool = False) -> str:
        """The same as one line for any login shell."""

    # File operations: each returns a command for `argv` or `line`.
    def temporary(self) -> list[str]: ...
    def make(self, path: str) -> list[str]: ...
    def remove(self, paths: Sequence[str]) -> list[str]: ...
    def names(self, path: str) -> list[str]: ...
    def free(self, path: str) -> list[str]:
        """Prints like `df -Pk`: free KiB in the fourth column of the last line."""

    def hashes(self, paths: Sequence[str]) -> list[str]:
        """Prints like `sha256sum`."""


TEMPORARY = '"$TMPDIR" /data/local/tmp /tmp'  # Android has no /tmp


# Runs a command and kills it when stdin ends. A shell gives its background processes no stdin, hence descriptor 3.
KILL_AT_EOF = (
    "exec 3<&0; {} </dev/null 3<&- & child=$!; ( cat <&3; kill $child ) >/dev/null 2>&1 & watch=$!;"
    " wait $child; ended=$?; kill $watch 2>/dev/null"
)


class Posix:
    def argv(self, command: Sequence[str], interactive: bool = False) -> list[str]:
        text = shlex.join(command)
        run = f"( {text} ); ended=$?" if interactive else KILL_AT_EOF.format(text)
        return ["sh", "-c", f"{run}; echo; echo {MARK}$ended"]

    def line(self, command: Sequence[str], interactive: bool = False) -> str:
        return shlex.join(self.argv(command, interactive))

    def temporary(self) -> list[str]:
        return ["sh", "-c", f'for at in {TEMPORARY}; do [ -d "$at" ] && echo "$at" && exit; done; exit 1']

    def make(self, path: str) -> list[str]:
        return ["mkdir", "-m", "700", "-p", path]

    def remove(self, paths: Sequence[str]) -> list[str]:
        return ["rm", "-rf", *paths]

    def names(self, path: str) -> list[str]:
        return ["ls", path]

    def free(self, path: str) -> list[str]:
        return ["df", "-Pk", path]

    def hashes(self, paths: Sequence[str]) -> list[str]:
        return ["sha256sum", *paths]


PROGRAM = """
import hashlib, json, os, shutil, subprocess, sys, tempfile, threading
def run():
    child = subprocess.Popen(command, stdin=None if interactive else subprocess.DEVNULL)
    def watch():
        sys.stdin.buffer.read()
        child.terminate()
    if not interactive:
        threading.Thread(target=watch, daemon=True).start()
    return child.wait()
def remove(*paths):
    for path in paths:
        shutil.rmtree(path, True)
        if os.path.exists(path):
            os.remove(path)
def hashes(*paths):
    for path in paths:
        sha256 = hashlib.sha256()
        with open(path, "rb") as file:
            for part in iter(lambda: file.read(1 << 20), b""):
                sha256.update(part)
        print(sha256.hexdigest(), "", path)
operations = {
    "@temporary": lambda: print(tempfile.gettempdir().replace(os.sep, "/")),
    "@make": lambda path: os.makedirs(path, 0o700, exist_ok=True),
    "@remove": remove,
    "@names": lambda path: print("\\n".join(os.listdir(path))),
    "@free": lambda path: print("disk", 0, 0, shutil.disk_usage(path).free // 1024),
    "@hashes": hashes,
}
code = 0
try:
    if command[0] in operations:
        operations[command[0]](*command[1:])
    else:
        code = run()
except FileNotFoundError as error:
    code = 1 if command[0] in operations else 127
    print(error, file=sys.stderr)
except OSError as error:
    code = 1
    print(error, file=sys.stderr)
print("\\n" + mark + str(code if code >= 0 else 128 - code), flush=True)
os._exit(0)
"""


class Python:
    """Remote Python in place of a shell. Its command line has no character with a meaning to cmd or PowerShell."""

    def __init__(self, python: str) -> None:
        self.python = python

    def argv(self, command: Sequence[str], interactive: bool = False) -> list[str]:
        program = f"command={json.dumps(list(command))};interactive={interactive};mark={MARK!r}\n{PROGRAM}"
        coded = base64.b64encode(program.encode()).decode()
        return [self.python, "-c", f"exec(__import__('base64').b64decode('{coded}'))"]

    def line(self, command: Sequence[str], interactive: bool = False) -> str:
        python, flag, program = self.argv(command, interactive)
        return f'{python} {flag} "{program}"'

    def temporary(self) -> list[str]:
        return ["@temporary"]

    def make(self, path: str) -> list[str]:
        return ["@make", path]

    def remove(self, paths: Sequence[str]) -> list[str]:
        return ["@remove", *paths]

    def names(self, path: str) -> list[str]:
        return ["@names", path]

    def free(self, path: str) -> list[str]:
        return ["@free", path]

    def hashes(self, paths: Sequence[str]) -> list[str]:
        return ["@hashes", *paths]
