"""DiLAP: learns by gradients how many units each sub-layer keeps, under a latency measured on a device."""

from __future__ import annotations

from harness import Param, PrunerSpec, hookimpl


@hookimpl
def harness_register_pruners():
    return [
        PrunerSpec(
            name="dilap",
            architectures=("decoder",),
            target="harness_dilap.method:Dilap",
            summary="learns by gradients what each sub-layer keeps, under the latency a device measured",
            kinds=("structured", "depth"),
            budgets=("latency",),
            needs=("calibration", "gradients", "latency"),
            updates_weights=True,
            check_settings="harness_dilap.settings:conflict",
            differs=(
                "follows the description of krishna22112023/latency-aware-pruning, not its code (see the card)",
                "solves for the multiplier of the latency at every step, instead of an augmented Lagrangian",
                "the projection values a unit by its distance from the learned position; gradients choose the swaps",
                "one level by default, on the dense weights; two levels with inner=lora, full or least-squares",
            ),
            parameters={
                "samples": Param(64, "calibration windows", paper=256, least=4),
                "length": Param(192, "tokens in each window", paper=256, least=8),
                "held_out": Param(8, "windows used only to compare candidate shapes", paper=32, least=1),
                "steps": Param(60, "outer steps, on the gates", paper=600, least=2),
                "batch": Param(2, "windows in a step", paper=4, least=1),
                "lr": Param(
                    0.03,
                    "learning rate of the gates: about the share of a site's units by which a step moves its position",
                    paper=0.02,
                    above=0,
                    most=1,
                ),
                "ramp": Param(0.6, "share of the steps over which the budget tightens", above=0, most=1),
                "softness": Param(
                    0.05, "share of a site's units whose gradients move the site's position", above=0, most=1
                ),
                "order": Param(
                    "compensated",
                    "first order of the units: Wanda's |w| |x|, Taylor's w g, or the error that remains after least "
                    "squares",
                    choices=("activation", "taylor", "compensated"),
                ),
                "refresh": Param(10, "steps between new orders by the gates' gradients; 0: never", least=0),
                "mix": Param(
                    0.3, "weight of the gates' gradients in a new order; the first order has the rest", least=0, most=1
                ),
                "memory": Param(0.97, "share of the mean gradients that each step keeps", above=0, most=0.999),
                "loss": Param("kl", "divergence from the dense model, or the loss of the task", choices=("kl", "task")),
                "stride": Param(2, "n: the loss counts every n-th token", paper=1, least=1),
                "inner": Param(
                    "none",
                    "the weights during the search: fixed, trained adapters, all trained, or solved by least squares",
                    choices=("none", "lora", "full", "least-squares"),
                ),
                "inner_steps": Param(1, "steps on the weights after each step on the gates", least=1),
                "inner_lr": Param(1e-3, "learning rate of the weights", paper=3e-4, above=0),
                "rank": Param(8, "rank of the adapters", least=1),
                "unrolled": Param(False, "gates see the weights one step ahead (second order)"),
                "ridge": Param(0.1, "ridge of least squares, as a share of the mean squared input", above=0),
                "merge": Param(False, "return the weights that the inner level learned instead of the dense ones"),
                "guide": Param(
                    "device",
                    "cost of a unit while gates learn: time on the device, FLOPs, or the same share of each site",
                    choices=("device", "flops", "sites"),
                ),
                "depth": Param(True, "whole sub-layers may be removed"),
                "projection": Param(
                    "knapsack",
                    "how positions become whole units: exactly, or by rounding",
                    choices=("knapsack", "round"),
                ),
                "swaps": Param(6, "exchanges of time between sites, tried on the held-out windows", paper=64, least=0),
                "compute": Param(
                    "auto",
                    "precision of the search's passes; auto: bf16 where it is fast",
                    choices=("auto", "fp32", "bf16"),
                ),
            },
            check_with={"samples": 8, "length": 16, "held_out": 2, "steps": 6, "swaps": 2, "compute": "fp32"},
        )
    ]
