"""Stores cost tables: finds the table of a device, measures one where there is none, exports and imports files."""

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
from harness.latency.cost_table.table import CostTable, anatomy_hash, table_key
from harness.models.anatomy.core import Anatomy
from harness.records.files import write_file
from harness.records.store import Store
from harness.system import reading

if TYPE_CHECKING:
    from harness.latency.cost_table.profile import Profile, ProfileTarget


MAX_BYTES = 4 * 2**20  # of a file with a table; those of the paper preset have a few hundred thousand


def device_payload(device: DeviceSpec, info: DeviceInfo) -> dict[str, Any]:
    """The facts that two devices must share for a table to hold for both."""
    return {
        "name": device.name,
        "fingerprint": dict(info.fingerprint),
        "clock": device.clock,
        "provenance": device.provenance,
    }


class TableStore:
    """The cost tables of a runs folder."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def path(self, key: str) -> Path:
        return self.store.path("tables", f"{key}.json")

    def find(
        self, anatomy: Anatomy, device: dict[str, Any], runtime: str, dtype: str, workload: Workload
    ) -> CostTable | None:
        """The stored table, or None. A file that cannot be used is set aside."""
        key = table_key(anatomy_hash(anatomy), device, runtime, dtype, str(workload))
        path = self.path(key)
        payload = self.store.read(path)
        if payload is None:
            return None
        try:
            table = CostTable.model_validate(payload)
        except ValidationError:
            self.store.set_aside(path, "is not a cost table of this version")
            return None
        same_key = table.key == key
        fault = CostModel(table, anatomy).faults() if same_key else "is of another device, model or workload"
        if fault:
            self.store.set_aside(path, fault)
            return None
        return table

    def put(self, table: CostTable, again: bool = True) -> Path:
        """Store a table; its path. Without `again`, refuse to replace one."""
        path = self.path(table.key)
        if path.exists() and not again:
            raise UsageError(f"there is already a table for this device, model and workload: {path}", "add --again")
        self.store.write(path, table.to_dict())
        return path

    def fill(
        self,
        target: ProfileTarget,
        device: Device,
        on_progress: Callable[[str, int, int], None] = lambda *_: None,
        again: bool = False,
        validate: bool = True,
    ) -> CostTable:
        """Load the table, or measure it now; continue a profile that was interrupted.

        Args:
            target: What the table is for.
            device: Measures it.
            on_progress: Called with a stage, what is done of it, and how much there is.
            again: Measure the table anew.
            validate: Validate the table if it has not been validated.
        """
        where = (target.anatomy, target.device, target.runtime, target.dtype, target.workload)
        key = table_key(anatomy_hash(target.anatomy), *where[1:4], str(target.workload))
        with self.store.lock(f"table-{key}"):
            table = self.find(*where)
            coarse = table is not None and target.preset == "paper" and table.preset == "quick"
            unvalidated = table is not None and table.validation is None
            # The visits that the table was made from; without them it cannot be validated.
            samples = table.samples if table is not None and validate and unvalidated else ""
            visits = self.store.read_side_file(samples) if samples else None
            interrupted = unvalidated and table is not None and self._validation_visits(key, table).exists()
            if table is None or coarse or (again and not interrupted) or (validate and unvalidated and visits is None):
                for stale in self.store.path("tables").glob(f"{key}.judge.*.json"):
                    stale.unlink(missing_ok=True)
                progress = self.store.path("tables", f"{key}.{target.preset}.visits.json")
                table = self._profile(
                    target, device, on_progress, progress, None, lambda profile: profile.run(validate=False)
                )
                visits = self.store.read_side_file(table.samples)
            if validate and table.validation is None:
                measured, same_preset = table, replace(target, preset=table.preset)
                progress = self._validation_visits(key, table)
                table = self._profile(
                    same_preset, device, on_progress, progress, visits, lambda profile: profile.validate(measured)
                )
        return table

    def _validation_visits(self, key: str, table: CostTable) -> Path:
        """The file with what has been measured to validate this very table, until it is validated."""
        return self.store.path("tables", f"{key}.judge.{table.content[:12]}.json")

    def _profile(
        self,
        target: ProfileTarget,
        device: Device,
        on_progress: Callable[[str, int, int], None],
        progress: Path,
        earlier: Any,
        work: Callable[[Profile], CostTable],
    ) -> CostTable:
        """Run `work` and store the table that it returns.

        The visits are kept in the file `progress` meanwhile. Where there is none yet, they continue those of `earlier`.
        """
        from harness.latency.cost_table.profile import Profile
        from harness.latency.cost_table.shape_timer import Visits

        visits = Visits.read(self.store.read(progress))
        if not visits.references:
            visits = Visits.read(earlier)
        try:
            profile = Profile(
                target, device, visits, lambda current: self.store.write(progress, current.to_dict()), on_progress
            )
            table = work(profile)
        except HarnessError:
            progress.unlink(missing_ok=True)  # a device that was refused is measured afresh next time
            raise
        table.samples = self.store.side_file(visits.to_dict())
        table.finished = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.put(table)
        progress.unlink(missing_ok=True)
        return table


def export(table: CostTable, path: Path) -> None:
    """Write a table to a file that `read` reads."""
    write_file(path, (json.dumps(table.to_dict(), indent=1, sort_keys=True) + "\n").encode())


def check_writable(path: Path) -> None:
    """Raise if a file cannot be written. Checked before the minutes that a measurement takes."""
    if os.path.lexists(path) and not path.is_file():
        raise UsageError(f"{path} is {'a folder' if path.is_dir() else 'not a regular file'}", "give a file")
    probe = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise EnvironmentFault(f"cannot write {path}: {error.strerror}", "give a file that can be written") from error


def load_table(path: Path) -> CostTable:
    """The table in a file that `export` wrote."""
    remedy = "give a file that --export wrote"
    with reading.parsing(path, "a cost table", remedy, UsageError):
        try:
            return CostTable.model_validate(reading.json_file(path, MAX_BYTES))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "it"
            cause = f"{path} is not a cost table: {where}: {first['msg'].removeprefix('Value error, ')}"
            raise UsageError(one_line(cause), remedy) from None
