"""Where the time of both models goes: torch's profiler around a few passes of each workload.

A trace is a look, not a measurement. A profiled pass is slower than a timed one, and nothing of it enters the record.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from harness.cell.lifecycle import Cell, Reporter
from harness.cell.plan import Plan
from harness.models.architectures.decoder import survivors
from harness.models.workloads import runner, threads
from harness.pruning.least_squares import PARTS
from harness.records.files import guarded
from harness.records.schema import Record
from harness.system.host import threads_asked

WARM, PASSES = 2, 5
PASS = "pass"  # the span around each pass

Costs = dict[str, tuple[float, int]]  # name -> microseconds and calls, of one pass


def trace(cell: Cell, record: Record, reporter: Reporter) -> tuple[Path, dict[str, Any]] | None:
    """The folder with a trace per workload and model, and what each operator took; None where nothing was pruned."""
    plan, store, workspace = cell.plan, cell.store, cell.workspace
    if record.artefact is None:
        reporter.notice(f"no trace: this run is {record.status}, there is no pruned model to look into")
        return None
    if words := stand_in(plan):
        reporter.notice(words)
    # A record from the store has opened no model; to open one now is part of this look and no stage of the run.
    workspace.load_is_stage = False
    kept, count = list(survivors(plan.anatomy, record.artefact.shape)), threads_asked() or 1
    found: dict[str, Any] = {"place": plan.place, "threads": count, "passes": PASSES, "workloads": {}}
    scratch, folder = store.scratch(f"traces-{record.id}"), store.path("traces", record.id)
    try:
        for workload in plan.workloads:
            files, costs = {}, []
            for side in ("dense", "pruned"):
                reporter.stage(f"trace {workload} of {side}")
                files[side] = f"{str(workload).replace(':', '-')}-{side}.json.gz"
                model = workspace.dense() if side == "dense" else workspace.pruned(store.path(record.artefact.path))
                model = model.to(plan.place)
                layers = model.model.layers
                with threads(count), spans(layers, kept if side == "pruned" else range(len(layers))):
                    profile = profiled(runner(model, workload), plan.place, reporter.progress)
                with guarded(store.root):
                    export(profile, scratch / files[side])
                costs.append(costs_of(profile, plan.place))
            operators, inside = (compared(*both) for both in zip(*costs, strict=True))
            found["workloads"][str(workload)] = {"files": files, "operators": operators, "spans": inside}
        store.write(scratch / "operators.json", found)
        store.commit(scratch, folder)
    finally:
        store.sweep(mine=True)
    return folder, found


def stand_in(plan: Plan) -> str:
    """What a user must know where the traced passes are not the timed ones; empty where they are."""
    if plan.device.in_process and plan.spec.runtime == "eager":
        return ""
    here = "this machine's CPU" if plan.place == "cpu" else plan.place
    return f"traced on {here}, eager; the record's times are those of {plan.device.name}, {plan.spec.runtime}"


@contextmanager
def spans(layers: Any, numbers: Iterable[int]) -> Iterator[None]:
    """A span around every layer and sub-layer, under the dense model's numbers: both traces name the same alike."""
    from torch.profiler import record_function

    inside: list[Any] = []

    def entering(name: str) -> Callable[..., None]:
        return lambda *_: inside.append(record_function(name).__enter__())

    def leaving(*_: Any) -> None:
        inside.pop().__exit__(None, None, None)

    with ExitStack() as hooks:
        for number, layer in zip(numbers, layers, strict=True):
            parts = {f".{kind}": getattr(layer, module) for kind, (_, module, _) in PARTS.items()}
            for name, module in {"": layer, **parts}.items():
                if module is not None:
                    hooks.callback(module.register_forward_pre_hook(entering(f"layers.{number}{name}")).remove)
                    hooks.callback(module.register_forward_hook(leaving, always_call=True).remove)
        yield


def profiled(run: Callable[[], None], place: str, told: Callable[[int, int], None]) -> Any:
    from torch.profiler import ProfilerActivity, profile, record_function

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if place.startswith("cuda") else [])]
    for passes in (WARM, PASSES):  # the profiler warms up with the model
        with profile(activities=activities) as found:
            for done in range(passes):
                with record_function(PASS):
                    run()
                told(done + 1, passes)
    return found


def export(profile: Any, path: Path) -> None:
    """In chrome's format, whole: the profiler does not say when a disk was full."""
    plain = path.with_suffix("")
    profile.export_chrome_trace(str(plain))
    try:
        words = json.loads(plain.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, FileNotFoundError):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
    plain.unlink()
    path.write_bytes(gzip.compress(json.dumps(words | {"traceName": path.name}).encode()))


def costs_of(profile: Any, place: str) -> list[Costs]:
    """What each operator takes itself (they are the names with a namespace), and each span with all inside.

    It is the least of all passes, since what others do on a machine only adds. On a GPU it is the GPU's time.
    """
    clock = "device_time_total" if place.startswith("cuda") else "cpu_time_total"
    events = [event for event in profile.events() if event.device_type.name == "CPU"]  # kernels count with who launched
    starts = sorted(event.time_range.start for event in events if event.key == PASS)
    found = []
    for time, of in ((f"self_{clock}", lambda e: "::" in e.key), (clock, lambda e: e.is_user_annotation)):
        passes: dict[str, list[list[float]]] = {}
        for event in filter(of, events):
            within = bisect(starts, event.time_range.start) - 1
            passes.setdefault(event.key, [[] for _ in starts])[within].append(getattr(event, time))
        found.append({name: (min(map(sum, times)), len(times[-1])) for name, times in passes.items()})
    return found


def compared(dense: Costs, pruned: Costs) -> list[dict[str, Any]]:
    """Dense and pruned side by side, what takes most in either first."""
    rows = []
    for name in {**dense, **pruned}:
        (before, calls), (after, calls_after) = dense.get(name, (0.0, 0)), pruned.get(name, (0.0, 0))
        row = {"name": name, "dense_us": round(before, 3), "pruned_us": round(after, 3)}
        ratio = round(after / before, 4) if before else None
        rows.append(row | {"ratio": ratio, "dense_calls": calls, "pruned_calls": calls_after})
    return sorted(rows, key=lambda row: -max(row["dense_us"], row["pruned_us"]))
