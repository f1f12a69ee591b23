"""Shows where the time of both models goes: runs torch's profiler around a few passes of each workload.

A trace is not a measurement: a profiled pass is slower than a timed one. Nothing of it enters the record.
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
from harness.cell.workspace import Progress
from harness.models.architectures.lookup import architecture, architecture_for
from harness.models.workloads import runner, threads
from harness.records.files import disk_errors
from harness.records.schema import Record
from harness.system.host import timing_threads

WARMUP_PASSES, PASSES = 2, 5
PASS = "pass"  # the span around each pass

Costs = dict[str, tuple[float, int]]  # microseconds and calls of one pass, by name


def trace(cell: Cell, record: Record, reporter: Reporter) -> tuple[Path, dict[str, Any]] | None:
    """Trace each workload on both models. Returns the folder of the traces and what each operator took.

    It returns None if the run has no pruned model.
    """
    plan, store, workspace = cell.plan, cell.store, cell.workspace
    if record.artefact is None:
        reporter.notice(f"no trace: this run is {record.status}, there is no pruned model to look into")
        return None
    notice = stand_in(plan)
    if notice:
        reporter.notice(notice)
    workspace.load_is_stage = False  # the run is over: loading a model for a trace is no stage of it
    pruned_folder = store.path(record.artefact.path)
    kind = architecture(plan.anatomy.architecture)
    remaining_layers = list(kind.layer_numbers(plan.anatomy, record.artefact.shape))
    thread_count = timing_threads() or 1
    result: dict[str, Any] = {"place": plan.torch_device, "threads": thread_count, "passes": PASSES, "workloads": {}}
    scratch, folder = store.scratch(f"traces-{record.id}"), store.path("traces", record.id)
    try:
        for workload in plan.workloads:
            files, costs = {}, []
            for side in ("dense", "pruned"):
                reporter.stage(f"trace {workload} of {side}")
                files[side] = f"{str(workload).replace(':', '-')}-{side}.json.gz"
                model = workspace.dense() if side == "dense" else workspace.pruned(pruned_folder)
                model = model.to(plan.torch_device)
                numbers = remaining_layers if side == "pruned" else range(len(architecture_for(model).layers(model)))
                with threads(thread_count), spans(model, numbers):
                    profile = profiled(runner(model, workload), plan.torch_device, reporter.progress)
                with disk_errors(store.root):
                    export(profile, scratch / files[side])
                costs.append(costs_of(profile, plan.torch_device))
            operators, inside = (compared(dense, pruned) for dense, pruned in zip(*costs, strict=True))
            result["workloads"][str(workload)] = {"files": files, "operators": operators, "spans": inside}
        store.write(scratch / "operators.json", result)
        store.commit(scratch, folder)
    finally:
        store.sweep(mine=True)
    return folder, result


def stand_in(plan: Plan) -> str:
    """A notice for the case that traced passes run elsewhere than the timed ones; empty if they do not."""
    if plan.device.in_process and plan.spec.runtime == "eager":
        return ""
    local = "this machine's CPU" if plan.torch_device == "cpu" else plan.torch_device
    return f"traced on {local}, eager; the record's times are those of {plan.device.name}, {plan.spec.runtime}"


@contextmanager
def spans(model: Any, numbers: Iterable[int]) -> Iterator[None]:
    """A span around every layer and sub-layer. `numbers` are those of the dense model, so that both traces match."""
    from torch.profiler import record_function

    open_spans: list[Any] = []

    def open_span(name: str) -> Callable[..., None]:
        return lambda *_: open_spans.append(record_function(name).__enter__())

    def close_span(*_: Any) -> None:
        open_spans.pop().__exit__(None, None, None)

    with ExitStack() as hooks:
        kind = architecture_for(model)
        for number, layer in zip(numbers, kind.layers(model).values(), strict=True):
            parts = kind.sublayers(layer) if hasattr(kind, "sublayers") else ()
            for name, module in {"": layer, **{f".{name}": part.module for name, part in parts}}.items():
                hooks.callback(module.register_forward_pre_hook(open_span(f"layers.{number}{name}")).remove)
                hooks.callback(module.register_forward_hook(close_span, always_call=True).remove)
        yield


def profiled(run: Callable[[], None], place: str, on_progress: Progress) -> Any:
    """The profile of PASSES passes."""
    from torch.profiler import ProfilerActivity, profile, record_function

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if place.startswith("cuda") else [])]
    for passes in (WARMUP_PASSES, PASSES):  # the profiler itself warms up as well
        with profile(activities=activities) as profiler:
            for number in range(passes):
                with record_function(PASS):
                    run()
                on_progress(number + 1, passes)
    return profiler


def export(profile: Any, path: Path) -> None:
    """Write a profile in chrome's trace format, compressed. The profiler does not report a full disk, so that the file
    is checked.
    """
    plain = path.with_suffix("")
    profile.export_chrome_trace(str(plain))
    try:
        content = json.loads(plain.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, FileNotFoundError):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
    plain.unlink()
    path.write_bytes(gzip.compress(json.dumps(content | {"traceName": path.name}).encode()))


def costs_of(profile: Any, place: str) -> list[Costs]:
    """The costs of operators, and the costs of spans.

    An operator's time is without the operators that it calls; a span's time is with everything inside. Each is the
    least of all passes, since other work on the machine only adds time. On a GPU it is the GPU's time.
    """
    clock = "device_time_total" if place.startswith("cuda") else "cpu_time_total"
    # Events of the GPU are left out: the time of a kernel counts with the operator that launched it.
    events = [event for event in profile.events() if event.device_type.name == "CPU"]
    starts = sorted(event.time_range.start for event in events if event.key == PASS)
    operators = [event for event in events if "::" in event.key]  # their names have a namespace
    annotations = [event for event in events if event.is_user_annotation]
    return [_least(operators, f"self_{clock}", starts), _least(annotations, clock, starts)]


def _least(events: Iterable[Any], attribute: str, starts: list[float]) -> Costs:
    """Sum up the times of one name in each pass, and take the least sum; with the number of calls in the last pass."""
    passes: dict[str, list[list[float]]] = {}
    for event in events:
        number = bisect(starts, event.time_range.start) - 1
        passes.setdefault(event.key, [[] for _ in starts])[number].append(getattr(event, attribute))
    return {name: (min(map(sum, times)), len(times[-1])) for name, times in passes.items()}


def compared(dense: Costs, pruned: Costs) -> list[dict[str, Any]]:
    """A row per name with the costs of both models, most expensive first."""
    rows = []
    for name in {**dense, **pruned}:
        (before, calls), (after, calls_after) = dense.get(name, (0.0, 0)), pruned.get(name, (0.0, 0))
        row = {"name": name, "dense_us": round(before, 3), "pruned_us": round(after, 3)}
        ratio = round(after / before, 4) if before else None
        rows.append(row | {"ratio": ratio, "dense_calls": calls, "pruned_calls": calls_after})
    return sorted(rows, key=lambda row: -max(row["dense_us"], row["pruned_us"]))
