"""The cost table of a device, as it is stored: the time of a model is a fixed part plus f(units) of every site.

`cost_model` predicts times from it, `regression` fits it to whole models, and `smoothing` makes its curves smooth.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from harness.models.anatomy.core import Anatomy, Site
from harness.models.architectures.config_fields import WHOLE
from harness.models.architectures.lookup import architecture
from harness.records import keys
from harness.records.schema import Part

SCHEMA = 1
POINTS = 2**16  # of a curve; the paper preset measures some thousands
CLASSES = 10_000  # of sites, or features of a fit; a model has at most two classes per layer
LONGEST = 1e18  # nanoseconds (30 years), so that sums of times stay finite
TEXT = 5_000  # characters of a text
VERSION = "profile-3"
# Fields that predictions do not depend on: how the table was measured, and how good it is.
NOT_PART_OF_CONTENT = ("validation", "probes", "seconds", "samples", "finished")


class Curve(Part):
    """The time of one site of a class by its number of units, measured on physically sliced modules."""

    units: list[Annotated[int, Field(ge=0, le=WHOLE["intermediate_size"][1])]] = Field(max_length=POINTS)
    ns: list[Annotated[float, Field(le=LONGEST)]] = Field(max_length=POINTS)
    noise: float = Field(0.0, description="relative, of one point")

    @model_validator(mode="after")
    def _check(self) -> Curve:
        if len(self.units) != len(self.ns) or self.units != sorted(set(self.units)) or self.units[:1] != [0]:
            raise ValueError("a curve needs rising units from 0, and a time for each")
        if len(self.units) < 2 or any(not math.isfinite(ns) or ns < 0 for ns in self.ns):
            raise ValueError("a curve needs times, finite and not negative")
        return self


class Validation(Part):
    """How well the table predicts whole shapes that it was not fitted to, measured in the same run."""

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
    """Non-negative weights of named features, fitted to whole models; see `regression`."""

    features: list[str] = Field(max_length=CLASSES)
    weights: list[Annotated[float, Field(le=LONGEST)]] = Field(max_length=CLASSES)
    shapes: int
    error: float = Field(description="mean relative error on shapes left out of the fit")

    @model_validator(mode="after")
    def _check(self) -> Fit:
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
    def _check(self) -> CostTable:
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

    def unit_counts(self) -> dict[str, int]:
        """Units of a whole site, per class."""
        return {name: curve.units[-1] for name, curve in self.curves.items()}

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)

    @property
    def content(self) -> str:
        """A hash of all that predictions depend on. It stands in the keys of cuts that were made with this table."""
        content = {name: value for name, value in self.to_dict().items() if name not in NOT_PART_OF_CONTENT}
        return hashlib.sha256(keys.canonical(content).encode()).hexdigest()

    @property
    def key(self) -> str:
        """The name that the table is stored under."""
        device = self.device
        return table_key(self.anatomy, device, self.runtime, self.dtype, self.workload)


def table_key(anatomy: str, device: Mapping[str, Any], runtime: str, dtype: str, workload: str) -> str:
    """The name a table is stored under. It depends on what the table is for, not on its content."""
    parts = {"anatomy": anatomy, "device": dict(device), "runtime": runtime, "dtype": dtype, "workload": workload}
    return keys.key("table", parts | {"version": VERSION})


def anatomy_hash(anatomy: Anatomy) -> str:
    """A hash of what a model's time depends on: the shapes of its tensors, its sites and its attention windows."""
    windows = architecture(anatomy.architecture).windows(anatomy)
    units = {name: site.units for name, site in anatomy.sites.items()}
    tensors = {name: list(shape) for name, shape in anatomy.tensors.items()}
    text = keys.canonical([anatomy.family, tensors, units, windows])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def cost_class(anatomy: Anatomy, site: Site) -> str:
    """The name of a site's class. Sites of one class take the same time at the same number of units."""
    window = anatomy.window(site)
    unit = anatomy.unit_params(site)
    return f"{site.kind} {site.units} x {unit}" + (f" window {window}" if window else "")


def classes(anatomy: Anatomy) -> dict[str, list[Site]]:
    """The sites inside the blocks by class, in order."""
    by_class: dict[str, list[Site]] = {}
    for site in anatomy.blocks():
        by_class.setdefault(cost_class(anatomy, site), []).append(site)
    return by_class
