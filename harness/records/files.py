"""Files of a folder that several processes share: written atomically, and set aside if they are damaged."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from harness.errors import EnvironmentFault, HarnessError, one_line
from harness.records import scratch
from harness.system import atomic
from harness.system.reading import DOCUMENT, Unreadable, json_file, json_value

OTHER_RUNS_FOLDER = ": HARNESS_RUNS=DIR"
_NUMBERS = itertools.count()
_LINE_BREAK = re.compile(rb"\n *")


class Files:
    """A folder that several processes write to. `notices` collects messages for the user."""

    def __init__(self, root: Path) -> None:
        self.root = _usable(root)
        self.suffix = f".{next(_NUMBERS)}"  # of scratch folders, because a process may have several of these objects
        self.notices: list[str] = []

    def path(self, *parts: str) -> Path:
        return self.root.joinpath(*parts)

    def files(self, *parts: str) -> list[Path]:
        """The JSON files of a folder, sorted by name. Empty if there is no such folder."""
        folder = self.path(*parts)
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            remedy = f"make it a folder that can be read, or use another runs folder{OTHER_RUNS_FOLDER}"
            raise EnvironmentFault(f"cannot read {folder}: {error.strerror}", remedy) from None
        return [folder / name for name in sorted(names) if name.endswith(".json")]

    # --- scratch ---

    def prepare(self) -> None:
        """Make the folder and check that it can be written to, before minutes are spent on work."""
        with disk_errors(self.root):
            probe = scratch.own_folder(self.path("tmp")) / f"{next(_NUMBERS)}"
            probe.write_bytes(b"x" * 4096)
            probe.unlink()
        self.sweep()

    def unwritable(self) -> EnvironmentFault | None:
        """Prepare the folder. Return why it cannot be written to, for callers that may only need to read."""
        try:
            self.prepare()
        except EnvironmentFault as fault:
            return fault
        return None

    def sweep(self, mine: bool = False) -> None:
        """Delete the scratch folders of dead processes; with `mine`, those of this object as well."""
        if mine:
            scratch.remove(self.path("tmp"), self.suffix)
        scratch.remove_abandoned(self.path("tmp"))

    def scratch(self, name: str) -> Path:
        """A new, empty folder that `commit` renames. If this process dies, another one deletes it."""
        with disk_errors(self.root):
            folder = scratch.own_folder(self.path("tmp")) / f"{name}{self.suffix}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        return folder

    def commit(self, scratch: Path, final: Path) -> None:
        """Rename a finished scratch folder to its final name."""
        with disk_errors(self.root):
            for file in scratch.rglob("*"):
                if file.is_file():
                    atomic.fsync(file)
            final.parent.mkdir(parents=True, exist_ok=True)
            if final.exists():
                shutil.rmtree(final)
            scratch.rename(final)
            atomic.fsync(final.parent)

    # --- JSON ---

    def write(self, path: Path, payload: object, limit: int = DOCUMENT) -> None:
        """Write JSON. Raises HarnessError if `read` would refuse the file."""
        with encoding_errors(path):
            content = json_text(payload)
            json_value(path, content)
            if len(content) > limit:
                raise Unreadable(path, f"is larger than {limit:,} bytes")
        self.write_bytes(path, content)

    def write_bytes(self, path: Path, content: bytes) -> None:
        with disk_errors(self.root):
            folder = scratch.own_folder(self.path("tmp"))
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_bytes(path, content, temporary=folder / f"{next(_NUMBERS)}")

    def read(self, path: Path, limit: int = DOCUMENT) -> Any:
        """The JSON value of a file; None if it is missing or damaged. A damaged file is set aside with a notice."""
        try:
            payload = json_file(path, limit)
        except FileNotFoundError:
            return None
        except Unreadable as fault:
            self.refuse(path, fault.why, fault.damaged)
            return None
        if payload is None:
            self.set_aside(path, "holds nothing")
        return payload

    def refuse(self, path: Path, why: str, damaged: bool) -> None:
        """Add a notice about a file that cannot be used. Set it aside only if it is damaged."""
        if damaged:
            self.set_aside(path, why)
        else:
            self.notice(f"{path} {why}; not used")

    def set_aside(self, path: Path, why: str) -> None:
        """Rename a damaged file to `NAME.damaged`, so that it is not read again. Deletes nothing, follows no link."""
        folder = Path(os.path.realpath(path.parent))
        if path.name == ".." or not folder.is_relative_to(os.path.realpath(self.root)):
            self.notice(f"{path} {why}; not used, and left as it is: it lies outside of {self.root}")
            return
        try:
            aside = _move_aside(folder / path.name)
        except OSError:  # the folder is read-only
            self.notice(f"{path} {why}; not used")
        else:
            self.notice(f"{path} {why}; set aside as {aside.name}, not used")

    def notice(self, text: str) -> None:
        self.notices.append(one_line(text))


@contextlib.contextmanager
def encoding_errors(path: Path) -> Iterator[None]:
    """Turn errors of values that cannot be written as readable JSON into a HarnessError with a remedy."""
    try:
        yield
    except (ValueError, RecursionError) as error:
        why = error.why if isinstance(error, Unreadable) else one_line(str(error), 200)
        if why == "is truncated or not JSON":  # the encoder accepts lone surrogates, the parser does not
            why = "holds text that is not Unicode"
        remedy = "a plug-in gave too much, or a number that is not finite: harness check NAME"
        raise HarnessError(f"{one_line(str(path))} is not written: it {why}", remedy) from None


def write_file(path: Path, content: bytes) -> None:
    """Write a file outside a store atomically, and report disk errors with a remedy."""
    with disk_errors(path.parent, ""):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(path, content)


def _move_aside(path: Path) -> Path:
    """Rename a file, link or folder to the first free `NAME.damaged.N`. Two processes never take the same name."""
    folder = path.is_dir() and not path.is_symlink()
    for number in itertools.count():
        aside = path.with_name(f"{path.name}.damaged" + (f".{number}" if number else ""))
        reserve = aside.mkdir if folder else functools.partial(aside.touch, exist_ok=False)
        try:
            if os.name != "nt":  # on Windows, renaming never replaces a file
                reserve()
        except FileExistsError:
            continue
        try:
            os.rename(path, aside)
        except FileExistsError:
            continue
        except OSError:
            if os.name != "nt":
                (aside.rmdir if folder else aside.unlink)()
            raise
        return aside
    raise AssertionError


def json_text(payload: object) -> bytes:
    """The JSON text that is written to files: indented, with sorted names."""
    return (json.dumps(payload, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def is_json_text_of(content: bytes, payload: object) -> bool:
    """Whether `content` equals `json_text(payload)`. Two faster tests come first."""
    from pydantic_core import to_json

    # json's C encoder, which cannot indent, proves the order of names and how numbers are written. pydantic's, which
    # writes some numbers in another way, proves the white space.
    flat = json.dumps(payload, sort_keys=True, allow_nan=False, separators=(",", ": ")).encode()
    if _LINE_BREAK.sub(b"", content) == flat and content == to_json(payload, indent=2) + b"\n":
        return True
    return content == json_text(payload)


@contextlib.contextmanager
def disk_errors(root: Path, option: str = OTHER_RUNS_FOLDER) -> Iterator[None]:
    """Turn errors of writing to disk into an EnvironmentFault with a remedy.

    `option` tells how a user names another folder; it is empty where there is no such option.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        remedies = {
            errno.ENOSPC: f"make room, of bytes (df -h) or of files (df -i), or write elsewhere{option}",
            errno.EDQUOT: f"your quota is used up: remove files, or write elsewhere{option}",
            errno.ENOLCK: f"give a folder whose file system has locks{option}",
        }
        remedy = remedies.get(getattr(error, "errno", None) or 0, f"give a folder that can be written{option}")
        cause = f"cannot write to {root}: {getattr(error, 'strerror', None) or error}"
        raise EnvironmentFault(cause, remedy) from error


def _usable(root: Path) -> Path:
    """The path with links resolved. It need not exist yet; EnvironmentFault if it can never be a folder."""
    try:
        str(root).encode()
        path = root.resolve()
        str(path).encode()
    except FileNotFoundError:
        why = "the working folder was deleted"
    except UnicodeEncodeError:
        why = "its name is not UTF-8"
    except (OSError, ValueError, RuntimeError) as error:  # a link to itself, a NUL
        why = getattr(error, "strerror", None) or one_line(str(error), 200)
    else:
        try:
            os.scandir(path).close()
            return path
        except FileNotFoundError:
            return path
        except OSError as error:
            why = error.strerror or str(error)
    raise EnvironmentFault(
        f"cannot use {one_line(str(root), 200)} as the runs folder: {why}", f"give another folder{OTHER_RUNS_FOLDER}"
    )
