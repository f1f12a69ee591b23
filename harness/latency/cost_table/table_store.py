"""Where cost tables lie: found for a device as it is now, filled where there is none, exported and imported."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from harness.api import Device, DeviceInfo, DeviceSpec, Workload
from harness.errors import EnvironmentFault, HarnessError, UsageError, one_line
from harness.latency.cost_table.cost_model import CostModel
from harness.latency.cost_table.table import CostTable, anatomy_mark, table_key
from harness.models.anatomy.core import Anatomy
from harness.records.files import put
from harness.records.store import Store
from harness.system import reading

if TYPE_CHECKING:
    from harness.latency.cost_table.profile import Profile, Target


SIZE = 4 * 2**20  # bytes of a table; those of the paper preset have some hundred thousand


def device_words(device: DeviceSpec, info: DeviceInfo) -> dict[str, Any]:
    """What makes two devices the same one to a table."""
    return {
        "name": device.name,
        "fingerprint": dict(info.fingerprint),
        "clock": device.clock,
        "provenance": device.provenance,
    }


class Shelf:
    """The tables of a runs folder."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def path(self, key: str) -> Path:
        return self.store.path("tables", f"{key}.json")

    def find(
        self, anatomy: Anatomy, device: dict[str, Any], runtime: str, dtype: str, workload: Workload
    ) -> CostTable | None:
        key = table_key(anatomy_mark(anatomy), device, runtime, dtype, str(workload))
        path = self.path(key)
        words = self.store.read(path)
        if words is None:
            return None
        try:
            table = CostTable.model_validate(words)
        except ValidationError:
            self.store.set_aside(path, "is not a cost table of this version")
            return None
        if why := "is of another device, model or workload" if table.key != key else CostModel(table, anatomy).faults():
            self.store.set_aside(path, why)
            return None
        return table

    def put(self, table: CostTable, again: bool = True) -> Path:
        path = self.path(table.key)
        if path.exists() and not again:
            raise UsageError(f"there is a table for this device, model and workload already: {path}", "add --again")
        self.store.write(path, table.words())
        return path

    def fill(
        self,
        target: Target,
        device: Device,
        told: Callable[[str, int, int], None] = lambda *_: None,
        again: bool = False,
        judge: bool = True,
    ) -> CostTable:
        """A table, from the shelf or measured now, judged where that is asked; what a kill left of it counts."""
        where = (target.anatomy, target.device, target.runtime, target.dtype, target.workload)
        key = table_key(anatomy_mark(target.anatomy), *where[1:4], str(target.workload))
        with self.store.lock(f"table-{key}"):
            table = self.find(*where)
            finer = table is not None and target.preset == "paper" and table.preset == "quick"
            unjudged = table is not None and table.validation is None
            asked = table.samples if table is not None and judge and unjudged else ""
            before = self.store.read_side_file(asked) if asked else None
            going = unjudged and table is not None and self._judging(key, table).exists()
            if table is None or finer or (again and not going) or (judge and unjudged and before is None):
                for stale in self.store.path("tables").glob(f"{key}.judge.*.json"):
                    stale.unlink(missing_ok=True)
                notes = self.store.path("tables", f"{key}.{target.preset}.visits.json")
                table = self._profiled(target, device, told, notes, None, lambda profile: profile.run(judge=False))
                before = self.store.read_side_file(table.samples)
            if judge and table.validation is None:
                found, alike = table, replace(target, preset=table.preset)
                notes = self._judging(key, table)
                table = self._profiled(alike, device, told, notes, before, lambda profile: profile.judge(found))
        return table

    def _judging(self, key: str, table: CostTable) -> Path:
        """What is measured to judge this very table, until it is judged."""
        return self.store.path("tables", f"{key}.judge.{table.content[:12]}.json")

    def _profiled(
        self,
        target: Target,
        device: Device,
        told: Callable[[str, int, int], None],
        notes: Path,
        before: Any,
        work: Callable[[Profile], CostTable],
    ) -> CostTable:
        """What the work makes of the visits, those before it and its own, on the shelf."""
        from harness.latency.cost_table.profile import Profile
        from harness.latency.cost_table.shape_timer import Visits

        visits = Visits.read(self.store.read(notes))
        if not visits.references:
            visits = Visits.read(before)
        try:
            table = work(Profile(target, device, visits, lambda now: self.store.write(notes, now.words()), told))
        except HarnessError:
            notes.unlink(missing_ok=True)  # what was refused is looked at afresh next time
            raise
        table.samples = self.store.side_file(visits.words())
        table.finished = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.put(table)
        notes.unlink(missing_ok=True)
        return table


def export(table: CostTable, path: Path) -> None:
    put(path, (json.dumps(table.words(), indent=1, sort_keys=True) + "\n").encode())


def must_be_writable(path: Path) -> None:
    """Said before the minutes of a measurement, not after them."""
    if os.path.lexists(path) and not path.is_file():
        raise UsageError(f"{path} is {'a folder' if path.is_dir() else 'not a regular file'}", "give a file")
    probe = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise EnvironmentFault(f"cannot write {path}: {error.strerror}", "give a file that can be written") from error


def read(path: Path) -> CostTable:
    """A table that someone exported."""
    remedy = "give a file that --export wrote"
    with reading.parsing(path, "a cost table", remedy, UsageError):
        try:
            return CostTable.model_validate(reading.json_file(path, SIZE))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "it"
            cause = f"{path} is not a cost table: {where}: {first['msg'].removeprefix('Value error, ')}"
            raise UsageError(one_line(cause), remedy) from None
