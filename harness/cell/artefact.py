"""From a plan to a proven model folder: prepare, prune, cut, recover, save, reload. Each step at most once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.cell.plan import Attempt, Plan
from harness.errors import EnvironmentFault
from harness.models import counting
from harness.models.loading.weights import free_space
from harness.models.saved import reload_check
from harness.models.saved.contents import folder_bytes, folder_sha256
from harness.plugins import registry
from harness.records import keys, schema
from harness.records.files import guarded
from harness.records.schema import Artefact
from harness.records.store import Store
from harness.system.isolation import plugin_code


class Artefacts:
    """The dense model, the cut and the pruned model of a plan, each made when first needed."""

    def __init__(self, plan: Plan, store: Store, stage: Any, context: Callable[..., Any], cost: schema.Cost) -> None:
        self.plan, self.store, self.stage, self.context, self.cost = plan, store, stage, context, cost
        self.attempt = Attempt()  # the latest one
        self.folder = Path()  # known once ensured
        self.opened = False

    # --- models ---

    @cached_property
    def dense(self) -> Any:
        from harness.models.saved import folders
        from harness.system import process

        process.hush()
        with nullcontext() if self.opened else self.stage("load"):
            self.opened = True
            return folders.read(self.plan.folder, self.plan.spec.dtype)  # type: ignore[arg-type]

    @contextmanager
    def lent(self) -> Iterator[Any]:
        """The dense model for a method to work on; what it changed in place is not what others get."""
        yield self.dense.to(self.plan.place)
        self.__dict__.pop("dense")

    @cached_property
    def pruned(self) -> Any:
        from harness.models.saved import folders

        return folders.read(self.folder, self.plan.spec.dtype)

    @cached_property
    def tokenizer(self) -> Any:
        from harness.models.saved import folders

        return folders.tokenizer(self.plan.folder)  # type: ignore[arg-type]

    # --- folders of the store ---

    def kept(self, kind: str, parts: Any, make: Callable[[Path], Any]) -> tuple[Path, str, Any]:
        """A folder, its hash and the words that go with it: from the store if the files are unchanged, else made.

        Two cells that need the same one make it once.
        """
        key = keys.key(kind, parts)
        folder = self.store.path(f"{kind}s", key)
        with self.store.lock(f"{kind}-{key}"):
            stored = self.store.stage(kind, key)
            if stored is not None and folder.exists():
                if folder_sha256(folder) == stored["sha256"]:
                    for name, seconds in stored["cost"].items():  # what it took then counts for this cell too
                        setattr(self.cost, name, seconds)
                    return folder, stored["sha256"], stored["words"]
                self.store.set_aside(folder, "was changed since it was saved")
            scratch = self.store.scratch(f"{kind}-{key}")
            words = make(scratch)
            sha256 = folder_sha256(scratch)
            saved = {
                "sha256": sha256,
                "words": words,
                "cost": self.cost.model_dump(mode="json", exclude={"evaluate_s"}),
            }
            self.store.commit(scratch, folder)
            self.store.save_stage(kind, key, parts, saved)
        return folder, sha256, words

    def ensure(self, attempt: Attempt) -> tuple[Artefact, dict[str, Any]]:
        """The artefact of an attempt, proven by a fresh process, and what its cut promised."""
        self.attempt = attempt
        self.__dict__.pop("pruned", None)
        self.folder, sha256, words = self.kept("artefact", self.plan.artefact_parts(attempt), self._make)
        artefact = Artefact(path=str(self.folder.relative_to(self.store.root)), sha256=sha256, **words["artefact"])
        key, parts = self.plan.memory_key(artefact.sha256)
        if words["memory_of"] == self.plan.spec.workloads[0] and self.store.stage("memory", key) is None:
            self.store.save_stage("memory", key, parts, words["memory"])
        return artefact, words["budget"]

    def _make(self, scratch: Path) -> dict[str, Any]:
        from harness.models import surgery
        from harness.models.saved import folders

        plan, anatomy = self.plan, self.plan.anatomy
        self._check_space()
        cut, search = self.cut()
        with self.stage("cut"):
            smaller = surgery.apply(self.dense, anatomy, cut)
        if plan.recovery.spec.name != "none":
            self._recover(smaller, cut)
        with self.stage("save and reload"):
            with guarded(self.store.root):
                folders.write(smaller, self.tokenizer, scratch)
                folders.write_cut(cut, self.origin(cut), scratch)
            out = self.store.scratch("fresh") / "out"
            memory = reload_check.check(smaller, scratch, out, plan.spec.dtype, plan.workloads[0])
        stored, nonzero = counting.count(smaller)
        blocks, total = counting.ratios(anatomy, cut.shape, surgery.masked_elements(anatomy, cut))
        predicted = plan.predicted
        if predicted is not None:
            search = {"predicted": counting.ratios(anatomy, predicted)[0]}
        return {
            "artefact": {
                "params": stored,
                "params_dense": anatomy.params(),
                "params_nonzero": nonzero,
                "ratio_blocks": blocks,
                "ratio_total": total,
                "bytes": folder_bytes(scratch),
                "shape": cut.shape,
                "told": dict(cut.told),
                "weights_updated": bool(cut.rewrites) or plan.recovery.spec.name != "none",
            },
            "budget": search,
            "memory": memory,
            "memory_of": plan.spec.workloads[0],
        }

    def _recover(self, smaller: Any, cut: Any) -> None:
        from harness.cell.cutting import Decision

        plan, start = self.plan, time.monotonic()
        asked = self.lent() if plan.recovery.spec.teacher else nullcontext(None)
        with self.stage(f"recover: {plan.spec.recovery}") as progress, asked as teacher:
            ctx = Decision(self).context(progress, plan.recovery.parameters, f"--recovery {plan.recovery.spec.name}:")
            ctx.cut = cut
            recovery = plan.recovery.build()
            with plugin_code(f"recovery {plan.recovery.spec.name}"):
                recovery.recover(smaller.to(plan.place), teacher, ctx)
        smaller.to("cpu")
        self.cost.recover_s = time.monotonic() - start

    def _check_space(self) -> None:
        """Said before the work, not after it."""
        need = counting.stored_bytes(self.plan.anatomy.params(), self.plan.spec.dtype)
        if (free := free_space(self.store.root)) < need:
            raise EnvironmentFault(
                f"{self.store.root} has {free / 1e6:.1f} MB free, the model may need {need / 1e6:.1f} MB",
                "make room, or write elsewhere: HARNESS_RUNS=DIR",
            )

    # --- the cut ---

    def cut(self) -> tuple[Any, dict[str, Any]]:
        """What the method decided, asked once and kept for every recovery; and how a latency was reached."""
        from harness.cell.cutting import Decision
        from harness.models.saved import folders

        folder, _, words = self.kept(
            "cut", self.plan.cut_parts(self.attempt), lambda scratch: Decision(self).write(scratch)
        )
        return folders.read_cut(folder, self.plan.anatomy), words

    @cached_property
    def cost_model(self) -> Any:
        """The device's cost model for the first workload, measured now if nobody did before."""
        if (known := self.known_cost_model()) is not None:
            return known
        from harness.latency.cost_table.cost_model import CostModel
        from harness.latency.cost_table.profile import Target
        from harness.latency.cost_table.table_store import Shelf, device_words

        plan, spec = self.plan, self.plan.spec
        device = registry().device(spec.device, spec.runtime)
        words = device_words(plan.device, plan.info)
        target = Target(spec.model, plan.anatomy, words, spec.runtime, spec.dtype, plan.workloads[0], "quick")
        start = time.monotonic()
        with self.stage("profile the device") as progress:
            shelf = Shelf(self.store)  # how good a table is `harness profile` tells; a run tells what it measured
            table = shelf.fill(target, device, lambda _, done, total: progress(done, total), judge=False)
        self.cost.profile_s = time.monotonic() - start
        return CostModel(table, plan.anatomy)

    def known_cost_model(self) -> Any:
        from harness.latency.cost_table.cost_model import CostModel
        from harness.latency.cost_table.table_store import Shelf, device_words

        plan, spec = self.plan, self.plan.spec
        words = device_words(plan.device, plan.info)
        table = Shelf(self.store).find(plan.anatomy, words, spec.runtime, spec.dtype, plan.workloads[0])
        return None if table is None else CostModel(table, plan.anatomy)

    def origin(self, cut: Any) -> dict[str, Any]:
        named = {*cut.masks, *cut.rewrites}
        return {
            "model": self.plan.model_key() | {"source": self.plan.card.source, "licence": self.plan.card.licence},
            "pruner": self.plan.spec.pruner,
            "parameters": self.plan.spec.parameters,
            "budget": self.plan.spec.budget.model_dump(),
            "recovery": self.plan.spec.recovery,
            "dense_tensors": {name: list(self.plan.anatomy.tensors[name]) for name in sorted(named)},
        }

    def describe(self, record: schema.Record) -> None:
        """Put the record and a model card beside the weights."""
        from harness.models.saved.model_card import card

        sealed = record.sealed()
        self.store.write(self.folder / "record.json", sealed.words())
        pictures = sorted(file.name for file in self.folder.glob("notes/*.svg"))
        words = card(sealed, self.plan.card, any(self.folder.glob("modeling_*.py")), pictures)
        self.store.write_bytes(self.folder / "README.md", words.encode())
