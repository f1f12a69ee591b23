"""A device's cost table: time = fixed + sum over sites of f(units), as JSON, with how well it predicts whole models.

Exact staircase here; the smooth view is in `smooth`, what is fitted to whole models in `predictor`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from harness.api import Budget, Shape
from harness.errors import BadCut, Unsupported
from harness.models.anatomy.core import Anatomy, Site
from harness.models.architectures.config_fields import WHOLE
from harness.models.architectures.decoder import sliding_window
from harness.records import keys
from harness.records.schema import Part

SCHEMA = 1
POINTS = 2**16  # of a curve; the paper preset measures some thousands
CLASSES = 10_000  # of sites; twice as many as a model has layers, and some features more
LONGEST = 1e18  # nanoseconds, which is 30 years: sums of times stay finite
TEXT = 5_000  # characters
VERSION = "profile-3"
BESIDE = ("validation", "probes", "seconds", "samples", "finished")  # of a table: how it came about, how good it is


class Curve(Part):
    """What one site of a class costs at so many units, measured on physically sliced modules."""

    units: list[Annotated[int, Field(ge=0, le=WHOLE["intermediate_size"][1])]] = Field(max_length=POINTS)
    ns: list[Annotated[float, Field(le=LONGEST)]] = Field(max_length=POINTS)
    noise: float = Field(0.0, description="relative, of one point")

    @model_validator(mode="after")
    def _is_one(self) -> Curve:
        if len(self.units) != len(self.ns) or self.units != sorted(set(self.units)) or self.units[:1] != [0]:
            raise ValueError("a curve needs rising units from 0, and a time for each")
        if len(self.units) < 2 or any(not math.isfinite(ns) or ns < 0 for ns in self.ns):
            raise ValueError("a curve needs times, finite and not negative")
        return self


class Validation(Part):
    """Whole shapes that the table has not seen, predicted and measured in the same run."""

    shapes: int
    mape: float = Field(description="mean of |predicted / measured - 1| over single measurements")
    mape_unfitted: float = Field(description="the same without what was fitted to whole models")
    within_5: float
    within_10: float
    spearman: float
    repeatability: float = Field(description="how far another measurement of the same shape lies, as measured")
    repeatability_corrected: float = Field(description="the same, both corrected by the reference as predictions are")
    bias: dict[str, float] = Field({}, description="predicted / measured - 1 at chosen shapes")


class Fit(Part):
    """Whole models fitted: non-negative weights of named features, see `predictor`."""

    features: list[str] = Field(max_length=CLASSES)
    weights: list[Annotated[float, Field(le=LONGEST)]] = Field(max_length=CLASSES)
    shapes: int
    error: float = Field(description="mean relative error on shapes left out of the fit")

    @model_validator(mode="after")
    def _is_one(self) -> Fit:
        if len(self.features) != len(self.weights) or any(not math.isfinite(w) or w < 0 for w in self.weights):
            raise ValueError("a fit needs a finite weight of at least zero for each feature")
        if not any(self.weights):
            raise ValueError("a fit needs a weight above zero")
        return self


class CostTable(Part):
    schema_: int = Field(SCHEMA, alias="schema")
    model: str
    anatomy: str = Field(description="hash of the dense tensor shapes and sites")
    params: int = Field(ge=0)
    device: dict[str, Any] = Field(description="name, fingerprint, clock, provenance")
    runtime: str
    dtype: str
    workload: str
    preset: Literal["quick", "paper"]
    version: str = VERSION
    fixed_ns: float = Field(le=LONGEST, description="the model without any layer")
    curves: dict[str, Curve] = Field(max_length=CLASSES, description="per class of sites")
    fit: Fit | None = Field(None, description="scales the additive sum to whole models")
    predictor: Fit | None = Field(None, description="for shapes whose sites interact (a cut residual stream)")
    validation: Validation | None = None
    probes: int = Field(0, description="shapes measured")
    seconds: float = Field(0, description="CPU seconds of this process")
    samples: str = Field(
        "", pattern=r"^([0-9a-f]{64}\.json\.gz)?$", description="name of the side file with every visit"
    )
    finished: str = ""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    @model_validator(mode="after")
    def _is_one(self) -> CostTable:
        if (self.schema_, self.version) != (SCHEMA, VERSION):
            raise ValueError("it is of another version of harness")
        for name, kind in (("name", str), ("fingerprint", dict), ("clock", str), ("provenance", str)):
            if not isinstance(self.device.get(name), kind):
                raise ValueError(f"its device has no {name}")
        machine = [text for text in self.device["fingerprint"].values() if isinstance(text, str)]
        texts = [self.model, self.runtime, self.dtype, self.workload, self.finished, *self.curves]
        texts += [self.device["name"], self.device["clock"], self.device["provenance"], *machine]
        if any(not text.isprintable() or len(text) > TEXT for text in texts) or not all(map(str.strip, self.curves)):
            raise ValueError("it has names that cannot be printed")
        if not self.curves or not math.isfinite(self.fixed_ns) or self.fixed_ns < 0:
            raise ValueError("it has no curves, or no time for the model without layers")
        if self.fit and set(self.fit.features) != {"fixed", *self.curves}:
            raise ValueError("its fit is of other sub-layers")
        return self

    def tops(self) -> dict[str, int]:
        """Units of a whole site, per class."""
        return {name: curve.units[-1] for name, curve in self.curves.items()}

    def words(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)

    @property
    def content(self) -> str:
        """What names this table in the keys of cuts that were made with it: all that it predicts with."""
        said = {name: value for name, value in self.words().items() if name not in BESIDE}
        return hashlib.sha256(keys.canonical(said).encode()).hexdigest()

    @property
    def key(self) -> str:
        device = self.device
        return table_key(self.anatomy, device, self.runtime, self.dtype, self.workload)


def table_key(anatomy: str, device: Mapping[str, Any], runtime: str, dtype: str, workload: str) -> str:
    """The name a table is stored under: what it holds for, not what is in it."""
    parts = {"anatomy": anatomy, "device": dict(device), "runtime": runtime, "dtype": dtype, "workload": workload}
    return keys.key("table", parts | {"version": VERSION})


def anatomy_mark(anatomy: Anatomy) -> str:
    """Two models with the same shapes take the same time."""
    windows = {s.name: sliding_window(anatomy.config, s.layer or 0) for s in anatomy.blocks()}
    units = {name: site.units for name, site in anatomy.sites.items()}
    words = keys.canonical([anatomy.family, {k: list(v) for k, v in anatomy.tensors.items()}, units, windows])
    return hashlib.sha256(words.encode()).hexdigest()[:24]


def cost_class(anatomy: Anatomy, site: Site) -> str:
    """Sites of one class cost the same at the same number of units."""
    window = sliding_window(anatomy.config, site.layer or 0) if site.kind == "attention" else None
    unit = anatomy.unit_params(site)
    return f"{site.kind} {site.units} x {unit}" + (f" window {window}" if window else "")


def classes(anatomy: Anatomy) -> dict[str, list[Site]]:
    """The sites inside the blocks by class, in order."""
    found: dict[str, list[Site]] = {}
    for site in anatomy.blocks():
        found.setdefault(cost_class(anatomy, site), []).append(site)
    return found


class CostModel:
    """What a method and the matcher ask: the time of a shape, exactly or smoothly. Times are nanoseconds."""

    def __init__(self, table: CostTable, anatomy: Anatomy) -> None:
        self.table, self.anatomy = table, anatomy
        self.classes = classes(anatomy)

    @cached_property
    def staircases(self) -> dict[str, Any]:
        """Per class the time at every number of units, 0 included."""
        import numpy as np

        found = {}
        for name, sites in self.classes.items():
            curve = self.table.curves[name]
            found[name] = np.interp(np.arange(sites[0].units + 1), curve.units, curve.ns)
        return found

    @cached_property
    def weights(self) -> dict[str, float]:
        """What the fit makes of a class's time, and of the fixed part."""
        plain = dict.fromkeys(["fixed", *self.classes], 1.0)
        return (
            plain | dict(zip(self.table.fit.features, self.table.fit.weights, strict=True)) if self.table.fit else plain
        )

    def site_times(self, site: str) -> Any:
        """What a site adds to the model's time at every number of its units; nothing at none."""
        return self._added[cost_class(self.anatomy, self.anatomy.sites[site])]

    @cached_property
    def _added(self) -> dict[str, Any]:
        return {name: (stairs - stairs[0]) * self.weights[name] for name, stairs in self.staircases.items()}

    def limit(self, budget: Budget) -> float:
        """A latency budget in nanoseconds, if any model of this width can meet it."""
        limit = budget.value * (self.dense if budget.unit == "x" else 1e6)
        if limit < self.floor:
            raise Unsupported(
                f"{budget.value:g}{budget.unit} is faster than the model without any layer, "
                f"{self.floor / self.dense:.3g}x by the cost table",
                "give a larger budget",
            )
        return limit

    def additive(self, shape: Shape, fitted: bool = True) -> float:
        parts = self.parts(shape)
        return math.fsum(ns * (self.weights[name] if fitted else 1.0) for name, ns in parts.items())

    def parts(self, shape: Shape) -> dict[str, float]:
        """The unfitted time of the fixed part and of each class of sites."""
        full = self.anatomy.complete(shape)
        found = {"fixed": self.table.fixed_ns}
        for name, sites in self.classes.items():
            found[name] = math.fsum(float(self.staircases[name][full[site.name]]) for site in sites)
        return found

    def time(self, shape: Shape) -> float:
        """The exact view: steps and dents as they were measured."""
        full = self.anatomy.complete(shape)
        narrow = "hidden" in full and full["hidden"] != self.anatomy.sites["hidden"].units
        if not narrow:
            return self.additive(full)
        if self.table.predictor is None:
            raise Unsupported("this cost table knows no narrower residual stream", "harness profile --preset paper")
        from harness.latency.cost_table.regression import predict

        # The predictor is smooth; the staircase of the uncut stream gives it its steps.
        whole = {**full, "hidden": self.anatomy.sites["hidden"].units}
        learned = self.table.predictor
        return self.additive(whole) * predict(learned, self.anatomy, full) / predict(learned, self.anatomy, whole)

    def faults(self) -> str:
        """Why this table cannot predict this model; empty if it can."""
        from harness.latency.cost_table.regression import sizes

        if {name: sites[0].units for name, sites in self.classes.items()} != self.table.tops():
            return "does not cover this model's sub-layers"
        if self.table.predictor and not set(self.table.predictor.features) <= set(sizes(self.anatomy, {})):
            return "has a predictor of other sub-layers"
        return "" if self.dense > 0 else "predicts that the model takes no time"

    @cached_property
    def dense(self) -> float:
        return self.time({})

    @cached_property
    def floor(self) -> float:
        """The model without any layer: nothing that keeps the hidden size is faster."""
        return self.additive(self.anatomy.empty())

    def share(self, shape: Shape) -> float:
        return self.time(shape) / self.dense

    @cached_property
    def _curves(self) -> dict[str, Any]:
        from harness.latency.cost_table.smoothing import Smooth

        return {name: Smooth(self.staircases[name] * self.weights[name]) for name in self.classes}

    def smooth(self, units: Mapping[str, Any], convex: float = 0.0) -> Any:
        """Time of fractional units per site as a torch scalar with gradients; sites not named stay whole.

        `convex` is the share of the staircase's lower convex hull in it. Monotone in every site, within the units there
        are; outside it goes on at the slope of the end. A narrower residual stream scales all of it by its share: a
        first guess, which measuring corrects.
        """
        import torch

        if unknown := set(units) - set(self.anatomy.sites):
            raise BadCut(
                f"this model has no site {min(unknown)!r}", f"its sites look like {next(iter(self.anatomy.sites))!r}"
            )
        total = torch.as_tensor(self.table.fixed_ns * self.weights["fixed"], dtype=torch.float64)
        for name, sites in self.classes.items():
            curve = self._curves[name]
            asked = [torch.as_tensor(units[site.name]) for site in sites if site.name in units]
            total = total + (len(sites) - len(asked)) * curve.top
            if asked:
                total = total + curve(torch.stack([one.reshape(()).double() for one in asked]), convex).sum()
        if "hidden" in units:
            total = total * (torch.as_tensor(units["hidden"]).double().reshape(()) / self.anatomy.sites["hidden"].units)
        return total
