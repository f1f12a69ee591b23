"""Side files of records: raw samples and scores by document, as compressed JSON named by the hash of its text."""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.errors import HarnessError, one_line
from harness.system.reading import DOCUMENT, Unreadable, content, json_value

SIDE_FILE = re.compile(r"[0-9a-f]{64}\.json\.gz")
CHUNK = 2**18  # bytes that are unpacked at a time


def name_of(text: bytes) -> str:
    """The file name of a text. It proves the text, whichever gzip packs it."""
    return f"{hashlib.sha256(text).hexdigest()}.json.gz"


def pack(text: bytes) -> bytes:
    """Compress a text. Equal texts give equal bytes on one machine; another version of zlib may give others."""
    return gzip.compress(text, mtime=0)


def check_side_file(path: Path) -> None:
    """Raise HarnessError unless a file is one whole gzip stream, and the hash of its text is its name."""
    try:
        _text_of(path)
    except (Unreadable, FileNotFoundError) as fault:
        raise _damaged(fault) from None


def load_side_file(path: Path) -> Any:
    """The JSON value of a side file; None if there is no such file. Raises HarnessError if the file is damaged."""
    try:
        return parse_side_file(path)
    except FileNotFoundError:
        return None
    except Unreadable as fault:
        raise _damaged(fault) from None


def parse_side_file(path: Path) -> Any:
    """The JSON value of a side file. Raises Unreadable or FileNotFoundError."""
    return json_value(path, _text_of(path))


def _damaged(fault: Exception) -> HarnessError:
    return HarnessError(one_line(str(fault)), "harness validate lists every damaged file")


def _text_of(path: Path) -> bytes:
    """The text of a side file, whose hash must be in its name."""
    packed = content(path)
    unpack = _unpack_cached if len(packed) < CHUNK else _unpack  # large texts are not kept in memory
    try:
        return unpack(packed, path.name)
    except zlib.error as error:
        raise Unreadable(path, f"is damaged: {error}") from None
    except ValueError as error:
        raise Unreadable(path, str(error)) from None


def _unpack(packed: bytes, name: str) -> bytes:
    """The text of one gzip stream whose hash is in `name`.

    It is unpacked in chunks up to a limit, because a small file may hold gigabytes.
    """
    stream = zlib.decompressobj(16 + zlib.MAX_WBITS)
    text = bytearray()
    for start in range(0, len(packed), CHUNK):
        remaining = packed[start : start + CHUNK]
        while piece := stream.decompress(remaining, CHUNK):
            remaining = stream.unconsumed_tail
            text += piece
            if len(text) > DOCUMENT:
                raise ValueError(f"unpacks to more than {DOCUMENT:,} bytes")
        if stream.unused_data or (stream.eof and start + CHUNK < len(packed)):
            raise ValueError("is damaged: something follows its end")
    if not stream.eof:
        raise ValueError("is damaged: it ends too early")
    text_bytes = bytes(text)
    if name_of(text_bytes) != name:
        raise ValueError("does not match its name")
    return text_bytes


_unpack_cached = lru_cache(maxsize=8)(_unpack)  # a file is often checked and then loaded
