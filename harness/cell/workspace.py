"""What the steps of a cell share: models in memory, cached folders, the device's cost model, contexts for plug-ins."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api import Context
from harness.cell.plan import Plan
from harness.evaluation.calibration import calibration
from harness.latency.cost_table.cost_model import CostModel
from harness.latency.cost_table.table_store import TableStore, device_payload
from harness.models.architectures.lookup import task
from harness.models.saved.contents import folder_sha256
from harness.plugins import registry
from harness.records import keys, schema
from harness.records.store import Store
from harness.system import process, seeds

if TYPE_CHECKING:
    from harness.models.cut import CheckedCut

Progress = Callable[[int, int], None]  # how much is done, of how much
Stage = Callable[[str], AbstractContextManager[Progress]]


class Workspace:
    """The models, folders, cost model and contexts of one plan.

    A model is loaded when it is first needed. It stays in memory until it is dropped.
    """

    def __init__(self, plan: Plan, store: Store, stage: Stage, cost: schema.Cost) -> None:
        self.plan = plan
        self.store = store
        self.stage = stage
        self.cost = cost
        self.cell_id = ""  # until the cell is identified
        self.load_is_stage = True  # whether the next load of the dense model is reported as a stage
        self._dense: Any = None
        self._pruned: tuple[Path, Any] | None = None
        self._tokenizer: Any = None
        self._cost_model: CostModel | None = None

    # --- models ---

    def dense(self) -> Any:
        """The dense model. Only its first load is a stage of the cell."""
        if self._dense is None:
            from harness.models.saved import folders

            process.disable_library_progress_bars()
            with self.stage("load") if self.load_is_stage else nullcontext():
                self.load_is_stage = False
                self._dense = folders.read(self.plan.folder, self.plan.spec.dtype)  # type: ignore[arg-type]
        return self._dense

    def drop_dense(self) -> None:
        """Forget the dense model. The next call of `dense` loads it again."""
        self._dense = None

    @contextmanager
    def lend_dense(self) -> Iterator[Any]:
        """The dense model for a plug-in to work on. It is dropped afterwards: the plug-in may have changed it."""
        yield self.dense().to(self.plan.torch_device)
        self.drop_dense()

    def pruned(self, folder: Path) -> Any:
        """The pruned model that was saved in this folder."""
        if self._pruned is None or self._pruned[0] != folder:
            from harness.models.saved import folders

            self._pruned = (folder, folders.read(folder, self.plan.spec.dtype))
        return self._pruned[1]

    def drop_pruned(self) -> None:
        """Forget the pruned model, which leaves its memory to the next one."""
        self._pruned = None

    def tokenizer(self) -> Any:
        """The tokenizer of the dense model."""
        if self._tokenizer is None:
            from harness.models.saved import folders

            self._tokenizer = folders.tokenizer(self.plan.folder)  # type: ignore[arg-type]
        return self._tokenizer

    # --- folders of the store ---

    def cached_folder(self, kind: str, parts: Any, make: Callable[[Path], Any]) -> tuple[Path, str, Any]:
        """A folder, its hash, and what `make` returned for it. It is reused if its files are unchanged.

        A lock on the key keeps two cells from making the same folder at the same time.
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
            details = make(scratch)
            sha256 = folder_sha256(scratch)
            saved = {
                "sha256": sha256,
                "words": details,
                "cost": self.cost.model_dump(mode="json", exclude={"evaluate_s"}),
            }
            self.store.commit(scratch, folder)
            self.store.save_stage(kind, key, parts, saved)
        return folder, sha256, details

    def origin(self, cut: CheckedCut) -> dict[str, Any]:
        """Where a cut comes from, for its `cut.json`."""
        plan, spec = self.plan, self.plan.spec
        changed = {*cut.masks, *cut.rewrites}
        return {
            "model": plan.model_key() | {"source": plan.card.source, "licence": plan.card.licence},
            "pruner": spec.pruner,
            "parameters": spec.parameters,
            "budget": spec.budget.model_dump(),
            "recovery": spec.recovery,
            "dense_tensors": {name: list(plan.anatomy.tensors[name]) for name in sorted(changed)},
        }

    # --- the device's cost model ---

    def cost_model(self) -> CostModel:
        """The device's cost model for the first workload. It is profiled now if the store has no table for it."""
        if self._cost_model is None:
            self._cost_model = self.stored_cost_model() or self._profile()
        return self._cost_model

    def stored_cost_model(self) -> CostModel | None:
        """The cost model from a table in the store; None if there is no such table."""
        plan, spec = self.plan, self.plan.spec
        device = device_payload(plan.device, plan.info)
        table = TableStore(self.store).find(plan.anatomy, device, spec.runtime, spec.dtype, plan.workloads[0])
        return None if table is None else CostModel(table, plan.anatomy)

    def _profile(self) -> CostModel:
        """Measure the cost table. It is not validated here; `harness profile` does that."""
        from harness.latency.cost_table.profile import ProfileTarget

        plan, spec = self.plan, self.plan.spec
        device = registry().device(spec.device, spec.runtime)
        description = device_payload(plan.device, plan.info)
        target = ProfileTarget(
            spec.model, plan.anatomy, description, spec.runtime, spec.dtype, plan.workloads[0], "quick"
        )
        start = time.monotonic()
        with self.stage("profile the device") as progress:
            shelf = TableStore(self.store)
            table = shelf.fill(target, device, lambda _, done, total: progress(done, total), validate=False)
        self.cost.profile_s = time.monotonic() - start
        return CostModel(table, plan.anatomy)

    # --- what a plug-in gets ---

    def context(self, progress: Callable[..., None], **fields: Any) -> Context:
        """The context of a plug-in. `fields` are those that not every kind of plug-in gets."""
        spec = self.plan.spec
        defaults: dict[str, Any] = {
            "tokenizer": None,
            "calibration": None,
            "seed": lambda *axis: seeds.seed(spec.seed, *axis),
        }
        return Context(
            anatomy=self.plan.anatomy,
            work_dir=self.store.scratch(f"work-{self.cell_id}"),
            progress=progress,
            workloads=self.plan.workloads,
            limit=spec.limit,
            **{**defaults, **fields},
        )

    def learning_context(
        self,
        progress: Callable[..., None],
        parameters: Mapping[str, Any],
        option: str,
        trained: Callable[[int], None] | None = None,
    ) -> Context:
        """The context of a pruner or a recovery, which may read calibration text and train.

        `option` is how a user sets one of its `parameters` on the command line. `trained` receives how many tokens
        each step of a training learned from.
        """
        tokenizer, anatomy = self.tokenizer(), self.plan.anatomy
        ctx = self.context(progress, tokenizer=tokenizer, trained=trained or self.count_tokens)
        first_token = anatomy.config.get("bos_token_id") if anatomy.needs_bos else None
        ctx.task = task(anatomy.task)
        source, options = self.plan.spec.calibration, partial(_options_with_value, parameters, option)
        ctx.calibration = lambda count, length: calibration(
            source, tokenizer, count, length, ctx.seed("calibration"), first_token, options
        )
        ctx.latency = self.cost_model() if self.plan.sees_latency else None
        return ctx

    def count_tokens(self, tokens: int) -> None:
        """Add tokens that were trained on to the cost of the cell."""
        self.cost.train_tokens += tokens


def _options_with_value(parameters: Mapping[str, Any], option: str, value: int) -> str:
    """The command-line options that set a number which a method asked for, by the parameters that have this value."""
    names = [name for name, own in parameters.items() if own == value and not isinstance(own, bool)]
    return " or ".join(f"{option}{name}=…" for name in names)
