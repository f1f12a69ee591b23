"""LLM-Streamline: a block of layers becomes one layer, which learns to give what the block gave."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness import Budget, Context, Cut, HarnessError, Param, PrunerSpec, Unsupported, hookimpl, to_remove

if TYPE_CHECKING:
    from torch import Tensor

    Loss = Callable[[Sequence[int]], Tensor]

HARNESS_API = 1
LOWEST, WARMUP, DECAY, CLIP = 5e-5, 0.01, 1e-3, 5.0  # the rate's end, its rise, weight decay, the gradient's norm
CHUNK = 32  # windows that walk through the block together
LOOKS = 10  # validations during a training
BETAS = {"mse": (0.9, 0.999), "lm": (0.9, 0.95)}
# The released code steps its schedule too seldom: for so many times the updates it is laid out (lm: on its four GPUs).
STRETCH = {"intended": {"mse": 1, "lm": 1}, "released": {"mse": 8, "lm": 2}}


@hookimpl
def harness_register_pruners():
    return [
        PrunerSpec(
            name="llm-streamline",
            target="harness_llm_streamline:Streamline",
            summary="replaces the block of layers that changes its input least by one trained layer",
            paper="Chen et al. 2024, arXiv:2403.19135 (ICLR 2025)",
            kinds=("depth",),
            needs=("calibration", "training"),
            updates_weights=True,
            differs=(
                "windows of --calibration instead of a mix of SlimPajama",
                "the best weights are kept, where the release keeps the last",
                "the layer network only; the block is compared before the final norm",
                "paper trains with the MSE alone on as much text as the released 4.7B saw",
            ),
            parameters={
                "network": Param(
                    "layer", "what takes the block's place: a layer, or none (no training)", choices=("layer", "none")
                ),
                "samples": Param(16, "windows that choose the block", paper=50, least=1),
                "length": Param(256, "tokens in each window", paper=2048, least=2),
                "train_samples": Param(
                    160, "windows for training; paper: the 0.06 B tokens of the released 4.7B", paper=30000, least=2
                ),
                "held_out": Param(0.1, "share of them that only validates", paper=0.045, above=0, most=0.9),
                "epochs": Param(6, "passes over them for the MSE stage", paper=1, least=0),
                "batch": Param(4, "windows in one pass", paper=8, least=1),
                "accumulation": Param(1, "passes in one update", paper=16, least=1),
                "lr": Param(1e-3, "learning rate at its height", paper=2e-4, above=0),
                "lr_schedule": Param(
                    "intended",
                    "intended: cosine down to 5e-5; released: as the released code steps it, practically constant",
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

    def prepare(self, model: Any, ctx: Context) -> dict[str, Any]:
        assert ctx.calibration
        return {"cosine": likeness(model, ctx.calibration(self.samples, self.length), ctx.progress)}

    def prune(self, model: Any, budget: Budget, ctx: Context, state: Any) -> Cut:
        if not to_remove(ctx.anatomy, budget.value):
            return Cut(why="nothing is asked to go")
        stays = 1 if self.network == "layer" else 0
        block = chosen(ctx.anatomy, budget.value, state["cosine"].tolist(), stays)
        gone = block[stays:]
        keep: dict[str, list[int]] = {site.name: [] for site in ctx.anatomy.blocks() if site.layer in gone}
        alike = f"cosine {float(state['cosine'][block.start, block.stop]):.4f}"
        if not stays:
            return Cut(keep=keep, why=f"layers {gone.start}-{gone.stop - 1} go, {alike}")
        told = self.train(model, block, ctx)
        prefix = f"model.layers.{block.start}."
        layer = {prefix + name: p.detach().cpu() for name, p in model.model.layers[block.start].named_parameters()}
        return Cut(
            keep=keep,
            rewrites={name: tensor.clone() for name, tensor in layer.items() if name in ctx.anatomy.tensors},
            why="; ".join([f"layers {block.start}-{block.stop - 1} become layer {block.start}, {alike}", *told]),
        )

    def train(self, model: Any, block: range, ctx: Context) -> list[str]:
        """Trains the block's first layer in place; a line for each stage."""
        import torch

        from harness.pruning.training import loop

        assert ctx.calibration
        windows = ctx.calibration(self.train_samples, self.length)
        held = max(1, round(self.held_out * len(windows)))
        if held >= len(windows):
            raise HarnessError(
                f"{len(windows)} windows, {held} of them held out, leave none to train on",
                "give more --set train_samples=…, or a smaller held_out",
            )
        passes = (len(windows) - held) / (self.batch * self.accumulation)
        steps = {"mse": max(1, round(self.epochs * passes)) if self.epochs else 0, "lm": self.lm_steps}
        pairs = cached(model, windows, block, ctx.progress) if self.epochs else Pairs()
        layer, dtype = model.model.layers[block.start], model.dtype
        model.requires_grad_(False)
        layer.float().requires_grad_(True)  # bf16 would swallow small steps

        def mixed() -> Any:
            return torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32)

        def distance(rows: Sequence[int]) -> Tensor:
            x, y = (torch.cat([states[row] for row in rows]) for states in (pairs.entry, pairs.exit))
            with mixed():
                found = layer(x, **pairs.extra)
            return torch.nn.functional.mse_loss(found.float(), y.float())

        def language(rows: Sequence[int]) -> Tensor:
            with mixed():
                return loop.model_loss(model, windows[list(rows)])

        told = []
        with bypassed(model.model.layers[i] for i in block[1:]):
            for stage, loss in (("mse", distance), ("lm", language)):
                if steps[stage]:
                    before, after = self.fit(
                        stage, list(layer.parameters()), loss, steps[stage], len(windows), held, ctx
                    )
                    told.append(f"validation {stage} loss {before:.4g} -> {after:.4g}")
        return told

    def fit(
        self, stage: str, weights: list[Tensor], loss: Loss, steps: int, windows: int, held: int, ctx: Context
    ) -> tuple[float, float]:
        """The validation loss before, and at its best, where the weights end. The last `held` windows validate."""
        import torch

        from harness.pruning.training import loop

        def validation() -> float:
            parts = torch.arange(windows - held, windows).split(self.batch)
            with torch.no_grad():
                return sum(float(loss(part.tolist())) * len(part) for part in parts) / held

        batches = loop.drawn(
            torch.arange(windows - held), self.batch, steps * self.accumulation, ctx.seed("batches", stage)
        )
        optim = loop.optimiser(weights, self.lr, DECAY, betas=BETAS[stage])
        before = best = validation()
        kept = [w.detach().clone() for w in weights]
        for step in range(steps):
            loop.at_rate(optim, self.rate(stage, step, steps))
            for _ in range(self.accumulation):
                rows = next(batches)
                with torch.enable_grad():
                    found = loss(rows.tolist())
                    (found / self.accumulation).backward()
                ctx.trained(len(rows) * self.length)
                loop.stop_if_lost(float(found.detach()), step)
            torch.nn.utils.clip_grad_norm_(weights, CLIP)
            optim.step()
            optim.zero_grad()
            due = (step + 1) * LOOKS // steps > step * LOOKS // steps
            if due and (now := validation()) < best:
                best, kept = now, [w.detach().clone() for w in weights]
            ctx.progress(step + 1, steps)
        for w, value in zip(weights, kept, strict=True):
            w.data.copy_(value)
        return before, best

    def rate(self, stage: str, step: int, steps: int) -> float:
        from harness.pruning.training import loop

        horizon = steps * STRETCH[self.lr_schedule][stage]
        return self.lr * loop.cosine(step, horizon, round(WARMUP * horizon), min(1.0, LOWEST / self.lr))


