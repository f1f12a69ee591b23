"""Measures what each method costs: CPU time as a multiple of one forward pass over its calibration set, and memory.

    uv run pytest benchmarks/speed/test_pruning.py

Seconds depend on the machine. Multiples of a forward pass can be compared with other implementations on any machine.
The table in pruning.md is written when every method has run.
"""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
from tabulate import tabulate

os.environ.setdefault("OMP_NUM_THREADS", "1")
MODEL, RATIO = "smollm2-135m", 0.2
BY_LATENCY = {"latency": "0.8x", "device": "staircase"}  # for methods that prune to a latency only
BY_RATIO = {"ratio": RATIO, "device": "null"}
METHODS = dict.fromkeys(
    ("random", "magnitude", "wanda", "wanda-sp", "llm-pruner", "loraprune", "shortgpt", "llm-streamline", "compresso")
) | {"halp": BY_LATENCY, "dilap": BY_LATENCY}
FOLDER = Path(__file__).parent


@pytest.fixture(scope="module")
def rows():
    lines: list[dict[str, str]] = []
    yield lines
    if len(lines) == len(METHODS):
        text = tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True)
        about = (
            f"CPU time of `prepare` and `prune` on {MODEL} at ratio {RATIO:g}, preset quick, one thread, divided by "
            "the CPU time of one forward pass over the calibration windows that the method reads (over 32 x 128 random "
            "tokens if it reads none). Memory is the peak of the resident memory above that of the loaded model, for "
            f"the method and for that forward pass. halp and dilap prune to a latency of {BY_LATENCY['latency']} on "
            f"the simulated device {BY_LATENCY['device']}."
        )
        (FOLDER / "pruning.md").write_text(f"# What each method costs\n\n{about}\n\n{text}\n", encoding="utf-8")


@pytest.mark.benchmark(timer=time.process_time, warmup=False)
@pytest.mark.parametrize("name", METHODS)
def test_method(benchmark, rows, name, tmp_path):
    run = MethodRun(name, tmp_path)
    method_peaks = []

    def decide():
        with watch_memory() as watch:
            run.decide()
        method_peaks.append(max(watch.samples))

    benchmark.pedantic(decide, rounds=1, iterations=1)
    pass_s, pass_peak = time_forward_pass(run)
    method_s = benchmark.stats.stats.total - run.reading_s
    method_peak = method_peaks[-1]
    benchmark.extra_info |= {"forward_passes": method_s / pass_s, "peak_mb": method_peak / 1e6}
    calibration = " + ".join(f"{len(windows)} x {length}" for length, windows in run.texts.items()) or "none"
    rows.append(
        {
            "method": name,
            "calibration": calibration,
            "CPU s": f"{method_s:.1f}",
            "forward passes": f"{method_s / pass_s:.2f}",
            "peak MB": f"{method_peak / 1e6:.0f}",
            "peak MB of a pass": f"{pass_peak / 1e6:.0f}",
        }
    )


class MethodRun:
    """One method on one model, called as a real run calls it."""

    def __init__(self, name: str, folder: Path) -> None:
        from harness.cell import planning
        from harness.cell.cutting import Decision
        from harness.cell.lifecycle import Cell, Reporter
        from harness.cell.request import Request
        from harness.records.store import Store

        question = METHODS[name] or BY_RATIO
        plan = planning.make_plan(Request(name, model=MODEL, evaluators=("footprint",), **question))
        plan = planning.with_weights(plan)
        store = Store(folder)
        store.prepare()
        cell = Cell(plan, store, Reporter())
        self.plan, self.decision = plan, Decision(cell.workspace, cell.artefacts.attempt)
        self.model = read_whole(cell.workspace.dense())
        # calibration windows by length; the largest number of each, because fewer windows are the first of these
        self.texts: dict[int, Any] = {}
        self.reading_s = 0.0  # seconds spent on reading and tokenising text, which do not count for the method

    def decide(self) -> None:
        context = self.decision.context(lambda *_: None)
        draw_windows = context.calibration

        def calibration(count: int, length: int) -> Any:
            start = time.process_time()
            windows = draw_windows(count, length)
            self.reading_s += time.process_time() - start
            if count > len(self.texts.get(length, ())):
                self.texts[length] = windows
            return windows

        context.calibration = calibration
        pruner = self.decision.pruner
        state = pruner.prepare(self.model, context) if hasattr(pruner, "prepare") else None
        pruner.prune(self.model, self.plan.budget, context, state)


def time_forward_pass(run: MethodRun) -> tuple[float, int]:
    """CPU seconds and peak memory of one forward pass over the windows that a method read, one window at a time."""
    import torch

    from harness.models.saved import folders

    model = read_whole(folders.read(run.plan.folder, "fp32"))
    texts = list(run.texts.values()) or [torch.randint(0, 1000, (32, 128))]
    times = []
    with torch.inference_mode(), watch_memory() as watch:
        for _ in range(3):
            start = time.process_time()
            for windows in texts:
                for row in windows.split(1):
                    model(row, use_cache=False, logits_to_keep=1)
            times.append(time.process_time() - start)
    return statistics.median(times), max(watch.samples)


def read_whole(model: Any) -> Any:
    """Read every weight once. Weights are mapped from their file, and use memory only after they are first read."""
    for parameter in model.parameters():
        parameter.sum()
    return model


def watch_memory():
    """Records the resident memory above its present value. Memory that earlier methods freed is returned first."""
    from harness.models.saved.reload_check import Watch

    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return Watch()
