"""How another machine is spoken to: a POSIX shell, or a Python where there is none, as on Windows.

Both understand the same few orders about files, so that nothing else asks which of them it is.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Sequence
from typing import Protocol

MARK = "__HARNESS_ENDED_WITH_"
NOTHING_CAME = -1  # a command's end was never told: it or the line to it was lost


def ended(out: str) -> tuple[int, str]:
    """The exit code that stands behind a command's output as text, for old daemons tell none; and the output."""
    text, found, code = out.replace("\r\n", "\n").rpartition(f"\n{MARK}")
    if not found or not re.fullmatch("[0-9]{1,9}", code.strip()):
        return NOTHING_CAME, out
    return int(code), text


class Shell(Protocol):
    def argv(self, words: Sequence[str], talks: bool = False) -> list[str]:
        """A program and its arguments, which runs these words and tells how they ended.

        When its stdin ends, nobody waits any more, and so do the words; one that `talks` sees to that itself.
        """

    def line(self, words: Sequence[str], talks: bool = False) -> str:
        """The same for a login shell, whichever it is."""

    # orders: words for `argv` and `line`
    def temporary(self) -> list[str]: ...
    def make(self, path: str) -> list[str]: ...
    def remove(self, paths: Sequence[str]) -> list[str]: ...
    def names(self, path: str) -> list[str]: ...
    def free(self, path: str) -> list[str]:
        """Prints as `df -Pk` does: KiB in the fourth column of the last line."""

    def hashes(self, paths: Sequence[str]) -> list[str]:
        """Prints as `sha256sum` does."""


TEMPORARY = '"$TMPDIR" /data/local/tmp /tmp'  # Android has no /tmp


# a shell gives what it starts aside no stdin, so that is kept under another number
WATCHED = (
    "exec 3<&0; {} </dev/null 3<&- & child=$!; ( cat <&3; kill $child ) >/dev/null 2>&1 & watch=$!;"
    " wait $child; ended=$?; kill $watch 2>/dev/null"
)


class Posix:
    def argv(self, words: Sequence[str], talks: bool = False) -> list[str]:
        run = f"( {shlex.join(words)} ); ended=$?"
        return ["sh", "-c", f"{run if talks else WATCHED.format(shlex.join(words))}; echo; echo {MARK}$ended"]

    def line(self, words: Sequence[str], talks: bool = False) -> str:
        return shlex.join(self.argv(words, talks))

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
    child = subprocess.Popen(words, stdin=None if talks else subprocess.DEVNULL)
    def watch():
        sys.stdin.buffer.read()
        child.terminate()
    if not talks:
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
orders = {
    "@temporary": lambda: print(tempfile.gettempdir().replace(os.sep, "/")),
    "@make": lambda path: os.makedirs(path, 0o700, exist_ok=True),
    "@remove": remove,
    "@names": lambda path: print("\\n".join(os.listdir(path))),
    "@free": lambda path: print("disk", 0, 0, shutil.disk_usage(path).free // 1024),
    "@hashes": hashes,
}
code = 0
try:
    if words[0] in orders:
        orders[words[0]](*words[1:])
    else:
        code = run()
except FileNotFoundError as error:
    code = 1 if words[0] in orders else 127
    print(error, file=sys.stderr)
except OSError as error:
    code = 1
    print(error, file=sys.stderr)
print("\\n" + mark + str(code if code >= 0 else 128 - code), flush=True)
os._exit(0)
"""


class Python:
    """A Python over there in place of a shell. No character of a line means anything to cmd or PowerShell."""

    def __init__(self, python: str) -> None:
        self.python = python

    def argv(self, words: Sequence[str], talks: bool = False) -> list[str]:
        program = f"words={json.dumps(list(words))};talks={talks};mark={MARK!r}\n{PROGRAM}"
        coded = base64.b64encode(program.encode()).decode()
        return [self.python, "-c", f"exec(__import__('base64').b64decode('{coded}'))"]

    def line(self, words: Sequence[str], talks: bool = False) -> str:
        python, flag, program = self.argv(words, talks)
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
