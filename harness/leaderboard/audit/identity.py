"""Checks of what a record says it is, against the components that its id is the hash of.

A run stores the components of its cell before it begins, and `publish` copies them to the published record. A digest
alone proves little, since anyone can change a record and seal it anew. The components also fix its method, model,
device, data, seed, budget and keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from harness import plugins
from harness.cell.budget_check import AIM_BELOW
from harness.errors import HarnessError
from harness.latency import timing
from harness.records.keys import canonical, differing_components, key
from harness.records.schema import Record
from harness.resolve import changed_parameters
from harness.system.reading import Unreadable, content, json_value

FOLDER = "cells"
SUFFIX = ".jsonl"  # not .json, since each .json below results/ is a record
LIMIT = 2**20  # bytes of a file of components, at most
SIZES = ("rounds", "warmup", "iterations", "seconds")  # fields of a timing protocol that a preset decides
AGAIN = "run the record's command in an empty folder to write them again"


@dataclass(frozen=True)
class Cell:
    """A cell as it was planned: its spec, and the components that its id is the hash of."""

    components: dict[str, Any]
    spec: dict[str, Any]

    def text(self) -> bytes:
        """The cell as it is published: one line of canonical JSON."""
        return (canonical(asdict(self)) + "\n").encode()


def published_path(side: Path, cell: str) -> Path:
    """The path of a published record's components; `side` is the folder of its samples."""
    return side.parent / FOLDER / f"{cell}{SUFFIX}"


def stage_path(side: Path, cell: str) -> Path:
    """The path of a cell's components in a runs folder."""
    return side.parent / "stages" / "cell" / f"{cell}.json"


def exists(side: Path, cell: str) -> bool:
    return published_path(side, cell).exists() or stage_path(side, cell).exists()


def read(side: Path, cell: str) -> Cell | None:
    """A cell's components; None where there are none, as with records that older versions published."""
    path = published_path(side, cell)
    if (text := _content(path)) is not None:
        value = _value(path, text, "spec")
        if text != (canonical(value) + "\n").encode() or value.keys() != {"components", "spec"}:
            raise HarnessError(f"{path} is not written as harness writes it", "publish the record again")
        return Cell(value["components"], value["spec"])
    path = stage_path(side, cell)
    if (text := _content(path)) is not None:
        value = _value(path, text, "value")
        return Cell(value["components"], value["value"])
    return None


def _content(path: Path) -> bytes | None:
    try:
        return content(path, LIMIT)
    except FileNotFoundError:
        return None
    except Unreadable as error:
        raise HarnessError(str(error), AGAIN) from None


def _value(path: Path, text: bytes, spec_name: str) -> dict[str, Any]:
    """The JSON object in a file of components, whose spec has this name."""
    try:
        value = json_value(path, text)
    except Unreadable as error:
        raise HarnessError(str(error), AGAIN) from None
    if not isinstance(value, dict) or not all(isinstance(value.get(name), dict) for name in ("components", spec_name)):
        raise HarnessError(f"{path} does not hold a cell's components", AGAIN)
    return value


def faults(record: Record, cell: Cell) -> Iterator[str]:
    """Where a record contradicts its cell's components."""
    parts = cell.components
    if key("cell", parts) != record.id:
        yield "its id is not the hash of its cell's components"
        return
    differences: dict[str, str] = {}
    for name, claim, component in (*_claims(record, parts), ("spec", record.spec.model_dump(mode="json"), cell.spec)):
        if (isinstance(claim, str) and claim == component) or canonical(claim) == canonical(component):
            continue
        for path, in_record, in_cell in differing_components({name: claim}, {name: component}):
            differences.setdefault(path, f"{path} is {in_record} in the record, {in_cell} in its cell's components")
    yield from differences.values()
    yield from _labels(record, parts)
    yield from _protocols(record, parts)
    yield from _keys(record, parts)
    yield from _unusual(record, parts)


