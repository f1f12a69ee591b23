"""From a plan to a proven model folder: prepare, prune, cut, recover, save, reload. Each step at most once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

from harness import accounting, data, keys, records
from harness.api import Cut
from harness.checkpoints import folder_bytes, folder_sha256, fresh
from harness.errors import EnvironmentFault
from harness.files import guarded
from harness.models.loading import free_space
from harness.plan import Plan
from harness.plugins import registry
from harness.records import Artefact, BudgetResult
from harness.store import Store


class Artefacts:
    """The dense model, the cut and the pruned model of a plan, each made when first needed."""

    def __init__(self, plan: Plan, store: Store, stage: Any, context: Callable[..., Any], cost: records.Cost) -> None:
        self.plan, self.store, self.stage, self.context, self.cost = plan, store, stage, context, cost
        self.folder = Path()  # known once ensured
        self.opened = False

    # --- models ---

    @cached_property
    def dense(self) -> Any:
        from harness import process
        from harness.checkpoints import folders

        process.hush()
        with nullcontext() if self.opened else self.stage("load"):
            self.opened = True
            return folders.read(self.plan.folder, self.plan.spec.dtype)  # type: ignore[arg-type]

    @contextmanager
    def _lent(self) -> Iterator[Any]:
        """The dense model for a method to work on; what it changed in place is not what others get."""
        yield self.dense
        self.__dict__.pop("dense")

    @cached_property
    def pruned(self) -> Any:
        from harness.checkpoints import folders

        return folders.read(self.folder, self.plan.spec.dtype)

    @cached_property
    def tokenizer(self) -> Any:
        from harness.checkpoints import folders

        return folders.tokenizer(self.plan.folder)  # type: ignore[arg-type]

    # --- folders of the store ---

    def _kept(self, kind: str, parts: Any, make: Callable[[Path], Any]) -> tuple[Path, str, Any]:
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

    def ensure(self) -> tuple[Artefact, BudgetResult]:
        """The proven artefact of this plan and how it met the budget."""
        self.folder, sha256, words = self._kept("artefact", self.plan.artefact_parts(), self._make)
        artefact = Artefact(path=str(self.folder.relative_to(self.store.root)), sha256=sha256, **words["artefact"])
        key, parts = self.plan.memory_key(artefact.sha256)
        if words["memory_of"] == self.plan.spec.workloads[0] and self.store.stage("memory", key) is None:
            self.store.save_stage("memory", key, parts, words["memory"])
        return artefact, BudgetResult.model_validate(words["budget"])

    def _make(self, scratch: Path) -> dict[str, Any]:
        from harness import surgery
        from harness.checkpoints import folders

        plan, anatomy = self.plan, self.plan.anatomy
        self._check_space()
        cut = self._cut()
        with self.stage("cut"):
            smaller = surgery.apply(self.dense, anatomy, cut)
        if plan.spec.recovery != "none":
            start = time.monotonic()
            with self.stage(f"recover: {plan.spec.recovery}") as progress:
                made = registry().load("recovery", plan.spec.recovery)()
                made.recover(smaller, self.dense, self._context(progress))
            self.cost.recover_s = time.monotonic() - start
        with self.stage("save and reload"):
            with guarded(self.store.root):
                folders.write(smaller, self.tokenizer, scratch)
                folders.write_cut(cut, self._origin(cut), scratch)
            out = self.store.scratch("fresh") / "out"
            memory = fresh.check(smaller, scratch, out, plan.spec.dtype, plan.workloads[0])
        stored, nonzero = accounting.count(smaller)
        blocks, total = accounting.ratios(anatomy, cut.shape, surgery.masked_elements(anatomy, cut))
        asked, predicted = plan.spec.budget.value, plan.predicted
        return {
            "artefact": {
                "params": stored,
                "params_dense": anatomy.params(),
                "params_nonzero": nonzero,
                "ratio_blocks": blocks,
                "ratio_total": total,
                "bytes": folder_bytes(scratch),
                "shape": cut.shape,
                "weights_updated": bool(cut.rewrites) or plan.spec.recovery != "none",
            },
            "budget": {
                "asked": asked,
                "achieved": blocks,
                "predicted": accounting.ratios(anatomy, predicted)[0] if predicted else None,
                "unused": blocks - asked,
            },
            "memory": memory,
            "memory_of": plan.spec.workloads[0],
        }

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
        from harness.checkpoints import folders

        folder, *_ = self._kept("cut", self.plan.cut_parts(), self._decide)
        return folders.read_cut(folder)

    def _decide(self, scratch: Path) -> None:
        from harness import surgery
        from harness.checkpoints import folders

        pruner = registry().load("pruner", self.plan.spec.pruner)(**self.plan.spec.parameters)
        state = self._prepared(pruner)
        with self._lent() as model:
            start = time.monotonic()
            with self.stage("prune") as progress:
                decided: Cut = pruner.prune(model, self.plan.budget, self._context(progress), state)
                cut = surgery.check(self.plan.anatomy, decided)
            self.cost.search_s = time.monotonic() - start
        with guarded(self.store.root):
            folders.write_cut(cut, self._origin(cut), scratch)

    def _prepared(self, pruner: Any) -> Any:
        """Budget-free statistics, shared by every budget."""
        if not hasattr(pruner, "prepare"):
            return None
        from harness.checkpoints import states

        def make(scratch: Path) -> None:
            with self._lent() as model:
                start = time.monotonic()
                with self.stage("prepare") as progress:
                    state = pruner.prepare(model, self._context(progress))
                self.cost.prepare_s = time.monotonic() - start
            with guarded(self.store.root):
                states.write(state, scratch)

        folder, *_ = self._kept("state", self.plan.prepare_parts(), make)
        return states.read(folder)

    def _context(self, progress: Callable[..., None]) -> Any:
        tokenizer, spec = self.tokenizer, self.plan.spec
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
