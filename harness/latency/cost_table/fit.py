"""Whole models on the device: some fit the table to what sub-layers cost among neighbours, others judge it."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable

from harness.api import Shape
from harness.latency import timing_stats
from harness.latency.cost_table import regression
from harness.latency.cost_table.cost_model import CostModel
from harness.latency.cost_table.shape_timer import Bench
from harness.latency.cost_table.table import CostTable, Validation
from harness.models.anatomy.core import Anatomy
from harness.pruning.allocate import uniform

Run = Callable[[str, dict[str, Shape], int], None]


def random_shapes(anatomy: Anatomy, count: int, seed: str, narrow: bool = False) -> list[Shape]:
    """Uneven models of every size: a level for the whole, each sub-layer somewhere around it, some gone."""
    draw = random.Random(seed)
    found: list[Shape] = []
    for i in range(count):
        level = 0.15 + 0.85 * (i + draw.random()) / count
        shape = {}
        for site in anatomy.blocks():
            share = min(1.0, max(0.0, draw.gauss(level, 0.2)))
            shape[site.name] = 0 if draw.random() < 0.12 * (1 - level) else max(1, round(share * site.units))
        if narrow and "hidden" in anatomy.sites:
            shape["hidden"] = max(1, round((0.4 + 0.6 * draw.random()) * anatomy.sites["hidden"].units))
        found.append(shape)
    draw.shuffle(found)
    return found


def chosen_shapes(anatomy: Anatomy) -> dict[str, Shape]:
    """Shapes that users ask for: dense, evenly narrowed, every third layer gone."""
    third = {site.name: 0 for site in anatomy.blocks() if site.layer is not None and site.layer % 3 == 1}
    return {
        "dense": {},
        "uniform 0.3": uniform(anatomy, 0.3),
        "uniform 0.6": uniform(anatomy, 0.6),
        "every third layer gone": third,
    }


def fit(table: CostTable, anatomy: Anatomy, count: int, bench: Bench, run: Run) -> None:
    """What sub-layers cost among neighbours, from whole models."""
    even = [uniform(anatomy, ratio) for ratio in (0.15, 0.45, 0.75)]  # users ask for these most
    seen = {f"fit {i}": s for i, s in enumerate([*even, *random_shapes(anatomy, count - len(even), "fit")])}
    narrow = random_shapes(anatomy, max(2, count // 4), "narrow", narrow=True) if "hidden" in anatomy.sites else []
    interacting = {f"fit narrow {i}": shape for i, shape in enumerate(narrow)}
    run("fit", seen | interacting, 1)

    model = CostModel(table, anatomy)
    times = [bench.time(name) for name in seen]
    table.fit = regression.fit([model.parts(shape) for shape in seen.values()], times, towards=1.0)
    everything = seen | interacting
    table.predictor = regression.fit(
        [regression.sizes(anatomy, shape) for shape in everything.values()], [bench.time(name) for name in everything]
    )


def judge(table: CostTable, anatomy: Anatomy, count: int, bench: Bench, run: Run) -> None:
    """How well the table does on shapes that neither its curves nor its fit have seen."""
    chosen = {f"judge {name}": shape for name, shape in chosen_shapes(anatomy).items()}
    judges = {f"judge {i}": shape for i, shape in enumerate(random_shapes(anatomy, count, "judge"))}
    run("judge", judges | chosen, 2)
    table.validation = judged(CostModel(table, anatomy), judges, chosen, bench)


def judged(model: CostModel, judges: dict[str, Shape], chosen: dict[str, Shape], bench: Bench) -> Validation:
    measured = [bench.time(name) for name in judges]
    predicted = [model.time(shape) for shape in judges.values()]
    plain = [model.additive(shape, fitted=False) for shape in judges.values()]
    # Single measurements, as the repeatability is of single ones: does the table do as well as another look would?
    single = {name: [ratio * bench.visits.level for ratio in bench.visits.ratios(name)] for name in judges}

    def errors_of(times: list[float]) -> list[float]:
        return [abs(time / m - 1) for time, name in zip(times, judges, strict=True) for m in single[name]]

    errors = errors_of(predicted)
    return Validation(
        shapes=len(judges),
        mape=statistics.fmean(errors),
        mape_unfitted=statistics.fmean(errors_of(plain)),
        within_5=sum(error <= 0.05 for error in errors) / len(errors),
        within_10=sum(error <= 0.10 for error in errors) / len(errors),
        spearman=timing_stats.spearman(predicted, measured),
        repeatability=repeatability([[ns for ns, _ in bench.visits.shapes[name]] for name in judges]),
        repeatability_corrected=repeatability([bench.visits.ratios(name) for name in judges]),
        bias={name.removeprefix("judge "): model.time(s) / bench.time(name) - 1 for name, s in chosen.items()},
    )


def repeatability(visits: list[list[float]]) -> float:
    """How far a second measurement of the same shape lies from the first."""
    return statistics.fmean(abs(second / first - 1) for first, second, *_ in visits)
