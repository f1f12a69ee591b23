"""Reading files from outside, with limits: regular files up to a size, documents up to a depth, finite numbers.

Every parser of a file that harness did not write starts here. A file that cannot be used raises `Unreadable`, or the
error that `parsing` was given, with the file's name and the cause in one line.
"""

from __future__ import annotations

import errno
import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.errors import EnvironmentFault, HarnessError, describe, one_line

__all__ = ["Unreadable", "must_be_regular", "parsing"]

DOCUMENT = 64 * 2**20  # bytes of a JSON document, and of an unpacked side file
SETTINGS = 256 * 2**10  # bytes of a YAML file
NODES = 100_000  # of a YAML file, with its aliases expanded
DEPTH = 100
MEMORY = 256 * 2**20  # bytes that the values of a JSON document may take, estimated before it is parsed
LARGEST = 2**128  # largest absolute value of an integer
# Only a number of 39 digits, or with an exponent of three digits, can be infinite or too large. Such numbers are found
# quickly in a text whose digits are all replaced by zeros.
_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_EXPONENTS = [re.compile(rb"%b\+?000+(?:[\s,\]}]|\Z)" % letter) for letter in (b"e", b"E")]


class Unreadable(ValueError):
    """A file that cannot be used, and why. `damaged` is false if its content may be good but cannot be read now."""

    def __init__(self, path: Path, why: str, damaged: bool = True) -> None:
        super().__init__(f"{path} {why}")
        self.path, self.why, self.damaged = path, why, damaged


