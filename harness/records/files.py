"""Atomic files in one folder: what is there is whole, what is damaged is named and set aside."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from harness.errors import EnvironmentFault, HarnessError, one_line
from harness.records import scratch
from harness.system.locks import alive as alive
from harness.system.reading import DOCUMENT, Unreadable, json_file, json_value

ELSEWHERE = ": HARNESS_RUNS=DIR"
_NUMBERS = itertools.count()
_BREAK = re.compile(rb"\n *")


class Files:
    """A folder that several processes write to. Notices collect what a user should hear about."""

    def __init__(self, root: Path) -> None:
        self.root = _usable(root)
        self.suffix = f".{next(_NUMBERS)}"  # of scratch folders: a process may have several of these objects
        self.notices: list[str] = []

    def path(self, *parts: str) -> Path:
        return self.root.joinpath(*parts)

    def files(self, *parts: str) -> list[Path]:
        """The JSON files of a folder, by name; none where there is no such folder."""
        folder = self.path(*parts)
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            remedy = f"make it a folder that can be read, or use another runs folder{ELSEWHERE}"
            raise EnvironmentFault(f"cannot read {folder}: {error.strerror}", remedy) from None
        return [folder / name for name in sorted(names) if name.endswith(".json")]

    # --- scratch ---

    def prepare(self) -> None:
        """Make the folder and prove that it can be written, before minutes are spent."""
        with guarded(self.root):
            probe = scratch.own_folder(self.path("tmp")) / f"{next(_NUMBERS)}"
            probe.write_bytes(b"x" * 4096)
            probe.unlink()
        self.sweep()

    def unwritable(self) -> EnvironmentFault | None:
        """Why the folder cannot be written, for those who may only have to read; it is prepared otherwise."""
        try:
            self.prepare()
        except EnvironmentFault as fault:
            return fault
        return None

    def sweep(self, mine: bool = False) -> None:
        """Clear the scratch of processes that are proven dead; in the end, this store's own as well."""
        if mine:
            scratch.remove(self.path("tmp"), self.suffix)
        scratch.remove_abandoned(self.path("tmp"))

    def scratch(self, name: str) -> Path:
        """An empty folder that `commit` turns into the real one; swept away if this process dies."""
        with guarded(self.root):
            folder = scratch.own_folder(self.path("tmp")) / f"{name}{self.suffix}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        return folder

    def commit(self, scratch: Path, final: Path) -> None:
        """Make a finished folder appear under its name, whole."""
        with guarded(self.root):
            for file in scratch.rglob("*"):
                if file.is_file():
                    _fsync(file)
            final.parent.mkdir(parents=True, exist_ok=True)
            if final.exists():
                shutil.rmtree(final)
            scratch.rename(final)
            _fsync(final.parent)

    # --- JSON ---

    def write(self, path: Path, words: Any, limit: int = DOCUMENT) -> None:
        """Write JSON, unless `read` would refuse it."""
        with storable(path):
            content = text_of(words)
            json_value(path, content)
            if len(content) > limit:
                raise Unreadable(path, f"is larger than {limit:,} bytes")
        self.write_bytes(path, content)

    def write_bytes(self, path: Path, content: bytes) -> None:
        with guarded(self.root):
            own = scratch.own_folder(self.path("tmp"))
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(own / f"{next(_NUMBERS)}", path, content)

    def read(self, path: Path, limit: int = DOCUMENT) -> Any:
        """The JSON of a file, or None if there is none or it is damaged; damage is named and set aside."""
        try:
            words = json_file(path, limit)
        except FileNotFoundError:
            return None
        except Unreadable as fault:
            self.refuse(path, fault.why, fault.damaged)
            return None
        if words is None:
            self.set_aside(path, "holds nothing")
        return words

    def refuse(self, path: Path, why: str, damaged: bool) -> None:
        """Name a file that cannot be used, and set it aside where it is damaged; it may be good otherwise."""
        if damaged:
            self.set_aside(path, why)
        else:
            self.notice(f"{path} {why}; not used")

    def set_aside(self, path: Path, why: str) -> None:
        """Give what is damaged a name under which nobody looks for it. Nothing is deleted, no link is followed."""
        place = Path(os.path.realpath(path.parent))
        if path.name == ".." or not place.is_relative_to(os.path.realpath(self.root)):
            self.notice(f"{path} {why}; not used, and left as it is: it lies outside of {self.root}")
            return
        try:
            aside = _moved_aside(place / path.name)
        except OSError:  # a folder that may only be read
            self.notice(f"{path} {why}; not used")
        else:
            self.notice(f"{path} {why}; set aside as {aside.name}, not used")

    def notice(self, text: str) -> None:
        self.notices.append(one_line(text))


