"""What a pruner must hold."""

from __future__ import annotations

from typing import Any

from harness.conformance import tiny_models
from harness.conformance.pruner_bench import RATIOS, PrunerBench, Trial
from harness.conformance.report import Fault, NotApplicable, in_a_line, where
from harness.conformance.spec_checks import check_spec, heavy
from harness.errors import BadCut, HarnessError
from harness.models import counting
from harness.plugins import registry

MASKING = {"unstructured", "semi-structured"}
SLICING = {"structured", "depth"}
NEEDS = {"calibration", "gradients", "latency", "training"}


class PrunerChecks(PrunerBench):
    """In the order they are told."""

    def check_light(self) -> None:
        """Registering imports nothing heavy."""
        self.begin()
        heavy("pruner", self.name)

    def check_spec(self) -> None:
        """The spec is complete: summary, paper, kinds, budgets, architectures, parameters with both presets."""
        check_spec(self.spec, registry().load("pruner", self.name))
        if wrong := set(self.spec.kinds) - MASKING - SLICING:
            raise Fault(f"kinds names {sorted(wrong)[0]!r}; known: {', '.join(sorted(MASKING | SLICING))}")
        if wrong := set(self.spec.needs) - NEEDS:
            raise Fault(f"needs names {sorted(wrong)[0]!r}; known: {', '.join(sorted(NEEDS))}")
        if wrong := set(self.spec.budgets) - {"ratio", "latency"}:
            raise Fault(f"budgets names {sorted(wrong)[0]!r}; known: ratio, latency")
        if wrong := set(self.spec.architectures) - tiny_models.supported():
            raise Fault(f"architectures names {sorted(wrong)[0]!r}, which has no anatomy")

    def check_cut(self) -> None:
        """It returns a cut of this model: known sites, indices in range, none twice; masks and rewrites that fit."""
        try:
            assert self.some.cut
            assert self.saved.exists()  # the fresh process runs beside what follows
        except BadCut as error:
            raise Fault(error.cause) from None

    def check_families(self) -> None:
        """Every family it names works and gets its budget, or it says what it does not support."""
        for name in tiny_models.of(self.spec):
            try:
                trial = self.ask(0.25, name)
            except (Fault, HarnessError):
                raise
            except Exception as error:
                raise Fault(
                    f"{name}: {in_a_line(error)} ({where(error, self.spec)}); raise Unsupported, or leave it out of "
                    "families"
                ) from error
            if trial.refused is None and self.spec.budgets:
                self._met(trial, f"{name}: ")

    def check_weights(self) -> None:
        """Weights change only if the spec says so, and only by way of the cut."""
        assert self.some
        for ratio in RATIOS:
            self.ask(ratio)
        for trial in self.answers:
            rewritten = set(trial.cut.rewrites) if trial.cut else set()
            if rewritten and not self.spec.updates_weights:
                raise Fault(f"it rewrites {sorted(rewritten)[0]}, undeclared: updates_weights=True")
            if lost := [name for name in trial.touched if name not in rewritten]:
                raise Fault(
                    f"it changed {lost[0]} in place ({trial.model}, {trial.ratio:g}), and such a change is lost: "
                    "return it in Cut(rewrites=...), or leave the model as it was"
                )

    def cuts(self) -> None:
        if not self.spec.budgets:
            raise NotApplicable("it cuts nothing")
        assert self.some

    def check_deterministic(self) -> None:
        """The same seed gives the same cut, whatever the global generators say."""
        self.cuts()
        if (second := self.ask(self.some.ratio, again=True).cut) is None:
            raise Fault("asked the same again, it refused")
        if differs := difference(self.some.cut, second):
            raise Fault(f"two runs with one seed {differs}: draw from ctx.seed(...), not from global chance")

    def check_budget(self) -> None:
        """The budget is met, without a whole step to spare, or refused."""
        self.cuts()
        for ratio in RATIOS:
            if (trial := self.ask(ratio)).refused is None:
                self._met(trial)

    def _met(self, trial: Trial, where: str = "") -> None:
        if "ratio" not in self.spec.budgets:
            self._fast_enough(trial, where)
            return
        removed, step, ratio = self.removed(trial), self.step(trial), trial.ratio
        if removed < ratio - 1e-9:
            _, anatomy = tiny_models.tiny(trial.model)
            short = round((ratio - removed) * anatomy.params(prunable=True))
            raise Fault(
                f"{where}asked to remove {ratio:g} of the prunable parameters, it removed {removed:.4g}: {short} "
                "elements too few (norms and biases count; harness.to_remove tells how many have to go)"
            )
        if removed >= ratio + step:
            raise Fault(f"{where}asked for {ratio:g}, it removed {removed:.4g}: a step ({step:.4g}) or more beyond")

    def _fast_enough(self, trial: Trial, where: str) -> None:
        limit = 1 - trial.ratio
        share, told = self.share(trial), f"{where}asked for {limit:g}x of dense, its cut takes"
        if share > limit + 1e-9:
            raise Fault(f"{told} {share:.4g}x by the cost model it was given")
        if share < limit - (step := self.slowest(trial)):
            raise Fault(f"{told} {share:.4g}x: more than the largest sub-layer ({step:.4g}x) is left unused")

    def check_kind(self) -> None:
        """Structured means smaller shapes, unstructured means zeros."""
        self.cuts()
        cut, kinds = self.some.cut, set(self.spec.kinds)
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
        """Budget zero changes nothing."""
        trial = self.cut(0.0)
        lost = any(not mask.all() for mask in trial.cut.masks.values())
        dense = tiny_models.tiny(trial.model)[0].state_dict()
        changed = [name for name, value in trial.cut.rewrites.items() if not value.to(dense[name]).equal(dense[name])]
        if trial.cut.keep or lost or changed:
            what = next(iter([*trial.cut.keep, *trial.cut.masks, *changed]))
            raise Fault(f"asked to remove nothing, it cut or changed {what}")

    def check_monotone(self) -> None:
        """More budget never leaves more parameters; to methods that know latencies alone, never a slower model."""
        served = [trial for ratio in RATIOS if (trial := self.ask(ratio)).refused is None]
        by_size = "ratio" in self.spec.budgets
        what = "removed" if by_size else "made faster by"
        cuts = [self.removed(trial) if by_size else 1 - self.share(trial) for trial in served]
        if cuts != sorted(cuts):
            raise Fault(f"for {', '.join(f'{r:g}' for r in RATIOS)} it {what} {', '.join(f'{c:.4g}' for c in cuts)}")

    def check_promise(self) -> None:
        """`shape()` tells what `prune()` leaves."""
        if not hasattr(self.build(), "shape"):
            raise NotApplicable("it has no shape()")
        for ratio in RATIOS:
            if (trial := self.ask(ratio)).refused is not None:
                continue
            _, anatomy = tiny_models.tiny(trial.model)
            promised = self.promise(anatomy, ratio)
            if promised is None:
                continue
            left = anatomy.complete(trial.cut.shape)
            if anatomy.complete(promised) != left:
                site = next(s for s, units in anatomy.complete(promised).items() if units != left[s])
                raise Fault(
                    f"at {ratio:g} shape() promises {anatomy.complete(promised)[site]} units of {site}, "
                    f"prune() leaves {left[site]}"
                )

    def check_dtypes(self) -> None:
        """bf16 works as fp32 does."""
        trial = self.ask(self.some.ratio, dtype="bf16")
        if trial.refused is not None:
            raise Fault(f"it refused bf16: {trial.refused.cause}")
        if self.spec.budgets:
            self._met(trial, "in bf16 ")

    def check_quiet(self) -> None:
        """It prints nothing: stdout is the record's."""
        assert self.some
        if printed := next((seen.printed for seen in self.watches if seen.printed), ""):
            raise Fault(f"it printed to stdout: {printed.strip().splitlines()[0][:80]!r}; use ctx.progress")

    def check_tidy(self) -> None:
        """It writes nowhere but into ctx.work_dir, and leaves torch's settings as they were."""
        assert self.some
        if wrote := next((seen.wrote for seen in self.watches if seen.wrote), []):
            raise Fault(f"it wrote to {self.shortened(wrote[0])}, outside ctx.work_dir")
        if left := next((seen.left for seen in self.watches if seen.left), ""):
            raise Fault(f"it left {left} changed")

    def shortened(self, path: str) -> str:
        return path.replace(str(self.work / "home"), "~").replace(str(self.work / "here"), ".")

    def check_offline(self) -> None:
        """It connects to nothing."""
        assert self.some
        if to := next((seen.connected for seen in self.watches if seen.connected), []):
            raise Fault(f"it connected to {to[0]}")

    def check_counts(self) -> None:
        """Parameters of the file, the shape and the model agree."""
        from harness.models.saved.folders import weights

        _, anatomy, smaller = self.pair
        stored = sum(tensor.numel() for tensor in weights(self.saved).values())
        shape, model = anatomy.params(self.some.cut.shape), counting.count(smaller)[0]
        if not stored == shape == model:
            raise Fault(f"the file holds {stored} parameters, the shape says {shape}, the model has {model}")

    def check_zeroed(self) -> None:
        """The smaller model computes what the dense one does with the same units zeroed."""
        import torch

        from harness.models import surgery

        model, anatomy, smaller = self.pair
        if "hidden" in self.some.cut.keep:
            raise NotApplicable("zeroing cannot show what a narrower residual stream does")
        ids = tiny_models.tokens(2, 12)
        dense, _ = tiny_models.tiny(self.some.model)
        dense.load_state_dict(surgery.zeroed(model, anatomy, self.some.cut), strict=False)
        with torch.inference_mode():
            expected, found = dense(ids, use_cache=False).logits, smaller(ids, use_cache=False).logits
        difference = float((found - expected).abs().max() / expected.abs().max())
        if not difference <= 1e-4:
            raise Fault(f"logits differ from the zeroed dense model by {difference:.2g} of the largest")

    def check_generation(self) -> None:
        """Text is the same with and without a cache."""
        ids = tiny_models.tokens(1, 5)
        told = [
            self.pair[2].generate(ids, max_new_tokens=8, do_sample=False, use_cache=cache, pad_token_id=1).tolist()
            for cache in (True, False)
        ]
        if told[0] != told[1]:
            raise Fault("the tokens it generates with a cache are not those without")

    def check_reload(self) -> None:
        """A fresh process reads the saved model and computes the same logits."""
        from safetensors.torch import load_file

        from harness.models.saved import reload_check

        if self.answered:
            raise Fault(f"a fresh process could not read the model: {self.answered}")
        found, expected = load_file(self.work / "fresh.safetensors")["logits"], reload_check.logits(self.pair[2])
        apart = float((found - expected).abs().max() / expected.abs().max())
        if not apart <= reload_check.TOLERANCE["fp32"]:
            raise Fault(f"a fresh process computes logits that differ by {apart:.2g} of the largest")

    def check_repeatable(self) -> None:
        """Another process, where sets and hashes have another order, decides the same."""
        from harness.models.saved import folders

        self.cuts()
        if self.answered or not (self.work / "again").exists():
            raise NotApplicable(self.answered or "the other process does not know it")
        if differs := difference(self.some.cut, folders.read_cut(self.work / "again")):
            raise Fault(f"another process with the same seed {differs}: sort what comes from sets, and use no hash()")


def difference(first: Any, second: Any) -> str:
    """What tells two cuts apart, in words; rewrites may differ by the order of sums."""
    if {n: list(k) for n, k in first.keep.items()} != {n: list(k) for n, k in second.keep.items()}:
        return "kept different units"
    if set(first.masks) != set(second.masks) or any(not m.equal(second.masks[n]) for n, m in first.masks.items()):
        return "masked different elements"
    if set(first.rewrites) != set(second.rewrites):
        return "rewrote different tensors"
    for name, value in first.rewrites.items():
        value, other = value.float(), second.rewrites[name].float()
        if not (value - other).abs().max() <= 1e-3 * value.abs().max():
            return f"rewrote {name} differently"
    return ""