@contextmanager
def parsing(path: Path, what: str, remedy: str = "", error: type[HarnessError] = EnvironmentFault) -> Iterator[None]:
    """Turn whatever a parser raises in the block into `error`, with one line of cause and the remedy.

    Panics of Rust libraries are BaseExceptions, so these are caught too.
    """
    try:
        yield
    except (HarnessError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except FileNotFoundError:
        raise error(f"there is no file {path}", remedy) from None
    except Unreadable as fault:
        raise error(one_line(str(fault)), remedy) from None
    except BaseException as fault:
        raise error(f"{path} is not {what}: {describe(fault, most=300)}", remedy) from fault


def content(path: Path, limit: int = DOCUMENT) -> bytes:
    """The bytes of a regular file. Raises FileNotFoundError only if nothing at all has this name, not even a link."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        if not os.path.lexists(path):
            raise
        raise Unreadable(path, "is a link to nothing") from None
    except (OSError, ValueError) as error:
        why = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        raise Unreadable(path, why, damaged=getattr(error, "errno", 0) == errno.ELOOP) from None
    try:
        state = os.fstat(descriptor)
        _must_be_regular(path, state.st_mode)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(min(limit, state.st_size or limit) + 1)
    except OSError as error:
        raise Unreadable(path, f"cannot be read: {error.strerror or error}", damaged=False) from None
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise Unreadable(path, f"is larger than {limit:,} bytes")
    return data


def must_be_regular(path: Path) -> None:
    """Raise Unreadable unless this is a regular file. For files that a library opens: a pipe would never end."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if not os.path.lexists(path):
            raise
        raise Unreadable(path, "is a link to nothing") from None
    except (OSError, ValueError) as error:
        raise Unreadable(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    _must_be_regular(path, mode)


def _must_be_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise Unreadable(path, "is a folder" if stat.S_ISDIR(mode) else "is not a regular file")


def json_file(path: Path, limit: int = DOCUMENT) -> Any:
    """The value of a JSON file, checked for finite numbers, valid Unicode and a moderate depth."""
    return json_value(path, content(path, limit))


def json_value(path: Path, text: bytes) -> Any:
    """The value of a JSON text, checked as in `json_file`. `path` is the file that errors name."""
    from pydantic_core import from_json

    if 150 * len(text) > MEMORY and _memory(text) > MEMORY:
        raise Unreadable(path, "holds too many values")
    try:
        value = from_json(text, allow_inf_nan=False)  # which limits the depth
    except ValueError as error:
        why = "is nested too deeply" if "recursion" in str(error) else "is truncated or not JSON"
        raise Unreadable(path, why) from None
    zeros = text.translate(_ZEROS)
    huge = b"0" * 39 in zeros or any(exponent.search(zeros) for exponent in _EXPONENTS)
    if huge and (odd := odd_number(value)):
        raise Unreadable(path, f"holds {odd}")
    return value


def _memory(text: bytes) -> int:
    """A high estimate of the bytes that the values of a JSON text take."""
    containers = text.count(b"{") + text.count(b"[")
    return 150 * containers + 32 * text.count(b",") + 30 * text.count(b'"')


def odd_number(value: object) -> str:
    """Text that names an infinite or too large number in plain data; empty if there is none."""
    remaining: list[object] = [value]
    while remaining:
        item = remaining.pop()
        if isinstance(item, dict):
            remaining += item.values()
        elif isinstance(item, list):
            remaining += item
        elif isinstance(item, float) and not math.isfinite(item):
            return "a number that is not finite"
        elif isinstance(item, int) and abs(item) > LARGEST:
            return "an integer that is too large"
    return ""


def yaml_file(path: Path, limit: int = SETTINGS) -> Any:
    """The value of a YAML file, checked to have only the types of JSON and few nodes with its aliases expanded."""
    import yaml

    text = content(path, limit)
    loader_type: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        loader = loader_type(text.decode())
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if why := _too_large(node):
                raise Unreadable(path, why)
            value = loader.construct_document(node)
        finally:
            loader.dispose()
    except Unreadable:
        raise
    except RecursionError:
        raise Unreadable(path, "is nested too deeply") from None
    except Exception as error:  # ValueError from dates and long integers, TypeError from odd merge keys
        raise Unreadable(path, _yaml_fault(error)) from None
    if why := _not_plain(value):
        raise Unreadable(path, f"holds {why}")
    return value


def _yaml_fault(error: Exception) -> str:
    text = describe(error, most=300)
    if "maximum nesting depth" in text:
        return "is nested too deeply"
    if "integer string conversion" in text:
        return "holds an integer that is too large"
    return f"is not YAML: {text}".replace(' in "<unicode string>"', "")


def _too_large(root: Any) -> str:
    """Why a graph of YAML nodes is refused: a node contains itself, or expanded aliases make too many. Empty if not."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: Any, depth: int) -> int:
        if depth > DEPTH or id(node) in open_nodes:
            raise RecursionError
        if id(node) not in sizes:
            open_nodes.add(id(node))
            total = 1
            if isinstance(node.value, list):
                for child in node.value:
                    for part in child if isinstance(child, tuple) else (child,):
                        total += size(part, depth + 1)
            open_nodes.remove(id(node))
            sizes[id(node)] = total
        return sizes[id(node)]

    try:
        total = size(root, 0)
    except RecursionError:
        return "is nested too deeply"
    return f"has more than {NODES:,} nodes" if total > NODES else ""


def _not_plain(value: object) -> str:
    """Text that names a part of a YAML value that JSON does not have; empty if there is none."""
    remaining: list[object] = [value]
    while remaining:
        item = remaining.pop()
        if isinstance(item, dict):
            if wrong := [name for name in item if not isinstance(name, str | int | float | bool | None)]:
                return f"a name that is not text: {one_line(repr(wrong[0]), 60)}"
            remaining += [*item, *item.values()]
        elif isinstance(item, list):
            remaining += item
        elif not isinstance(item, str | int | float | bool | None):
            return f"a {type(item).__name__}, which is not plain text: quote it"
        elif isinstance(item, str) and not item.isascii() and _has_lone_surrogate(item):
            return "text that is not Unicode"
    return odd_number(value)


def _has_lone_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