@contextlib.contextmanager
def storable(path: Path) -> Iterator[None]:
    """Why content cannot become a file that is read again, as one line of cause and one of remedy."""
    try:
        yield
    except (ValueError, RecursionError) as error:
        why = error.why if isinstance(error, Unreadable) else one_line(str(error), 200)
        if why == "is truncated or not JSON":  # what the encoder lets through and the parser does not
            why = "holds text that is not Unicode"
        remedy = "a plug-in gave too much, or a number that is not finite: harness check NAME"
        raise HarnessError(f"{one_line(str(path))} is not written: it {why}", remedy) from None


def put(path: Path, content: bytes) -> None:
    """A file outside a store, whole or not at all."""
    with guarded(path.parent, ""):
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path.with_name(f".{path.name}.{secrets.token_hex(4)}"), path, content)


def _replace(temporary: Path, path: Path, content: bytes) -> None:
    """Write a file under another name and then rename it."""
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _fsync(path.parent)


def _moved_aside(path: Path) -> Path:
    """The first free name beside a file, link or folder, which has it now. Two processes never take the same one."""
    folder = path.is_dir() and not path.is_symlink()
    for number in itertools.count():
        aside = path.with_name(f"{path.name}.damaged" + (f".{number}" if number else ""))
        reserve = aside.mkdir if folder else functools.partial(aside.touch, exist_ok=False)
        try:
            if os.name != "nt":  # where renaming never replaces
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


def text_of(words: Any) -> bytes:
    """JSON as files hold it."""
    return (json.dumps(words, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def is_text_of(content: bytes, words: Any) -> bool:
    """Whether a file holds words byte for byte as `text_of` has them: by two faster ways that are stricter together."""
    from pydantic_core import to_json

    # by C: the order of names and how numbers are written; by Rust, whose numbers differ at times: white space
    flat = json.dumps(words, sort_keys=True, allow_nan=False, separators=(",", ": ")).encode()
    if _BREAK.sub(b"", content) == flat and content == to_json(words, indent=2) + b"\n":
        return True
    return content == text_of(words)


@contextlib.contextmanager
def guarded(root: Path, elsewhere: str = ELSEWHERE) -> Iterator[None]:
    """Disk trouble as one line of cause and one of remedy."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        remedy = {
            errno.ENOSPC: f"make room, of bytes (df -h) or of files (df -i), or write elsewhere{elsewhere}",
            errno.EDQUOT: f"your quota is used up: remove files, or write elsewhere{elsewhere}",
            errno.ENOLCK: f"give a folder whose file system has locks{elsewhere}",
        }.get(getattr(error, "errno", None) or 0, f"give a folder that can be written{elsewhere}")
        raise EnvironmentFault(
            f"cannot write to {root}: {getattr(error, 'strerror', None) or error}", remedy
        ) from error


def _usable(root: Path) -> Path:
    """The folder without links, which may be yet to be made; a path that can never be a folder is refused."""
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
        f"cannot use {one_line(str(root), 200)} as the runs folder: {why}", f"give another folder{ELSEWHERE}"
    )


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
