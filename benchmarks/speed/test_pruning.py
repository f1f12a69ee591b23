"""What deciding costs: each method as a multiple of one forward pass over its own calibration set, and its memory.

    uv run pytest benchmarks/speed/test_pruning.py

The seconds are this machine's; the multiples can be compared with other implementations on any machine. The table in
pruning.md is written when every method ran.
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
METHODS = (
    *("random", "magnitude", "wanda", "wanda-sp", "llm-pruner", "loraprune"),
    *("shortgpt", "llm-streamline", "compresso"),
)
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def rows():
    found: list[dict[str, str]] = []
    yield found
    if len(found) == len(METHODS):
        text = tabulate(found, headers="keys", tablefmt="github", disable_numparse=True)
        about = (
            f"CPU time of `prepare` and `prune` on {MODEL} at ratio {RATIO:g}, preset quick, one thread, over that of "
            "one forward pass over the windows the method asked for (of 32 x 128 tokens where it asks for none). "
            "Memory is resident memory above the loaded model, at its peak, for the method and for that forward pass."
        )
        (HERE / "pruning.md").write_text(f"# What deciding costs\n\n{about}\n\n{text}\n", encoding="utf-8")


@pytest.mark.benchmark(timer=time.process_time, warmup=False)
@pytest.mark.parametrize("name", METHODS)
def test_deciding(benchmark, rows, name, tmp_path):
    asked = Question(name, tmp_path)
    watched = {}

    def decide():
        with memory() as watch:
            asked.decide()
        watched["method"] = max(watch.samples)

    benchmark.pedantic(decide, rounds=1, iterations=1)
    once, peak = forward(asked)
    spent = benchmark.stats.stats.total - asked.reading
    benchmark.extra_info |= {"forward_passes": spent / once, "peak_mb": watched["method"] / 1e6}
    told = " + ".join(f"{len(windows)} x {length}" for length, windows in asked.texts.items()) or "none"
    rows.append(
        {
            "method": name,
            "calibration": told,
            "CPU s": f"{spent:.1f}",
            "forward passes": f"{spent / once:.2f}",
            "peak MB": f"{watched['method'] / 1e6:.0f}",
            "peak MB of a pass": f"{peak / 1e6:.0f}",
        }
    )


class Question:
    """One method on one model, asked as a run would."""

    def __init__(self, name: str, folder: Path) -> None:
        from harness.cell import planning
        from harness.cell.cutting import Decision
        from harness.cell.lifecycle import Cell, Reporter
        from harness.cell.request import Request
        from harness.records.store import Store

        plan = planning.make(Request(name, model=MODEL, ratio=RATIO, device="null", evaluators=("footprint",)))
        plan = planning.with_weights(plan)
        store = Store(folder)
        store.prepare()
        cell = Cell(plan, store, Reporter())
        self.plan, self.decision = plan, Decision(cell.workspace, cell.artefacts.attempt)
        self.model = read_whole(cell.workspace.dense())
        self.texts: dict[int, Any] = {}  # by length; fewer windows of one length are the first of more
        self.reading = 0.0  # seconds that went into the text, which are not the method's

    def decide(self) -> None:
        context = self.decision.context(lambda *_: None)
        draw = context.calibration

        def calibration(count: int, length: int) -> Any:
            start = time.process_time()
            windows = draw(count, length)
            self.reading += time.process_time() - start
            if count > len(self.texts.get(length, ())):
                self.texts[length] = windows
            return windows

        context.calibration = calibration
        pruner = self.decision.pruner
        state = pruner.prepare(self.model, context) if hasattr(pruner, "prepare") else None
        pruner.prune(self.model, self.plan.budget, context, state)


def forward(asked: Question) -> tuple[float, int]:
    """CPU seconds and memory of one pass over the same windows, one at a time."""
    import torch

    from harness.models.saved import folders

    model = read_whole(folders.read(asked.plan.folder, "fp32"))
    texts = list(asked.texts.values()) or [torch.randint(0, 1000, (32, 128))]
    times = []
    with torch.inference_mode(), memory() as watch:
        for _ in range(3):
            start = time.process_time()
            for windows in texts:
                for row in windows.split(1):
                    model(row, use_cache=False, logits_to_keep=1)
            times.append(time.process_time() - start)
    return statistics.median(times), max(watch.samples)


def read_whole(model: Any) -> Any:
    """Weights are mapped from their file and count as memory from when they are first read."""
    for parameter in model.parameters():
        parameter.sum()
    return model


def memory():
    """Resident memory above what is there now; what earlier methods freed is given back first."""
    from harness.models.saved.reload_check import Watch

    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return Watch()
