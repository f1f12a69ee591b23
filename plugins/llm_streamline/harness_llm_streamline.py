"""LLM-Streamline: replaces a block of layers by one layer that is trained to reproduce the block's output."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness import Budget, Context, Cut, HarnessError, Param, PrunerSpec, Unsupported, hookimpl, to_remove

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models.anatomy.core import Anatomy

    Loss = Callable[[Sequence[int]], Tensor]

HARNESS_API = 2
LOWEST_RATE = 5e-5  # learning rate at the end of the schedule
WARMUP = 0.01  # share of the updates in which the learning rate rises
DECAY = 1e-3  # weight decay
CLIP = 5.0  # largest norm of the gradient
CHUNK = 32  # windows that pass through the block together
VALIDATIONS = 10  # per training stage
BETAS = {"mse": (0.9, 0.999), "lm": (0.9, 0.95)}
# The length of the schedule in multiples of the number of updates. The released code advances its schedule too seldom
# (lm: on its four GPUs), so that training ends long before the schedule does.
STRETCH = {"intended": {"mse": 1, "lm": 1}, "released": {"mse": 8, "lm": 2}}


@hookimpl
def harness_register_pruners():
    return [
        PrunerSpec(
            name="llm-streamline",
            architectures=("decoder",),
            target="harness_llm_streamline:Streamline",
            summary="replaces the block of layers that changes its input least by one trained layer",
            paper="Chen et al. 2024, arXiv:2403.19135 (ICLR 2025)",
            kinds=("depth",),
            needs=("calibration", "training"),
            updates_weights=True,
            differs=(
                "windows of --calibration instead of a mix of SlimPajama",
                "keeps the best weights, where the release keeps the last ones",
                "only the network layer is offered; the block is compared before the final norm",
                "the paper preset trains with the MSE alone, on as much text as the released 4.7B saw",
            ),
            parameters={
                "network": Param(
                    "layer",
                    "what replaces the block: a trained layer, or none (no training)",
                    choices=("layer", "none"),
                ),
                "samples": Param(16, "windows that choose the block", paper=50, least=1),
                "length": Param(256, "tokens in each window", paper=2048, least=2),
                "train_samples": Param(
                    160, "training windows; paper: the 0.06 B tokens of the released 4.7B", paper=30000, least=2
                ),
                "held_out": Param(
                    0.1, "share of the training windows used for validation only", paper=0.045, above=0, most=0.9
                ),
                "epochs": Param(6, "passes over the training windows in the MSE stage", paper=1, least=0),
                "batch": Param(4, "windows in one forward pass", paper=8, least=1),
                "accumulation": Param(1, "forward passes in one update", paper=16, least=1),
                "lr": Param(1e-3, "highest learning rate", paper=2e-4, above=0),
                "lr_schedule": Param(
                    "intended",
                    "intended: cosine down to 5e-5; released: as in the released code, practically constant",
                    choices=tuple(STRETCH),
                ),
                "lm_steps": Param(0, "updates with the language loss, through the whole shortened model", least=0),
            },
            check_with={"samples": 2, "length": 32, "train_samples": 8, "epochs": 2},
        )
    ]


@dataclass
class Streamline:
    network: str = "layer"
    samples: int = 16
    length: int = 256
    train_samples: int = 160
    held_out: float = 0.1
    epochs: float = 6
    batch: int = 4
    accumulation: int = 1
    lr: float = 1e-3
    lr_schedule: str = "intended"
    lm_steps: int = 0

    def prepare(self, model: Any, ctx: Context) -> dict[str, Tensor]:
        assert ctx.calibration
        return {"cosine": similarity(model, ctx.calibration(self.samples, self.length), ctx.progress)}

    def prune(self, model: Any, budget: Budget, ctx: Context, state: Any) -> Cut:
        if not to_remove(ctx.anatomy, budget.value):
            return Cut(why="nothing is asked to go")
        replacements = 1 if self.network == "layer" else 0
        block = choose_block(ctx.anatomy, budget.value, state["cosine"].tolist(), replacements)
        removed = block[replacements:]
        keep: dict[str, list[int]] = {site.name: [] for site in ctx.anatomy.blocks() if site.layer in removed}
        cosine = f"cosine {float(state['cosine'][block.start, block.stop]):.4f}"
        if not replacements:
            return Cut(keep=keep, why=f"layers {removed.start}-{removed.stop - 1} go, {cosine}")
        results = self.train(model, block, ctx)
        prefix = f"model.layers.{block.start}."
        layer = {prefix + name: p.detach().cpu() for name, p in model.model.layers[block.start].named_parameters()}
        return Cut(
            keep=keep,
            rewrites={name: tensor.clone() for name, tensor in layer.items() if name in ctx.anatomy.tensors},
            why="; ".join([f"layers {block.start}-{block.stop - 1} become layer {block.start}, {cosine}", *results]),
        )

    def train(self, model: Any, block: range, ctx: Context) -> list[str]:
        """Train the block's first layer in place. Returns a line of text for each stage."""
        import torch

        from harness.pruning.training import loop

        assert ctx.calibration
        windows = ctx.calibration(self.train_samples, self.length)
        held_out = max(1, round(self.held_out * len(windows)))
        if held_out >= len(windows):
            raise HarnessError(
                f"{len(windows)} windows, {held_out} of them held out, leave none to train on",
                "give more --set train_samples=…, or a smaller held_out",
            )
        updates = (len(windows) - held_out) / (self.batch * self.accumulation)
        steps = {"mse": max(1, round(self.epochs * updates)) if self.epochs else 0, "lm": self.lm_steps}
        pairs = record_pairs(model, windows, block, ctx.progress) if self.epochs else Pairs()
        layer, dtype = model.model.layers[block.start], model.dtype
        model.requires_grad_(False)
        layer.float().requires_grad_(True)  # bf16 would round small steps away

        def mixed_precision() -> AbstractContextManager[Any]:
            return torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32)

        def distance(rows: Sequence[int]) -> Tensor:
            x, y = (torch.cat([states[row] for row in rows]) for states in (pairs.entry, pairs.exit))
            with mixed_precision():
                output = layer(x, **pairs.extra)
            return torch.nn.functional.mse_loss(output.float(), y.float())

        def language_loss(rows: Sequence[int]) -> Tensor:
            with mixed_precision():
                return loop.model_loss(model, windows[list(rows)])

        results = []
        with bypassed(model.model.layers[i] for i in block[1:]):
            for stage, loss in (("mse", distance), ("lm", language_loss)):
                if steps[stage]:
                    before, after = self.fit(
                        stage, list(layer.parameters()), loss, steps[stage], len(windows), held_out, ctx
                    )
                    results.append(f"validation {stage} loss {before:.4g} -> {after:.4g}")
        return results

    def fit(
        self, stage: str, weights: list[Tensor], loss: Loss, steps: int, windows: int, held_out: int, ctx: Context
    ) -> tuple[float, float]:
        """Train the weights, and leave them as they were when they validated best.

        The last `held_out` windows validate. Returns the validation loss before training and the best one.
        """
        import torch

        from harness.pruning.training import loop

        def validation() -> float:
            parts = torch.arange(windows - held_out, windows).split(self.batch)
            with torch.no_grad():
                return sum(float(loss(part.tolist())) * len(part) for part in parts) / held_out

        batches = loop.random_batches(
            torch.arange(windows - held_out), self.batch, steps * self.accumulation, ctx.seed("batches", stage)
        )
        optim = loop.optimiser(weights, self.lr, DECAY, betas=BETAS[stage])
        before = best = validation()
        best_weights = [w.detach().clone() for w in weights]
        for step in range(steps):
            loop.set_learning_rate(optim, self.rate(stage, step, steps))
            for _ in range(self.accumulation):
                rows = next(batches)
                with torch.enable_grad():
                    batch_loss = loss(rows.tolist())
                    (batch_loss / self.accumulation).backward()
                ctx.trained(len(rows) * self.length)
                loop.check_loss(float(batch_loss.detach()), step)
            torch.nn.utils.clip_grad_norm_(weights, CLIP)
            optim.step()
            optim.zero_grad()
            due = (step + 1) * VALIDATIONS // steps > step * VALIDATIONS // steps
            if due and (validation_loss := validation()) < best:
                best = validation_loss
                best_weights = [w.detach().clone() for w in weights]
            ctx.progress(step + 1, steps)
        for w, value in zip(weights, best_weights, strict=True):
            w.data.copy_(value)
        return before, best

    def rate(self, stage: str, step: int, steps: int) -> float:
        from harness.pruning.training import loop

        length = steps * STRETCH[self.lr_schedule][stage]
        return self.lr * loop.cosine(step, length, round(WARMUP * length), min(1.0, LOWEST_RATE / self.lr))


