"""From a plan to a proven model folder: prepare, prune, cut, recover, save, reload. Each step at most once."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from harness import accounting, data, keys, records
from harness.api import Cut
from harness.checkpoints import folder_bytes, folder_sha256, fresh
from harness.errors import EnvironmentFault
from harness.models.loading import free_space
from harness.plan import Plan
from harness.plugins import registry
from harness.records import Artefact, BudgetResult
from harness.store import Store


class Artefacts:
    """The dense model, the cut and the pruned model of a plan, each made when first needed."""

    def __init__(self, plan: Plan, store: Store, stage: Any, context: Callable[..., Any], cost: records.Cost) -> None:
        self.plan, self.store, self.stage, self.context, self.cost = plan, store, stage, context, cost

    # --- models ---

    @cached_property
    def _dense(self) -> Any:
        from harness import process
        from harness.checkpoints import folders

        process.hush()
        with self.stage("load"):
            return folders.read(self.plan.folder, self.plan.spec.dtype)  # type: ignore[arg-type]

    def dense(self) -> Any:
        return self._dense

    @cached_property
    def _pruned(self) -> Any:
        from harness.checkpoints import folders

        return folders.read(self.folder, self.plan.spec.dtype)

    def pruned(self) -> Any:
        return self._pruned

    def tokenizer(self) -> Any:
        from harness.checkpoints import folders

        return folders.tokenizer(self.plan.folder)  # type: ignore[arg-type]

    # --- the folder ---

    @property
    def key(self) -> str:
        return keys.key("artefact", self.plan.artefact_parts())

    @property
    def folder(self) -> Path:
        return self.store.path("artefacts", self.key)

    def ensure(self) -> tuple[Artefact, BudgetResult]:
        """The artefact of this plan, from the store if its files still are what was saved."""
        with self.store.lock(f"artefact-{self.key}"):
            return self._stored() or self._made()

    def _stored(self) -> tuple[Artefact, BudgetResult] | None:
        stored = self.store.stage("artefact", self.key)
        if stored is not None and self.folder.exists():
            if folder_sha256(self.folder) == stored["artefact"]["sha256"]:
                self._spent(stored["cost"])
                return Artefact.model_validate(stored["artefact"]), BudgetResult.model_validate(stored["budget"])
            self.store.set_aside(self.folder, "was changed since it was saved")
        return None

    def _made(self) -> tuple[Artefact, BudgetResult]:
        artefact, budget = self._make()
        words = {
            "artefact": artefact.model_dump(mode="json"),
            "budget": budget.model_dump(mode="json"),
            "cost": self.cost.model_dump(mode="json"),
        }
        self.store.save_stage("artefact", self.key, self.plan.artefact_parts(), words)
        return artefact, budget

    def _spent(self, cost: dict[str, float]) -> None:
        """What earlier runs of these stages took counts for this cell too."""
        for name, seconds in cost.items():
            setattr(self.cost, name, seconds)

    def _make(self) -> tuple[Artefact, BudgetResult]:
        from harness import surgery
        from harness.checkpoints import folders

        plan, anatomy = self.plan, self.plan.anatomy
        self._check_space()
        cut = self._cut()
        with self.stage("cut"):
            smaller = surgery.apply(self.dense(), anatomy, cut)
        if plan.spec.recovery != "none":
            start = time.monotonic()
            with self.stage(f"recover: {plan.spec.recovery}") as progress:
                ctx = self._context(progress)
                registry().load("recovery", plan.spec.recovery)().recover(smaller, self.dense(), ctx)
            self.cost.recover_s = time.monotonic() - start
        with self.stage("save and reload"):
            scratch = self.store.scratch(f"artefact-{self.key}")
            try:
                folders.write(smaller, self.tokenizer(), scratch)
                folders.write_cut(cut, self._origin(cut), scratch)
            except OSError as error:
                raise EnvironmentFault(
                    f"cannot save the model: {error.strerror or error}", "make room, or set HARNESS_RUNS"
                ) from error
            out = self.store.scratch(f"fresh-{self.key}") / "out"
            memory = fresh.check(smaller, scratch, out, plan.spec.dtype, plan.workloads[0])
        stored, nonzero = accounting.count(smaller)
        masked = surgery.masked_elements(anatomy, cut)
        ratio_blocks, ratio_total = accounting.ratios(anatomy, stored - masked)
        artefact = Artefact(
            path=str(self.folder.relative_to(self.store.root)),
            sha256=folder_sha256(scratch),
            params=stored,
            params_dense=anatomy.params(),
            params_nonzero=nonzero,
            ratio_blocks=ratio_blocks,
            ratio_total=ratio_total,
            bytes=folder_bytes(scratch),
            shape=cut.shape,
            weights_updated=bool(cut.rewrites) or plan.spec.recovery != "none",
        )
        predicted = plan.predicted
        budget = BudgetResult(
            asked=plan.spec.budget.value,
            achieved=ratio_blocks,
            predicted=accounting.ratios(anatomy, anatomy.params(predicted))[0] if predicted else None,
            unused=ratio_blocks - plan.spec.budget.value,
        )
        self.store.commit(scratch, self.folder)
        self.store.save_stage("memory", *plan.memory_key(artefact.sha256), memory)
        return artefact, budget

    def _check_space(self) -> None:
        """Said before the work, not after it."""
        need = accounting.stored_bytes(self.plan.anatomy.params(), self.plan.spec.dtype)
        if (free := free_space(self.store.root)) < need:
            raise EnvironmentFault(
                f"{self.store.root} has {free / 1e6:.1f} MB free, the model may need {need / 1e6:.1f} MB",
                "make room, or write elsewhere: HARNESS_RUNS=DIR",
            )

    # --- the cut ---

    def _cut(self) -> Any:
        """What the method decided; asked once, kept for every recovery."""
        from harness import surgery
        from harness.checkpoints import folders

        key = keys.key("cut", self.plan.cut_parts())
        folder = self.store.path("cuts", key)
        stored = self.store.stage("cut", key)
        if stored is not None and folder.exists():
            if folder_sha256(folder) == stored["sha256"]:
                self._spent(stored["cost"])
                return folders.read_cut(folder)
            self.store.set_aside(folder, "was changed since it was saved")
        pruner = registry().load("pruner", self.plan.spec.pruner)(**self.plan.spec.parameters)
        state = self._prepared(pruner)
        model = self.dense()
        start = time.monotonic()
        with self.stage("prune") as progress:
            decided: Cut = pruner.prune(model, self.plan.budget, self._context(progress), state)
            cut = surgery.check(self.plan.anatomy, decided)
        self.cost.search_s = time.monotonic() - start
        scratch = self.store.scratch(f"cut-{key}")
        folders.write_cut(cut, self._origin(cut), scratch)
        sha256 = folder_sha256(scratch)
        self.store.commit(scratch, folder)
        words = {"sha256": sha256, "cost": self.cost.model_dump(mode="json")}
        self.store.save_stage("cut", key, self.plan.cut_parts(), words)
        return cut

    def _prepared(self, pruner: Any) -> Any:
        """Budget-free statistics, shared by every budget."""
        if not hasattr(pruner, "prepare"):
            return None
        from harness.checkpoints import states

        key = keys.key("prepare", self.plan.prepare_parts())
        folder = self.store.path("states", key)
        stored = self.store.stage("prepare", key)
        if stored is not None and folder.exists() and folder_sha256(folder) == stored["sha256"]:
            self.cost.prepare_s = stored["prepare_s"]
            return states.read(folder)
        model = self.dense()
        start = time.monotonic()
        with self.stage("prepare") as progress:
            state = pruner.prepare(model, self._context(progress))
        self.cost.prepare_s = time.monotonic() - start
        scratch = self.store.scratch(f"state-{key}")
        states.write(state, scratch)
        sha256 = folder_sha256(scratch)
        self.store.commit(scratch, folder)
        words = {"sha256": sha256, "prepare_s": self.cost.prepare_s}
        self.store.save_stage("prepare", key, self.plan.prepare_parts(), words)
        return state

    def _context(self, progress: Callable[..., None]) -> Any:
        tokenizer, spec = self.tokenizer(), self.plan.spec
        ctx = self.context(progress, tokenizer=tokenizer)
        ctx.calibration = lambda count, length: data.calibration(
            spec.calibration, tokenizer, count, length, ctx.seed("calibration")
        )
        return ctx

    def _origin(self, cut: Any) -> dict[str, Any]:
        named = {*cut.masks, *cut.rewrites}
        return {
            "model": self.plan.model_key() | {"source": self.plan.card.source, "licence": self.plan.card.licence},
            "pruner": self.plan.spec.pruner,
            "parameters": self.plan.spec.parameters,
            "budget": self.plan.spec.budget.model_dump(),
            "recovery": self.plan.spec.recovery,
            "dense_tensors": {name: list(self.plan.anatomy.tensors[name]) for name in sorted(named)},
        }

    def describe(self, record: records.Record) -> None:
        """Put the record and a model card beside the weights."""
        from harness.checkpoints.card import card

        sealed = record.sealed()
        self.store.write(self.folder / "record.json", sealed.words())
        self.store.write_bytes(
            self.folder / "README.md", card(sealed, self.plan.card, any(self.folder.glob("modeling_*.py"))).encode()
        )
