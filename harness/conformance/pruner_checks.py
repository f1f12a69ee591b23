"""The conformance checks for pruners."""

from __future__ import annotations

from typing import Any

from harness.conformance import tiny_models
from harness.conformance.guard import short_path
from harness.conformance.pruner_bench import RATIOS, PrunerBench, Trial
from harness.conformance.report import Fault, NotApplicable, error_line, first_line, plugin_line
from harness.conformance.spec_checks import check_light_import, check_spec
from harness.errors import BadCut, HarnessError
from harness.models import counting
from harness.plugins import registry

MASKING = {"unstructured", "semi-structured"}
SLICING = {"structured", "depth"}
NEEDS = {"calibration", "gradients", "latency", "training"}


class PrunerChecks(PrunerBench):
    """The checks run and are reported in the order in which they are written here."""

    def check_light(self) -> None:
        """Registering imports nothing heavy."""
        self.start_second_process()
        check_light_import("pruner", self.name)

    def check_spec(self) -> None:
        """The spec is complete: summary, paper, kinds, budgets, architectures, parameters with both presets."""
        check_spec(self.spec, registry().load("pruner", self.name))
        if unknown := set(self.spec.kinds) - MASKING - SLICING:
            raise Fault(f"kinds names {sorted(unknown)[0]!r}; known: {', '.join(sorted(MASKING | SLICING))}")
        if unknown := set(self.spec.needs) - NEEDS:
            raise Fault(f"needs names {sorted(unknown)[0]!r}; known: {', '.join(sorted(NEEDS))}")
        if unknown := set(self.spec.budgets) - {"ratio", "latency"}:
            raise Fault(f"budgets names {sorted(unknown)[0]!r}; known: ratio, latency")
        if unknown := set(self.spec.architectures) - tiny_models.supported():
            raise Fault(f"architectures names {sorted(unknown)[0]!r}, which has no anatomy")

    def check_cut(self) -> None:
        """It returns a valid cut of this model: known sites, indices in range, none twice; masks and rewrites that fit.

        The pruned model is saved here, so that the second process reads it while the next checks run.
        """
        try:
            self.save()
        except BadCut as error:
            raise Fault(error.cause) from None

    def check_families(self) -> None:
        """It meets the budget for every family that it works on, or says what it does not support."""
        for name in tiny_models.for_method(self.spec):
            try:
                trial = self.trial(0.25, name)
            except (Fault, HarnessError):
                raise
            except Exception as error:
                raise Fault(
                    f"{name}: {error_line(error)} ({plugin_line(error, self.spec)}); raise Unsupported, or leave it "
                    "out of `architectures`"
                ) from error
            if trial.refusal is None and self.spec.budgets:
                self._check_budget_met(trial, f"{name}: ")

    def check_weights(self) -> None:
        """It changes weights only if its spec says so, and only through `Cut(rewrites=...)`."""
        self.first_cut()
        for ratio in RATIOS:
            self.trial(ratio)
        for trial in self.finished_trials():
            rewritten = set(trial.cut.rewrites) if trial.cut else set()
            if rewritten and not self.spec.updates_weights:
                raise Fault(f"it rewrites {sorted(rewritten)[0]}, undeclared: updates_weights=True")
            if lost := [name for name in trial.changed_in_place if name not in rewritten]:
                raise Fault(
                    f"it changed {lost[0]} in place ({trial.model}, {trial.ratio:g}), and such a change is lost: "
                    "return it in Cut(rewrites=...), or leave the model as it was"
                )

    def require_pruning(self) -> Trial:
        """The first cut; for methods without a budget, such as `dense`, the check does not apply."""
        if not self.spec.budgets:
            raise NotApplicable("it cuts nothing")
        return self.first_cut()

    def check_deterministic(self) -> None:
        """The same seed gives the same cut, whatever the global generators say."""
        first = self.require_pruning()
        second = self.trial(first.ratio, again=True).cut
        if second is None:
            raise Fault("it refused the same request the second time")
        if differs := difference(first.cut, second):
            raise Fault(f"two runs with one seed {differs}: use ctx.seed(...), not the global random generators")

    def check_budget(self) -> None:
        """It meets the budget and overshoots it by less than one unit, or it refuses the budget."""
        self.require_pruning()
        for ratio in RATIOS:
            trial = self.trial(ratio)
            if trial.refusal is None:
                self._check_budget_met(trial)

    def _check_budget_met(self, trial: Trial, prefix: str = "") -> None:
        if "ratio" not in self.spec.budgets:
            self._check_latency_met(trial, prefix)
            return
        ratio = trial.ratio
        removed = self.removed_share(trial)
        unit = self.coarsest_unit_share(trial)
        if removed < ratio - 1e-9:
            _, anatomy = tiny_models.tiny(trial.model)
            short = round((ratio - removed) * anatomy.params(prunable=True))
            raise Fault(
                f"{prefix}asked to remove {ratio:g} of the prunable parameters, it removed {removed:.4g}: {short} "
                "elements too few (norms and biases count; harness.to_remove gives the number to remove)"
            )
        if removed >= ratio + unit:
            raise Fault(
                f"{prefix}asked to remove {ratio:g}, it removed {removed:.4g}: "
                f"too much by one unit ({unit:.4g}) or more"
            )

    def _check_latency_met(self, trial: Trial, prefix: str) -> None:
        limit = 1 - trial.ratio
        share = self.latency_share(trial)
        slowest = self.slowest_site_share(trial)
        start = f"{prefix}asked for {limit:g}x of dense, its cut takes {share:.4g}x"
        if share > limit + 1e-9:
            raise Fault(f"{start} by the cost model it was given")
        if share < limit - slowest:
            raise Fault(f"{start}: more than the slowest sub-layer ({slowest:.4g}x) is left unused")

    def check_kind(self) -> None:
        """Structured methods make shapes smaller, unstructured methods set elements to zero."""
        cut = self.require_pruning().cut
        kinds = set(self.spec.kinds)
        if cut.masks and not kinds & MASKING:
            raise Fault("it masks elements, but its kinds promise smaller shapes: nothing gets faster")
        if cut.keep and not kinds & SLICING:
            raise Fault("it removes units, but its kinds promise masks only")
        if not cut.masks and not cut.keep:
            raise Fault("it neither removes units nor masks elements")
        empty = [site for site, units in cut.keep.items() if not units]
        if empty and "depth" not in kinds and len(empty) == len(cut.keep):
            raise Fault("it removes whole sites only: that is kind 'depth'")

    def check_identity(self) -> None:
        """A budget of zero changes nothing."""
        trial = self.require_cut(0.0)
        masked = any(not mask.all() for mask in trial.cut.masks.values())
        dense = tiny_models.tiny(trial.model)[0].state_dict()
        changed = [name for name, value in trial.cut.rewrites.items() if not value.to(dense[name]).equal(dense[name])]
        if trial.cut.keep or masked or changed:
            what = next(iter([*trial.cut.keep, *trial.cut.masks, *changed]))
            raise Fault(f"asked to remove nothing, it cut or changed {what}")

    def check_monotone(self) -> None:
        """A larger budget never leaves more parameters or, for methods with latency budgets only, a slower model."""
        trials = [self.trial(ratio) for ratio in RATIOS]
        cuts = [trial for trial in trials if trial.refusal is None]
        if "ratio" in self.spec.budgets:
            what, amounts = "removed", [self.removed_share(trial) for trial in cuts]
        else:
            what, amounts = "made faster by", [1 - self.latency_share(trial) for trial in cuts]
        if amounts != sorted(amounts):
            ratios = ", ".join(f"{trial.ratio:g}" for trial in cuts)
            raise Fault(f"for {ratios} it {what} {', '.join(f'{amount:.4g}' for amount in amounts)}")

    def check_promise(self) -> None:
        """`shape()` predicts the shape that `prune()` leaves."""
        if not hasattr(self.new_pruner(), "shape"):
            raise NotApplicable("it has no shape()")
        for ratio in RATIOS:
            trial = self.trial(ratio)
            if trial.refusal is not None:
                continue
            _, anatomy = tiny_models.tiny(trial.model)
            shape = self.predicted_shape(anatomy, ratio)
            if shape is None:
                continue
            predicted = anatomy.complete(shape)
            actual = anatomy.complete(trial.cut.shape)
            if predicted != actual:
                site = next(name for name, units in predicted.items() if units != actual[name])
                raise Fault(
                    f"at {ratio:g} shape() promises {predicted[site]} units of {site}, prune() leaves {actual[site]}"
                )

    def check_dtypes(self) -> None:
        """It works in bf16 as in fp32."""
        trial = self.trial(self.first_cut().ratio, dtype="bf16")
        if trial.refusal is not None:
            raise Fault(f"it refused bf16: {trial.refusal.cause}")
        if self.spec.budgets:
            self._check_budget_met(trial, "in bf16 ")

    def check_quiet(self) -> None:
        """It prints nothing: stdout is for the record."""
        self.first_cut()
        for effects in self.side_effects:
            if effects.stdout:
                raise Fault(f"it printed to stdout: {first_line(effects.stdout)!r}; use ctx.progress")

    def check_tidy(self) -> None:
        """It writes only to ctx.work_dir, and leaves torch's settings as they were."""
        self.first_cut()
        for effects in self.side_effects:
            if effects.writes:
                raise Fault(f"it wrote to {short_path(effects.writes[0], self.work)}, outside ctx.work_dir")
        for effects in self.side_effects:
            if effects.changed_setting:
                raise Fault(f"it left {effects.changed_setting} changed")

    def check_offline(self) -> None:
        """It opens no network connection."""
        self.first_cut()
        for effects in self.side_effects:
            if effects.connections:
                raise Fault(f"it connected to {effects.connections[0]}")

    def check_counts(self) -> None:
        """The saved file, the shape and the model have the same number of parameters."""
        from harness.models.saved.folders import weights

        _, anatomy, pruned = self.models()
        stored = sum(tensor.numel() for tensor in weights(self.save()).values())
        shape = anatomy.params(self.first_cut().cut.shape)
        model = counting.count(pruned)[0]
        if not stored == shape == model:
            raise Fault(f"the file holds {stored} parameters, the shape says {shape}, the model has {model}")

    def check_zeroed(self) -> None:
        """The pruned model computes the same as the dense model with the removed units zeroed."""
        import torch

        from harness.models import surgery

        model, anatomy, pruned = self.models()
        trial = self.first_cut()
        if inexact := [name for name in trial.cut.keep if not anatomy.sites[name].exact]:
            raise NotApplicable(f"{inexact[0]} is not exact: zeroed units of it are not the same as removed ones")
        ids = tiny_models.tokens(2, 12)
        zeroed, _ = tiny_models.tiny(trial.model)
        zeroed.load_state_dict(surgery.zeroed(model, anatomy, trial.cut), strict=False)
        with torch.inference_mode():
            expected = zeroed(ids, use_cache=False).logits
            actual = pruned(ids, use_cache=False).logits
        error = float((actual - expected).abs().max() / expected.abs().max())
        if not error <= 1e-4:
            raise Fault(f"logits differ from the zeroed dense model by {error:.2g} of the largest")

    def check_generation(self) -> None:
        """The pruned model generates the same tokens with and without a cache."""
        ids = tiny_models.tokens(1, 5)
        _, _, pruned = self.models()
        cached, uncached = (
            pruned.generate(ids, max_new_tokens=8, do_sample=False, use_cache=cache, pad_token_id=1).tolist()
            for cache in (True, False)
        )
        if cached != uncached:
            raise Fault("the pruned model generates other tokens with a cache than without")

    def check_reload(self) -> None:
        """A fresh process reads the saved model and computes the same logits."""
        from safetensors.torch import load_file

        from harness.models.saved import reload_check

        if error := self.second_process_error():
            raise Fault(f"a fresh process could not read the model: {error}")
        _, _, pruned = self.models()
        actual = load_file(self.work / "fresh.safetensors")["logits"]
        expected = reload_check.logits(pruned)
        difference = float((actual - expected).abs().max() / expected.abs().max())
        if not difference <= reload_check.TOLERANCE["fp32"]:
            raise Fault(f"a fresh process computes logits that differ by {difference:.2g} of the largest")

    def check_repeatable(self) -> None:
        """Another process, where sets and hashes have another order, makes the same cut."""
        from harness.models.saved import folders

        trial = self.require_pruning()
        error = self.second_process_error()
        if error or not (self.work / "again").exists():
            raise NotApplicable(error or "the method is not installed for the second process")
        if differs := difference(trial.cut, folders.read_cut(self.work / "again")):
            raise Fault(f"another process with the same seed {differs}: sort what comes from sets, and use no hash()")


def difference(first: Any, second: Any) -> str:
    """How two cuts differ, as the rest of a sentence. Rewrites may differ by rounding, as sums have no fixed order."""
    if {n: list(k) for n, k in first.keep.items()} != {n: list(k) for n, k in second.keep.items()}:
        return "kept different units"
    if set(first.masks) != set(second.masks) or any(not m.equal(second.masks[n]) for n, m in first.masks.items()):
        return "masked different elements"
    if set(first.rewrites) != set(second.rewrites):
        return "rewrote different tensors"
    for name, tensor in first.rewrites.items():
        value, repeated = tensor.float(), second.rewrites[name].float()
        if not (value - repeated).abs().max() <= 1e-3 * value.abs().max():
            return f"rewrote {name} differently"
    return ""
