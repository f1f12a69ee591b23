"""What is written, and how it survives a crash: atomic files, a lease per cell, damage that is named and set aside."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import json
import os
import shutil
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from harness.errors import EnvironmentFault, HarnessError
from harness.keys import KEY_VERSION, canonical

HEARTBEAT_S = 5.0
MINE = f"@{socket.gethostname()}@{os.getpid()}"  # whose scratch a name in tmp/ is; folders may be shared by hosts


def default_root() -> Path:
    return Path(os.environ.get("HARNESS_RUNS") or "runs").resolve()


class Store:
    """A folder of records, artefacts and stage results. Notices collect what a user should hear about."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = Path(root) if root else default_root()
        self.notices: list[str] = []

    def path(self, *parts: str) -> Path:
        return self.root.joinpath(*parts)

    def prepare(self) -> None:
        """Make the folder and prove that it can be written, before minutes are spent."""
        with guarded(self.root):
            self.path("tmp").mkdir(parents=True, exist_ok=True)
            probe = self.path("tmp", f"probe{MINE}")
            probe.write_bytes(b"x" * 4096)
            probe.unlink()
        self.sweep(lambda pid: not _alive(pid))  # what killed processes left behind

    def sweep(self, over: Callable[[int], bool] = lambda pid: pid == os.getpid()) -> None:
        """Clear the scratch space of processes that are done, by default of this one."""
        for left in self.path("tmp").iterdir():
            host, _, pid = left.name.partition("@")[2].rpartition("@")
            if host == socket.gethostname() and pid.isdigit() and over(int(pid)):
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink(missing_ok=True)

    def scratch(self, name: str) -> Path:
        """An empty folder that `commit` turns into the real one; swept away if this process dies."""
        folder = self.path("tmp", f"{name}{MINE}")
        shutil.rmtree(folder, ignore_errors=True)
        with guarded(self.root):
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

    def write(self, path: Path, words: Any) -> None:
        text = json.dumps(words, indent=2, sort_keys=True, allow_nan=False) + "\n"
        self.write_bytes(path, text.encode())

    def write_bytes(self, path: Path, content: bytes) -> None:
        with guarded(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = self.path("tmp", f"{path.name}-{threading.get_ident()}{MINE}")
            scratch.parent.mkdir(parents=True, exist_ok=True)
            with scratch.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(path)
            _fsync(path.parent)

    def read(self, path: Path) -> Any:
        """The JSON of a file, or None if there is none or it is damaged; damage is named and set aside."""
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, UnicodeDecodeError):
            self.set_aside(path, "is truncated or not JSON")
            return None

    def set_aside(self, path: Path, why: str) -> None:
        aside = path.with_name(f"{path.name}.damaged")
        with guarded(self.root):
            if aside.is_dir():
                shutil.rmtree(aside)
            path.replace(aside)
        self.notices.append(f"{path} {why}; set aside as {aside.name}, not used")

    def side_file(self, words: Any) -> str:
        """Compressed JSON named by its hash: raw samples, scores per document."""
        text = canonical(words).encode()
        name = f"{hashlib.sha256(text).hexdigest()}.json.gz"
        path = self.path("samples", name)
        if not path.exists():
            self.write_bytes(path, gzip.compress(text, mtime=0))
        return name

    def read_side_file(self, name: str) -> Any:
        path = self.path("samples", name)
        try:
            text = gzip.decompress(path.read_bytes())
        except (OSError, EOFError):
            return None
        if f"{hashlib.sha256(text).hexdigest()}.json.gz" != name:
            self.set_aside(path, "does not match its name")
            return None
        return json.loads(text)

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

        from harness.records import Record, digest

        try:
            record = Record.model_validate(words)
        except ValidationError as error:
            self.set_aside(path, f"is not a record ({error.error_count()} fields are wrong)")
            return None
        if record.digest != digest(words) or record.id != path.stem:
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
            if isinstance(words, dict):
                words["alive"] = time.time() - words.get("heartbeat", 0) < 3 * HEARTBEAT_S
                if words["alive"] and words.get("host") == socket.gethostname():
                    words["alive"] = _alive(int(words["pid"]))
                found[path.stem] = words
        return found

    def log_traceback(self, cell: str) -> Path:
        path = self.path("logs", f"{cell}-{int(time.time())}.txt")
        self.write_bytes(path, traceback.format_exc().encode())
        return path


@contextlib.contextmanager
def guarded(root: Path) -> Iterator[None]:
    """Disk trouble as one line of cause and one of remedy."""
    try:
        yield
    except OSError as error:
        remedy = {
            errno.ENOSPC: "make room, or write elsewhere: HARNESS_RUNS=DIR",
            errno.EDQUOT: "your quota is used up: write elsewhere: HARNESS_RUNS=DIR",
        }.get(error.errno or 0, "give a folder that can be written: HARNESS_RUNS=DIR")
        raise EnvironmentFault(f"cannot write to {root}: {error.strerror or error}", remedy) from error


def _seal(kind: str, key: str, value: Any) -> str:
    return hashlib.sha256(canonical([kind, key, value]).encode()).hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