def _claims(record: Record, parts: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Each field with its value in the record and in the components. Fields that either lacks are left out."""
    spec, artefact = record.spec.model_dump(mode="json"), parts["artefact"]
    for name in ("pruner", "parameters", "model", "revision", "dtype", "budget", "seed"):
        if name in artefact:
            yield f"spec.{name}", spec[name], artefact[name]
    sources = [part["calibration"] for part in (artefact, artefact["recovery"]) if part.get("calibration")]
    for name in {source["name"] for source in sources} or {""}:
        yield "spec.calibration", spec["calibration"], name
    yield "spec.workloads", spec["workloads"], [measure["workload"] for measure in parts["measure"]]
    yield "spec.evaluators", sorted(spec["evaluators"]), sorted(parts["eval"])
    fingerprint = {name: value for name, value in record.environment.device.items() if name != "plugins"}
    for measure in parts["measure"]:
        yield "spec.runtime", spec["runtime"], measure["runtime"]
        yield "spec.device", spec["device"], measure["device"]["name"]
        yield "environment.device", fingerprint, measure["device"]["fingerprint"]
        for name, value in measure["against"].items():
            yield f"spec.{name}", spec[name], value
        if (latency := record.latency.get(measure["workload"])) is not None:
            where = f"latency.{measure['workload']}.provenance"
            yield where, latency.provenance, measure["device"].get("provenance", latency.provenance)
    for label, part in parts["eval"].items():
        if part is None:
            continue
        yield "spec.limit", spec["limit"], part["limit"]
        yield "spec.dtype", spec["dtype"], part["dtype"]
        for name, score in record.scores.items():
            if name == label or name.startswith(f"{label}."):
                yield from _details(name, score.details, part)


def _details(name: str, details: dict[str, Any], part: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The window and the text of a score, as `_claims` gives its fields."""
    if "window" in details and "window" in part["parameters"]:
        yield f"scores.{name}.details.window", details["window"], part["parameters"]["window"]
    data = details.get("data")
    if isinstance(data, dict) and "sha256" in data and len(part["data"]) == 1:
        yield f"scores.{name}.details.data", data, next(iter(part["data"].values()))


def _labels(record: Record, parts: dict[str, Any]) -> Iterator[str]:
    """Where the label of a recovery or an evaluator contradicts its components. Labels hold the user's settings."""
    recovery = parts["artefact"]["recovery"]
    if not _names(record.spec.recovery, recovery["name"], recovery.get("parameters", {})):
        yield f"spec.recovery is {record.spec.recovery} in the record, {recovery} in its cell's components"
    for label, part in parts["eval"].items():
        if part is None:
            if record.status == "ok" and label not in record.unscored:
                yield f"{label} was not available when the cell was planned, but the record gives no reason"
        elif not _names(label, part["evaluator"], part["parameters"]):
            yield (
                f"spec.evaluators has {label}, its cell's components have {part['evaluator']} with {part['parameters']}"
            )


def _names(label: str, name: str, parameters: dict[str, Any]) -> bool:
    """Whether a label such as `lora:samples=4` names this plug-in with these parameters."""
    first, *pairs = label.split(":")
    settings = dict(pair.partition("=")[::2] for pair in pairs)
    return first == name and all(str(parameters.get(setting)) == value for setting, value in settings.items())


def _protocols(record: Record, parts: dict[str, Any]) -> Iterator[str]:
    """Where the preset or a latency contradicts the timing protocol."""
    presets = {name: [getattr(protocol, size) for size in SIZES] for name, protocol in timing.PROTOCOLS.items()}
    for measure in parts["measure"]:
        workload, protocol = measure["workload"], measure["protocol"]
        names = [name for name, sizes in presets.items() if sizes == [protocol[size] for size in SIZES]]
        if names and record.spec.preset not in names:
            yield f"spec.preset is {record.spec.preset} in the record, its timing that of {names[0]}"
        latency = record.latency.get(workload)
        if latency is None:
            continue
        if latency.warmup != protocol["warmup"]:
            yield f"{workload}: warmup is {latency.warmup} in the record, {protocol['warmup']} in its cell's components"
        if latency.rounds not in (protocol["rounds"], 2 * protocol["rounds"]):
            yield f"{workload}: {latency.rounds} rounds, its protocol has {protocol['rounds']} or twice as many"
        processes = 3 * latency.rounds if protocol["fresh"] else 1
        if latency.processes != processes:
            yield f"{workload}: processes is {latency.processes} in the record, {processes} by its protocol"


def _keys(record: Record, parts: dict[str, Any]) -> Iterator[str]:
    """Where the keys of stages are not the hashes of the components and measurements."""
    keys, artefact = record.keys, record.artefact
    cut = {name: part for name, part in parts["artefact"].items() if name != "recovery"}
    recovery = parts["artefact"]["recovery"]
    cuts = [key("cut", parts) for parts in _attempts(cut, record)]
    artefacts = [key("artefact", {"cut": cut, "recovery": recovery}) for cut in cuts]
    if cuts and (keys.cut, keys.artefact) not in zip(cuts, artefacts, strict=True):
        yield "keys.cut and keys.artefact are not those of its cell's components"
    if cuts and artefact is not None and artefact.path not in {f"artefacts/{name}" for name in artefacts}:
        yield f"artefact.path is {artefact.path}, where no model of its cell's components would be saved"
    sha256 = artefact.sha256 if artefact is not None else ""
    measures = {
        measure["workload"]: key("measure", {**measure, "artefact": sha256})
        for measure in parts["measure"]
        if measure["workload"] in record.latency
    }
    if keys.measure != measures:
        yield "keys.measure are not those of its cell's components and its model"
    evals = {label: part for label, part in parts["eval"].items() if part is not None} if record.scores else {}
    for label in sorted(evals.keys() | keys.eval.keys()):
        candidates = _evaluations({**evals[label], "artefact": sha256}, record) if label in evals else ()
        if keys.eval.get(label) not in [key("eval", part) for part in candidates]:
            yield f"keys.eval.{label} is not that of its cell's components and its model"


def _attempts(cut: dict[str, Any], record: Record) -> Iterator[dict[str, Any]]:
    """A cut's components at each attempt. If the finished model missed its latency, the next one aims lower."""
    if "matched" not in cut:
        yield cut
    elif record.budget is not None:
        aim = 1.0
        yield cut
        for probe in record.budget.probes:
            if probe.get("final"):
                aim *= record.spec.budget.value / probe["measured"] * (1 - AIM_BELOW)
                yield {**cut, "matched": {**cut["matched"], "tighten": aim}}


def _evaluations(part: dict[str, Any], record: Record) -> Iterator[dict[str, Any]]:
    """An evaluation's components with the measurements it used: memory against that of the host, or of the device."""
    if "measured" not in part:
        yield part
        return
    memory = record.memory.pruned
    for total in (record.environment.host.get("memory_bytes"), record.environment.device.get("memory_bytes")):
        used = memory and {**memory.model_dump(), "total": total}
        yield {**part, "measured": {"memory": used, "energy_j": record.energy.pruned}}


def _unusual(record: Record, parts: dict[str, Any]) -> Iterator[str]:
    """Where `unusual` contradicts the preset. Checked only if the installed method is the version that was run."""
    pruner = record.spec.pruner
    if record.unusual is None or parts["artefact"].get("version") != _version(pruner):
        return
    by_preset = changed_parameters(plugins.registry().specs["pruner"][pruner], record.spec)
    for path, in_record, expected in differing_components({"unusual": record.unusual}, {"unusual": by_preset}):
        yield f"{path} is {in_record} in the record, {expected} by its preset"


@cache
def _version(pruner: str) -> str | None:
    return plugins.code_version("pruner", pruner) if pruner in plugins.registry().specs["pruner"] else None
