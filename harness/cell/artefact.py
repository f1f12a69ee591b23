"""Makes the pruned model of an attempt, and proves it: prune, cut, recover, save, reload in a fresh process."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cell.cutting import Decision
from harness.cell.plan import Attempt
from harness.cell.workspace import Workspace
from harness.errors import EnvironmentFault
from harness.models import counting
from harness.models.loading.weights import free_space
from harness.models.saved import reload_check
from harness.models.saved.contents import folder_bytes
from harness.records import schema
from harness.records.files import disk_errors
from harness.records.schema import Artefact
from harness.system.isolation import plugin_code

if TYPE_CHECKING:
    from harness.models.cut import CheckedCut


class Artefacts:
    """The cut and the saved model of each attempt. What is in the store already is not made again."""

    def __init__(self, workspace: Workspace, attempt: Attempt) -> None:
        self.workspace = workspace
        self.attempt = attempt  # the latest
        self.plan, self.store = workspace.plan, workspace.store

    def ensure(self, attempt: Attempt) -> tuple[Artefact, dict[str, Any]]:
        """The saved model of an attempt, and how the search for its cut went."""
        self.attempt = attempt
        self.workspace.drop_pruned()
        folder, sha256, details = self.workspace.cached_folder(
            "artefact", self.plan.artefact_parts(attempt), self._make
        )
        artefact = Artefact(path=str(folder.relative_to(self.store.root)), sha256=sha256, **details["artefact"])
        # The process that proved the model has measured its memory: that stage is done.
        key, parts = self.plan.memory_key(artefact.sha256)
        if details["memory_of"] == self.plan.spec.workloads[0] and self.store.stage("memory", key) is None:
            self.store.save_stage("memory", key, parts, details["memory"])
        return artefact, details["budget"]

    def _make(self, scratch: Path) -> dict[str, Any]:
        from harness.models import surgery
        from harness.models.saved import folders

        plan, anatomy = self.plan, self.plan.anatomy
        self._check_space()
        cut, search = self._cut()
        with self.workspace.stage("cut"):
            pruned = surgery.apply(self.workspace.dense(), anatomy, cut)
        if plan.recovery.spec.name != "none":
            self._recover(pruned, cut)
        with self.workspace.stage("save and reload"):
            with disk_errors(self.store.root):
                folders.write(pruned, self.workspace.tokenizer(), scratch)
                folders.write_cut(cut, self.workspace.origin(cut), scratch)
            out = self.store.scratch("fresh") / "out"
            memory = reload_check.check(pruned, scratch, out, plan.spec.dtype, plan.workloads[0])
        params, nonzero = counting.count(pruned)
        ratio_blocks, ratio_total = counting.ratios(anatomy, cut.shape, surgery.masked_elements(anatomy, cut))
        if plan.predicted is not None:
            search = {"predicted": counting.ratios(anatomy, plan.predicted)[0]}
        return {
            "artefact": {
                "params": params,
                "params_dense": anatomy.params(),
                "params_nonzero": nonzero,
                "ratio_blocks": ratio_blocks,
                "ratio_total": ratio_total,
                "bytes": folder_bytes(scratch),
                "shape": cut.shape,
                "told": dict(cut.details),
                "weights_updated": bool(cut.rewrites) or plan.recovery.spec.name != "none",
            },
            "budget": search,
            "memory": memory,
            "memory_of": plan.spec.workloads[0],
        }

    def _cut(self) -> tuple[CheckedCut, dict[str, Any]]:
        """The cut of the attempt, which every recovery shares, and how the search for it went."""
        from harness.models.saved import folders

        def make(scratch: Path) -> dict[str, Any]:
            return Decision(self.workspace, self.attempt).write(scratch)

        folder, _, search = self.workspace.cached_folder("cut", self.plan.cut_parts(self.attempt), make)
        return folders.read_cut(folder, self.plan.anatomy), search

    def _recover(self, pruned: Any, cut: CheckedCut) -> None:
        """Run the recovery on the pruned model."""
        plan, start = self.plan, time.monotonic()
        name = plan.recovery.spec.name
        teacher_loan = self.workspace.lend_dense() if plan.recovery.spec.teacher else nullcontext(None)
        with self.workspace.stage(f"recover: {plan.spec.recovery}") as progress, teacher_loan as teacher:
            ctx = self.workspace.learning_context(progress, plan.recovery.parameters, f"--recovery {name}:")
            ctx.cut = cut
            recovery = plan.recovery.build()
            with plugin_code(f"recovery {name}"):
                recovery.recover(pruned.to(plan.torch_device), teacher, ctx)
        pruned.to("cpu")
        self.workspace.cost.recover_s = time.monotonic() - start

    def _check_space(self) -> None:
        """Refuse before the work starts if the disk cannot hold the model."""
        need = counting.stored_bytes(self.plan.anatomy.params(), self.plan.spec.dtype)
        free = free_space(self.store.root)
        if free < need:
            raise EnvironmentFault(
                f"{self.store.root} has {free / 1e6:.1f} MB free, the model may need {need / 1e6:.1f} MB",
                "make room, or write elsewhere: HARNESS_RUNS=DIR",
            )

    def describe(self, record: schema.Record) -> None:
        """Write the record and a model card beside the weights."""
        from harness.models.saved.model_card import card

        assert record.artefact is not None
        folder = self.store.path(record.artefact.path)
        sealed = record.sealed()
        self.store.write(folder / "record.json", sealed.to_dict())
        pictures = sorted(file.name for file in folder.glob("notes/*.svg"))
        has_own_code = any(folder.glob("modeling_*.py"))
        self.store.write_bytes(folder / "README.md", card(sealed, self.plan.card, has_own_code, pictures).encode())
