"""The runs folder: records, stage results, side files of samples, and leases of the cells that are running."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from harness.errors import HarnessError, one_line, without_secrets
from harness.records import sample_files
from harness.records.files import Files, disk_errors, encoding_errors
from harness.records.keys import KEY_VERSION, canonical
from harness.system.locks import Owner, is_locked
from harness.system.reading import DOCUMENT, Unreadable, json_value

if TYPE_CHECKING:
    from harness.records.schema import Record

HEARTBEAT_S = 5.0
RECORD = 4 * 2**20  # bytes of a record


class Store(Files):
    """The runs folder."""

    def __init__(self, root: Path | None = None) -> None:
        super().__init__(root or Path(os.environ.get("HARNESS_RUNS") or "runs"))

    def side_file(self, payload: object) -> str:
        """Write raw samples or scores by document as a side file, unless it exists. Returns its name."""
        with encoding_errors(self.path("samples")):
            # encoded twice: the first pass turns numbers that are keys into text, the second sorts them as text
            text = canonical(json.loads(canonical(payload))).encode()
            path = self.path("samples", sample_files.name_of(text))
            if len(text) > DOCUMENT:
                raise Unreadable(path, f"is larger than {DOCUMENT:,} bytes")
            json_value(path, text)
        if not path.exists():
            self.write_bytes(path, sample_files.pack(text))
        return path.name

    def lacks(self, *names: str) -> bool:
        """Whether any of these side files is missing or damaged."""
        return any(self.read_side_file(name) is None for name in names if name)

    def read_side_file(self, name: str) -> Any:
        """The JSON value of a side file; None if it is missing or damaged. A damaged one is set aside with a notice."""
        if not sample_files.SIDE_FILE.fullmatch(name):
            self.notice(f"{one_line(name, 100)} is not the name of a side file; not used")
            return None
        path = self.path("samples", name)
        try:
            return sample_files.parse_side_file(path)
        except FileNotFoundError:
            return None
        except Unreadable as fault:
            self.refuse(path, fault.why, fault.damaged)
            return None

    # --- stages ---

    def stage(self, kind: str, key: str) -> Any:
        """The stored result of a stage, or None."""
        path = self.path("stages", kind, f"{key}.json")
        payload = self.read(path)
        if payload is None:
            return None
        if not isinstance(payload, dict) or payload.get("digest") != _stage_digest(kind, key, payload.get("value")):
            self.set_aside(path, "was edited since it was written")
            return None
        return payload.get("value")

    def save_stage(self, kind: str, key: str, components: object, value: object) -> None:
        payload = {"key_version": KEY_VERSION, "components": components, "value": value}
        self.write(self.path("stages", kind, f"{key}.json"), payload | {"digest": _stage_digest(kind, key, value)})

    def components(self, kind: str) -> dict[str, Any]:
        """For each stored key of this kind of stage, the components that it is the hash of."""
        components = {}
        for path in self.files("stages", kind):
            payload = self.read(path)
            if isinstance(payload, dict) and isinstance(payload.get("components"), dict):
                components[path.stem] = payload["components"]
        return components

    # --- records ---

    def record_path(self, cell: str) -> Path:
        return self.path("records", f"{cell}.json")

    def record(self, cell: str) -> Record | None:
        """A cell's record. None if it is missing, truncated, edited or of another schema."""
        path = self.record_path(cell)
        payload = self.read(path, RECORD)
        return None if payload is None else self._validated(path, payload)

    def _validated(self, path: Path, payload: Any) -> Record | None:
        from pydantic import ValidationError

        from harness.records.schema import Record, intact

        try:
            record = Record.model_validate(payload)
        except ValidationError as error:
            self.set_aside(path, f"is not a record ({error.error_count()} fields are wrong)")
            return None
        if not intact(payload) or record.id != path.stem:
            self.set_aside(path, "was edited since it was written")
            return None
        return record

    def records(self) -> list[Record]:
        records = (self.record(path.stem) for path in self.files("records"))
        return [record for record in records if record is not None]

    def save_record(self, record: Record) -> None:
        self.write(self.record_path(record.id), record.to_dict(), RECORD)

    # --- leases and logs ---

    @contextlib.contextmanager
    def lease(self, cell: str, on_wait: Callable[[str], None] = lambda _: None) -> Iterator[Callable[[str], None]]:
        """Hold a cell while the block runs: one process works on it, and a second one waits.

        The lease file tells other processes which process works on the cell, on which host and at which stage. The
        block gets a function that sets the stage.
        """
        path = self.path("leases", f"{cell}.json")
        with disk_errors(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(str(path.with_suffix(".lock")))
            _acquire(lock, lambda: on_wait("another process is running this cell; waiting for it"))
            owner = str(Owner.here(path.parent))
        lease = {"pid": os.getpid(), "host": socket.gethostname(), "owner": owner, "started": time.time(), "stage": ""}
        stop = threading.Event()

        def beat(stage: str | None = None) -> None:
            if stage is not None:
                lease["stage"] = stage
            self.write(path, lease | {"heartbeat": time.time()})

        def beat_until_stopped() -> None:
            while not stop.wait(HEARTBEAT_S):
                with contextlib.suppress(HarnessError):
                    beat()

        thread = threading.Thread(target=beat_until_stopped, daemon=True)
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
        """Hold a lock while the block runs, so that two cells that need the same artefact make it once."""
        path = self.path("leases", f"{name}.lock")
        lock = FileLock(str(path))
        with disk_errors(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            _acquire(lock)
        try:
            yield
        finally:
            lock.release()

    def leases(self) -> dict[str, dict[str, Any]]:
        """The leases by cell, each with `alive`: false if its process is dead."""
        leases = {}
        for path in self.files("leases"):
            lease = self.read(path)
            if lease is None:
                continue
            if not _is_lease(lease):
                self.notice(f"{path} is not a lease; ignored")
                continue
            owner, lock = Owner.parse(lease.get("owner")), path.with_suffix(".lock")
            alive = is_locked(lock) or None if owner is None else owner.alive(lock)
            if alive is None:  # no proof either way: the lease is of another host, or of an older harness
                alive = abs(time.time() - lease["heartbeat"]) < 3 * HEARTBEAT_S
            leases[path.stem] = lease | {"alive": alive}
        return leases

    def log_traceback(self, cell: str) -> Path:
        """Write the traceback of the current exception to a log file."""
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


def _is_lease(payload: object) -> bool:
    if not isinstance(payload, dict) or not isinstance(payload.get("pid"), int):
        return False
    has_texts = all(isinstance(payload.get(name), str) for name in ("host", "stage"))
    return has_texts and isinstance(payload.get("heartbeat"), int | float)


def _stage_digest(kind: str, key: str, value: object) -> str:
    return hashlib.sha256(canonical([kind, key, value]).encode()).hexdigest()