# --- choice of the block ------------------------------------------------------------------------


def similarity(model: Any, windows: Tensor, progress: Callable[..., None] = lambda *_: None) -> Tensor:
    """0.5 + 0.5 cos of the hidden states at every two layer boundaries, averaged over all tokens."""
    import torch

    total = torch.zeros(())
    for done, window in enumerate(windows.split(1)):
        directions = torch.nn.functional.normalize(boundaries(model, window).float(), dim=-1).flatten(1)
        total = total + (directions @ directions.T).double().cpu() / window.numel()
        progress(done + 1, len(windows))
    return 0.5 + 0.5 * total / len(windows)


def boundaries(model: Any, window: Tensor) -> Tensor:
    """The input of every layer and the output of the last one before the final norm, stacked."""
    import torch

    from harness.pruning.layerwise import check_finite

    layers = model.model.layers
    states: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, args: states.append(args[0])) for layer in layers]
    hooks.append(layers[-1].register_forward_hook(lambda _, args, out: states.append(out)))
    try:
        with torch.no_grad():
            model.model(window.to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    for at, state in enumerate(states):
        check_finite(
            [state], f"layer {at - 1} gives values that are not finite" if at else "the embeddings are not finite"
        )
    return torch.cat(states)


def choose_block(anatomy: Anatomy, ratio: float, cosine: Sequence[Sequence[float]], replacements: int) -> range:
    """The layers of the block: the shortest block that removes enough parameters, at the highest cosine.

    The first `replacements` layers of the block (0 or 1) stay. `cosine` has a row and a column per layer boundary.
    """
    count = len(cosine) - 1
    size = [0] * count
    for site in anatomy.blocks():
        size[site.layer] += anatomy.site_params(site, site.units)
    goal = to_remove(anatomy, ratio)
    for width in range(1 + replacements, count + replacements):
        starts = range(count - width + 1)
        enough = [start for start in starts if sum(size[start + replacements : start + width]) >= goal]
        if enough:
            start = max(enough, key=lambda start: cosine[start][start + width])
            return range(start, start + width)
    most = (sum(size) - (size[0] if replacements else min(size[0], size[-1]))) / sum(size)
    raise Unsupported(
        f"{ratio:g} of the prunable parameters cannot go in one block: of {count} layers one must stay, "
        f"and the others hold {math.floor(most * 1e4) / 1e4:g}",
        "ask for a smaller ratio",
    )


# --- training -----------------------------------------------------------------------------------


@dataclass
class Pairs:
    """The input and the output of the block for every window, and the other arguments of its first layer."""

    entry: list[Tensor] = field(default_factory=list)
    exit: list[Tensor] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


def record_pairs(model: Any, windows: Tensor, block: range, progress: Callable[..., None]) -> Pairs:
    """Run the model up to the end of the block, and record the block's input and output for every window."""
    from harness.pruning import layerwise

    pairs = Pairs()
    for chunk in windows.split(CHUNK):
        for layer in layerwise.forward(model, chunk.split(1)):
            if layer.index == block.start:
                pairs.entry += layer.inputs
                pairs.extra = layer.extras[0]  # those of one window; they broadcast over any number of windows
            if layer.index == block.stop - 1:
                pairs.exit += layer.run_unchanged()
                break
        progress(len(pairs.exit), len(windows))
    return pairs


@contextmanager
def bypassed(layers: Iterable[Any]) -> Iterator[None]:
    """Make these layers return their input unchanged inside the block.

    All layers keep their positions, and so their attention masks.
    """
    layers = list(layers)
    for layer in layers:
        layer.forward = lambda hidden, *_, **__: hidden
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
