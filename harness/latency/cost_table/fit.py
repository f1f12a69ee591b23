"""Times whole models on the device: some to fit the cost table to, others to validate it."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable

from harness.api import Shape
from harness.latency import timing_stats
from harness.latency.cost_table import regression
from harness.latency.cost_table.cost_model import CostModel
from harness.latency.cost_table.shape_timer import ShapeTimer
from harness.latency.cost_table.table import CostTable, Validation
from harness.models.anatomy.core import Anatomy
from harness.pruning.allocate import uniform

Run = Callable[[str, dict[str, Shape], int], None]


def random_shapes(anatomy: Anatomy, count: int, seed: str, narrow: bool = False) -> list[Shape]:
    """Uneven models of every size. Sites keep random shares around the level of their model; some are removed.

    With `narrow`, the hidden size is cut too.
    """
    generator = random.Random(seed)
    shapes: list[Shape] = []
    for i in range(count):
        level = 0.15 + 0.85 * (i + generator.random()) / count
        shape = {}
        for site in anatomy.blocks():
            share = min(1.0, max(0.0, generator.gauss(level, 0.2)))
            removed = generator.random() < 0.12 * (1 - level)
            shape[site.name] = 0 if removed else max(1, round(share * site.units))
        if narrow and "hidden" in anatomy.sites:
            shape["hidden"] = max(1, round((0.4 + 0.6 * generator.random()) * anatomy.sites["hidden"].units))
        shapes.append(shape)
    generator.shuffle(shapes)
    return shapes


def chosen_shapes(anatomy: Anatomy) -> dict[str, Shape]:
    """Shapes that users ask for: dense, uniformly narrower, without every third layer."""
    third = {site.name: 0 for site in anatomy.blocks() if site.layer is not None and site.layer % 3 == 1}
    return {
        "dense": {},
        "uniform 0.3": uniform(anatomy, 0.3),
        "uniform 0.6": uniform(anatomy, 0.6),
        "every third layer gone": third,
    }


def fit(table: CostTable, anatomy: Anatomy, count: int, bench: ShapeTimer, run: Run) -> None:
    """Fit the table to whole models, where sub-layers cost something else than alone."""
    usual = [uniform(anatomy, ratio) for ratio in (0.15, 0.45, 0.75)]  # the shapes that users ask for most
    uneven = random_shapes(anatomy, count - len(usual), "fit")
    shapes = {f"fit {i}": shape for i, shape in enumerate([*usual, *uneven])}
    narrow = random_shapes(anatomy, max(2, count // 4), "narrow", narrow=True) if "hidden" in anatomy.sites else []
    all_shapes = shapes | {f"fit narrow {i}": shape for i, shape in enumerate(narrow)}
    run("fit", all_shapes, 1)

    model = CostModel(table, anatomy)
    times = [bench.time(name) for name in shapes]
    table.fit = regression.fit([model.parts(shape) for shape in shapes.values()], times, towards=1.0)
    table.predictor = regression.fit(
        [regression.sizes(anatomy, shape) for shape in all_shapes.values()], [bench.time(name) for name in all_shapes]
    )


def validate_table(table: CostTable, anatomy: Anatomy, count: int, bench: ShapeTimer, run: Run) -> None:
    """Validate the table on shapes that neither its curves nor its fit have seen."""
    chosen = {f"judge {name}": shape for name, shape in chosen_shapes(anatomy).items()}
    unseen = {f"judge {i}": shape for i, shape in enumerate(random_shapes(anatomy, count, "judge"))}
    run("judge", unseen | chosen, 2)
    table.validation = _validation(CostModel(table, anatomy), unseen, chosen, bench)


def _validation(model: CostModel, unseen: dict[str, Shape], chosen: dict[str, Shape], bench: ShapeTimer) -> Validation:
    """Compare predicted and measured times of shapes, by their names among the visits."""
    measured = [bench.time(name) for name in unseen]
    predicted = [model.time(shape) for shape in unseen.values()]
    unfitted = [model.additive(shape, fitted=False) for shape in unseen.values()]
    # Errors are of single measurements, as the repeatability is: a table is good if it does as well as measuring again.
    single = {name: [ratio * bench.visits.level for ratio in bench.visits.ratios(name)] for name in unseen}

    def errors_of(times: list[float]) -> list[float]:
        return [abs(time / ns - 1) for time, name in zip(times, unseen, strict=True) for ns in single[name]]

    errors = errors_of(predicted)
    return Validation(
        shapes=len(unseen),
        mape=statistics.fmean(errors),
        mape_unfitted=statistics.fmean(errors_of(unfitted)),
        within_5=sum(error <= 0.05 for error in errors) / len(errors),
        within_10=sum(error <= 0.10 for error in errors) / len(errors),
        spearman=timing_stats.spearman(predicted, measured),
        repeatability=repeatability([[ns for ns, _ in bench.visits.shapes[name]] for name in unseen]),
        repeatability_corrected=repeatability([bench.visits.ratios(name) for name in unseen]),
        bias={name.removeprefix("judge "): model.time(s) / bench.time(name) - 1 for name, s in chosen.items()},
    )


def repeatability(visits: list[list[float]]) -> float:
    """The mean relative difference between a shape's second measurement and its first."""
    return statistics.fmean(abs(second / first - 1) for first, second, *_ in visits)
