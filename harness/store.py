"""What is written under which name: records, stage results, raw samples, and who is working on what."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import socket
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from harness.errors import HarnessError
from harness.files import Files, alive, guarded
from harness.keys import KEY_VERSION, canonical

HEARTBEAT_S = 5.0


class Store(Files):
    """The runs folder."""

    def __init__(self, root: Path | None = None) -> None:
        super().__init__(root or Path(os.environ.get("HARNESS_RUNS") or "runs"))

    def side_file(self, words: Any) -> str:
        """Compressed JSON named by its hash: raw samples, scores per document."""
        text = canonical(words).encode()
        name = f"{hashlib.sha256(text).hexdigest()}.json.gz"
        path = self.path("samples", name)
        if not path.exists():
            self.write_bytes(path, gzip.compress(text, mtime=0))
        return name

    def lacks(self, *names: str) -> bool:
        """Whether any of these side files is missing or damaged."""
        return any(self.read_side_file(name) is None for name in names if name)

    def read_side_file(self, name: str) -> Any:
        path = self.path("samples", name)
        try:
            return side_words(path)
        except HarnessError:
            self.set_aside(path, "does not match its name")
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
        return words["value"]

    def save_stage(self, kind: str, key: str, components: Any, value: Any) -> None:
        words = {"key_version": KEY_VERSION, "components": components, "value": value}
        self.write(self.path("stages", kind, f"{key}.json"), words | {"digest": _seal(kind, key, value)})

    def components(self, kind: str) -> dict[str, Any]:
        """What each stored key of a kind was made of."""
        found = {}
        for path in sorted(self.path("stages", kind).glob("*.json")):
            words = self.read(path)
            if isinstance(words, dict):
                found[path.stem] = words.get("components") or {}
        return found

    # --- records ---

    def record_path(self, cell: str) -> Path:
        return self.path("records", f"{cell}.json")

    def record(self, cell: str) -> Any:
        """A cell's record, or None: absent, truncated, edited or of another schema."""
        path = self.record_path(cell)
        words = self.read(path)
        return None if words is None else self._valid(path, words)

    def _valid(self, path: Path, words: Any) -> Any:
        from pydantic import ValidationError

        from harness.records import Record, intact

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
        paths = sorted(self.path("records").glob("*.json"))
        found = [(path, self.read(path)) for path in paths]
        valid = [self._valid(path, words) for path, words in found if words is not None]
        return [record for record in valid if record is not None]

    def save_record(self, record: Any) -> None:
        self.write(self.record_path(record.id), record.words())

    # --- leases and logs ---

    @contextlib.contextmanager
    def lease(self, cell: str, told: Callable[[str], None] = lambda _: None) -> Iterator[Callable[[str], None]]:
        """Only one process works on a cell; others see who, where and at which stage. A second one waits."""
        path = self.path("leases", f"{cell}.json")
        with guarded(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(path.with_suffix(".lock")))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            told("another process is running this cell; waiting for it")
            lock.acquire()
        words = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.time(), "stage": ""}
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
            path.unlink(missing_ok=True)
            lock.release()

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Two cells that need the same artefact make it once."""
        path = self.path("leases", f"{name}.lock")
        with guarded(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(path)):
            yield

    def leases(self) -> dict[str, dict[str, Any]]:
        """Cells at work, with `alive` false where the heartbeat stopped."""
        found = {}
        for path in sorted(self.path("leases").glob("*.json")):
            words = self.read(path)
            try:
                words["alive"] = time.time() - words["heartbeat"] < 3 * HEARTBEAT_S
                if words["alive"] and words["host"] == socket.gethostname():
                    words["alive"] = alive(words["pid"])
                found[path.stem] = words
            except (TypeError, KeyError):
                self.notices.append(f"{path} is not a lease; ignored")
        return found

    def log_traceback(self, cell: str) -> Path:
        path = self.path("logs", f"{cell}-{int(time.time())}.txt")
        self.write_bytes(path, traceback.format_exc().encode())
        return path


def side_words(path: Path) -> Any:
    """What a file holds that is named by its hash; None where there is no such file."""
    from pydantic_core import from_json

    try:
        text = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, EOFError, zlib.error) as error:
        raise HarnessError(f"{path} is damaged: {error}", "harness validate names all that is") from error
    if f"{hashlib.sha256(text).hexdigest()}.json.gz" != path.name:
        raise HarnessError(f"{path} does not match its name", "harness validate names all that does not")
    return from_json(text)


def _seal(kind: str, key: str, value: Any) -> str:
    return hashlib.sha256(canonical([kind, key, value]).encode()).hexdigest()
