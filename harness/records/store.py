"""What is written under which name: records, stage results, raw samples, and who is working on what."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import socket
import struct
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from harness.errors import HarnessError, one_line, without_secrets
from harness.records.files import Files, guarded, storable
from harness.records.keys import KEY_VERSION, canonical
from harness.system.locks import Owner, held
from harness.system.reading import DOCUMENT, Unreadable, content, json_value

HEARTBEAT_S = 5.0
RECORD = 4 * 2**20  # bytes of a record
SIDE_FILE = re.compile(r"[0-9a-f]{64}\.json\.gz")
PIECE = 2**18  # bytes that are unpacked at a time
# Of every side file: no name, no time, packed tightly. Python's own differs from one version to the next.
HEADER = bytes.fromhex("1f8b0800000000000203")
USUAL = "5059bd02c759d42e0f2474b44198a3d7f69d2e07ff542544089920514a9d81bc"  # what zlib makes of a certain text


class Store(Files):
    """The runs folder."""

    def __init__(self, root: Path | None = None) -> None:
        super().__init__(root or Path(os.environ.get("HARNESS_RUNS") or "runs"))

    def side_file(self, words: Any) -> str:
        """Compressed JSON named by its hash: raw samples, scores per document."""
        with storable(self.path("samples")):
            text = canonical(json.loads(canonical(words))).encode()  # a number as a name is text, and sorts as such
            path = self.path("samples", f"{hashlib.sha256(text).hexdigest()}.json.gz")
            if len(text) > DOCUMENT:
                raise Unreadable(path, f"is larger than {DOCUMENT:,} bytes")
            json_value(path, text)
        if not path.exists():
            self.write_bytes(path, packed(text))
        return path.name

    def lacks(self, *names: str) -> bool:
        """Whether any of these side files is missing or damaged."""
        return any(self.read_side_file(name) is None for name in names if name)

    def read_side_file(self, name: str) -> Any:
        """The words of a side file, or None if there is none or it is damaged; damage is named and set aside."""
        if not SIDE_FILE.fullmatch(name):
            self.notice(f"{one_line(name, 100)} is not the name of a side file; not used")
            return None
        path = self.path("samples", name)
        try:
            return _side_words(path)
        except FileNotFoundError:
            return None
        except Unreadable as fault:
            self.refuse(path, fault.why, fault.damaged)
            return None

    # --- stages ---

    def stage(self, kind: str, key: str) -> Any:
        """The stored result of a stage, or None."""
        path = self.path("stages", kind, f"{key}.json")
        words = self.read(path)
        if words is None:
            return None
        if not isinstance(words, dict) or words.get("digest") != _seal(kind, key, words.get("value")):
            self.set_aside(path, "was edited since it was written")
            return None
        return words.get("value")

    def save_stage(self, kind: str, key: str, components: Any, value: Any) -> None:
        words = {"key_version": KEY_VERSION, "components": components, "value": value}
        self.write(self.path("stages", kind, f"{key}.json"), words | {"digest": _seal(kind, key, value)})

    def components(self, kind: str) -> dict[str, Any]:
        """What each stored key of a kind was made of."""
        found = {}
        for path in self.files("stages", kind):
            words = self.read(path)
            if isinstance(words, dict) and isinstance(words.get("components"), dict):
                found[path.stem] = words["components"]
        return found

    # --- records ---

    def record_path(self, cell: str) -> Path:
        return self.path("records", f"{cell}.json")

    def record(self, cell: str) -> Any:
        """A cell's record, or None: absent, truncated, edited or of another schema."""
        path = self.record_path(cell)
        words = self.read(path, RECORD)
        return None if words is None else self._valid(path, words)

    def _valid(self, path: Path, words: Any) -> Any:
        from pydantic import ValidationError

        from harness.records.schema import Record, intact

        try:
            record = Record.model_validate(words)
        except ValidationError as error:
            self.set_aside(path, f"is not a record ({error.error_count()} fields are wrong)")
            return None
        if not intact(words) or record.id != path.stem:
            self.set_aside(path, "was edited since it was written")
            return None
        return record

    def records(self) -> list[Any]:
        records = (self.record(path.stem) for path in self.files("records"))
        return [record for record in records if record is not None]

    def save_record(self, record: Any) -> None:
        self.write(self.record_path(record.id), record.words(), RECORD)

    # --- leases and logs ---

    @contextlib.contextmanager
    def lease(self, cell: str, told: Callable[[str], None] = lambda _: None) -> Iterator[Callable[[str], None]]:
        """Only one process works on a cell; others see who, where and at which stage. A second one waits."""
        path = self.path("leases", f"{cell}.json")
        with guarded(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(str(path.with_suffix(".lock")))
            _acquire(lock, lambda: told("another process is running this cell; waiting for it"))
            owner = str(Owner.here(path.parent))
        words = {"pid": os.getpid(), "host": socket.gethostname(), "owner": owner, "started": time.time(), "stage": ""}
        stop = threading.Event()

        def beat(stage: str | None = None) -> None:
            if stage is not None:
                words["stage"] = stage
            self.write(path, words | {"heartbeat": time.time()})

        def keep() -> None:
            while not stop.wait(HEARTBEAT_S):
                with contextlib.suppress(HarnessError):
                    beat()

        thread = threading.Thread(target=keep, daemon=True)
        try:
            beat("start")
            thread.start()
            yield beat
        finally:
            stop.set()
            thread.join()
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            lock.release()

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Two cells that need the same artefact make it once."""
        path = self.path("leases", f"{name}.lock")
        lock = FileLock(str(path))
        with guarded(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            _acquire(lock)
        try:
            yield
        finally:
            lock.release()

    def leases(self) -> dict[str, dict[str, Any]]:
        """Cells at work, with `alive` false where the process is dead."""
        found = {}
        for path in self.files("leases"):
            words = self.read(path)
            if words is None:
                continue
            if not _is_lease(words):
                self.notice(f"{path} is not a lease; ignored")
                continue
            owner, lock = Owner.parse(words.get("owner")), path.with_suffix(".lock")
            state = held(lock) or None if owner is None else owner.alive(lock)
            if state is None:  # nothing proves it: of another host, or of an older harness
                state = abs(time.time() - words["heartbeat"]) < 3 * HEARTBEAT_S
            found[path.stem] = words | {"alive": state}
        return found

    def log_traceback(self, cell: str) -> Path:
        path = self.path("logs", f"{cell}-{int(time.time())}.txt")
        self.write_bytes(path, without_secrets(traceback.format_exc()).encode())
        return path


def _acquire(lock: FileLock, on_wait: Callable[[], None] = lambda: None) -> None:
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_wait()
            lock.acquire()
    except NotImplementedError:  # the file system has no locks
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK)) from None


def _is_lease(words: Any) -> bool:
    if not isinstance(words, dict) or not isinstance(words.get("pid"), int):
        return False
    texts = all(isinstance(words.get(name), str) for name in ("host", "stage"))
    return texts and isinstance(words.get("heartbeat"), int | float)


def packed(text: bytes) -> bytes:
    """A side file's bytes, the same wherever it is written: where Python has another zlib, in plain blocks."""
    return HEADER + (_pressed(text) if _usual_zlib() else _plain(text)) + _trailer(text)


def _pressed(text: bytes) -> bytes:
    press = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return press.compress(text) + press.flush()


def _plain(text: bytes) -> bytes:
    """Deflate's blocks of what is not compressed: a flag at the last one, its length, the same inverted."""
    blocks = [text[at : at + 0xFFFF] for at in range(0, len(text), 0xFFFF)]
    heads = (struct.pack("<BHH", block is blocks[-1], len(block), 0xFFFF - len(block)) for block in blocks)
    return b"".join(head + block for head, block in zip(heads, blocks, strict=True))


@cache
def _usual_zlib() -> bool:
    """Whether this zlib packs as zlib itself does; zlib-ng and others find other matches."""
    text = canonical([n * n % 7919 / 7 for n in range(1000)]).encode()
    return hashlib.sha256(_pressed(text)).hexdigest() == USUAL


def _trailer(text: bytes) -> bytes:
    return struct.pack("<II", zlib.crc32(text), len(text) % 2**32)


def misfit(path: Path) -> str:
    """What in a side file is not as it would be written; empty if nothing. Damage is raised. Its text has the hash that
    is its name."""
    try:
        packed = content(path)
        text = _text_of(path, packed)
    except (Unreadable, FileNotFoundError) as fault:
        raise _damaged(path, fault) from None
    return "" if _fits(packed, text, _usual_zlib()) else "is not packed as samples are"


@lru_cache(maxsize=64)  # many records share the dense model's samples
def _fits(content: bytes, text: bytes, usual_zlib: bool) -> bool:
    body, end = content[len(HEADER) : -8], content[-8:]
    return content[: len(HEADER)] == HEADER and end == _trailer(text) and _well_packed(body, text, usual_zlib)


def _well_packed(body: bytes, text: bytes, usual_zlib: bool) -> bool:
    """Another zlib cannot say more than that it is one stream, which gives this text."""
    if usual_zlib:
        return body == _pressed(text) or body == _plain(text)
    if body == _plain(text):
        return True
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    return stream.decompress(body, len(text) + 1) == text and stream.eof and not stream.unused_data


def side_words(path: Path) -> Any:
    """What a file holds that is named by its hash; None where there is no such file."""
    try:
        return _side_words(path)
    except FileNotFoundError:
        return None
    except Unreadable as fault:
        raise _damaged(path, fault) from None


def _side_words(path: Path) -> Any:
    return json_value(path, _text_of(path, content(path)))


def _text_of(path: Path, packed: bytes) -> bytes:
    """The text of a side file; its hash must be its name."""
    unpack = _unpacked if len(packed) < PIECE else _unpacked.__wrapped__  # what is large is not kept in memory
    try:
        return unpack(packed, path.name)
    except (ValueError, zlib.error) as error:
        raise Unreadable(path, str(error) if isinstance(error, ValueError) else f"is damaged: {error}") from None


@lru_cache(maxsize=8)  # what was checked is read next
def _unpacked(packed: bytes, name: str) -> bytes:
    """The text of one gzip stream that has this name, unpacked in pieces: a small file may hold gigabytes."""
    stream, digest, text = zlib.decompressobj(16 + zlib.MAX_WBITS), hashlib.sha256(), bytearray()
    for at in range(0, len(packed), PIECE):
        left = packed[at : at + PIECE]
        while piece := stream.decompress(left, PIECE):
            left = stream.unconsumed_tail
            digest.update(piece)
            text += piece
            if len(text) > DOCUMENT:
                raise ValueError(f"unpacks to more than {DOCUMENT:,} bytes")
        if stream.unused_data or (stream.eof and at + PIECE < len(packed)):
            raise ValueError("is damaged: something follows its end")
    if not stream.eof:
        raise ValueError("is damaged: it ends too early")
    if f"{digest.hexdigest()}.json.gz" != name:
        raise ValueError("does not match its name")
    return bytes(text)


def _damaged(path: Path, fault: Exception) -> HarnessError:
    return HarnessError(one_line(str(fault)), "harness validate names all that is")


def _seal(kind: str, key: str, value: Any) -> str:
    return hashlib.sha256(canonical([kind, key, value]).encode()).hexdigest()