# --- which block --------------------------------------------------------------------------------


def likeness(model: Any, windows: Tensor, progress: Callable[..., None] = lambda *_: None) -> Tensor:
    """0.5 + 0.5 cos between every two boundaries of layers, the mean over all tokens."""
    import torch

    total = torch.zeros(())
    for done, window in enumerate(windows.split(1)):
        directions = torch.nn.functional.normalize(boundaries(model, window).float(), dim=-1).flatten(1)
        total = total + (directions @ directions.T).double().cpu() / window.numel()
        progress(done + 1, len(windows))
    return 0.5 + 0.5 * total / len(windows)


def boundaries(model: Any, window: Tensor) -> Tensor:
    """What enters every layer and what leaves the last, before the final norm."""
    import torch

    from harness.pruning.layerwise import finite

    layers = model.model.layers
    seen: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for layer in layers]
    hooks.append(layers[-1].register_forward_hook(lambda _, args, out: seen.append(out)))
    try:
        with torch.no_grad():
            model.model(window.to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    for at, state in enumerate(seen):
        finite([state], f"layer {at - 1} gives values that are not finite" if at else "the embeddings are not finite")
    return torch.cat(seen)


def chosen(anatomy: Any, ratio: float, cosine: Sequence[Sequence[float]], stays: int) -> range:
    """The layers of the block: as few as hold what has to go beside the `stays` that remain, at the best cosine."""
    count = len(cosine) - 1
    size = [0] * count
    for site in anatomy.blocks():
        size[site.layer] += anatomy.site_params(site, site.units)
    goal = to_remove(anatomy, ratio)
    for width in range(1 + stays, count + stays):
        starts = range(count - width + 1)
        enough = [start for start in starts if sum(size[start + stays : start + width]) >= goal]
        if enough:
            start = max(enough, key=lambda start: cosine[start][start + width])
            return range(start, start + width)
    most = (sum(size) - (size[0] if stays else min(size[0], size[-1]))) / sum(size)
    raise Unsupported(
        f"{ratio:g} of the prunable parameters cannot go in one block: of {count} layers one stays, "
        f"and the others hold {math.floor(most * 1e4) / 1e4:g}",
        "ask for a smaller ratio",
    )


# --- training -----------------------------------------------------------------------------------


@dataclass
class Pairs:
    """Per window what enters the block and what leaves it, and what its first layer is called with besides."""

    entry: list[Tensor] = field(default_factory=list)
    exit: list[Tensor] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


def cached(model: Any, windows: Tensor, block: range, progress: Callable[..., None]) -> Pairs:
    """Both ends of the block for every window, without what lies behind it."""
    from harness.pruning import layerwise

    pairs = Pairs()
    for chunk in windows.split(CHUNK):
        for layer in layerwise.forward(model, chunk.split(1)):
            if layer.index == block.start:
                pairs.entry += layer.inputs
                pairs.extra = layer.extras[0]  # of one window, so that it fits any number of them
            if layer.index == block.stop - 1:
                pairs.exit += layer.settled()
                break
        progress(len(pairs.exit), len(windows))
    return pairs


@contextmanager
def bypassed(layers: Iterable[Any]) -> Iterator[None]:
    """These layers hand on what they get; the others keep their places, and so their masks."""
    layers = list(layers)
    for layer in layers:
        layer.forward = lambda hidden, *_, **__: hidden
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
