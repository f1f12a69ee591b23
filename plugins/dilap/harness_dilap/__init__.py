"""DiLAP: keep ratios per sub-layer, learned by gradients through the loss under a latency that a device measured."""

from __future__ import annotations

from harness import Param, PrunerSpec, hookimpl


@hookimpl
def harness_register_pruners():
    return [
        PrunerSpec(
            name="dilap",
            target="harness_dilap.method:Dilap",
            summary="learns by gradients what each sub-layer keeps, under the latency a device measured",
            kinds=("structured", "depth"),
            budgets=("latency",),
            needs=("calibration", "gradients", "latency"),
            updates_weights=True,
            check_settings="harness_dilap.settings:fault",
            differs=(
                "after what krishna22112023/latency-aware-pruning describes, not what it does (see the card)",
                "the multiplier of the latency is solved for at every step, where an augmented Lagrangian climbs to it",
                "the projection values a unit by its distance from the learned position; gradients choose the swaps",
                "one level by default, on the dense weights; two with inner=lora, full or least-squares",
            ),
            parameters={
                "samples": Param(64, "calibration windows", paper=256, least=4),
                "length": Param(192, "tokens in each", paper=256, least=8),
                "held_out": Param(8, "of them, that only judge what was found", paper=32, least=1),
                "steps": Param(60, "outer steps, on the gates", paper=600, least=2),
                "batch": Param(2, "windows in a step", paper=4, least=1),
                "lr": Param(
                    0.03,
                    "pace of the gates: the share of a site's units that a step moves one by, or so",
                    paper=0.02,
                    above=0,
                    most=1,
                ),
                "ramp": Param(0.6, "share of the steps over which the budget tightens", above=0, most=1),
                "softness": Param(0.05, "share of a site's units that tell where its gate should go", above=0, most=1),
                "order": Param(
                    "compensated",
                    "of units at first: |w| |x| as Wanda has it, the gradients' w g, or what least squares cannot "
                    "give back",
                    choices=("activation", "taylor", "compensated"),
                ),
                "refresh": Param(10, "steps between two new orders by the gates' own gradients; 0: never", least=0),
                "mix": Param(0.3, "what those gradients count in it, the first order the rest", least=0, most=1),
                "memory": Param(0.97, "what a step leaves of the mean gradients before it", above=0, most=0.999),
                "loss": Param("kl", "to the dense model, or the task's own", choices=("kl", "task")),
                "stride": Param(2, "every so many-th token counts", paper=1, least=1),
                "inner": Param(
                    "none",
                    "what weights do meanwhile: stay, learn by adapters or all, or are solved for",
                    choices=("none", "lora", "full", "least-squares"),
                ),
                "inner_steps": Param(1, "steps on the weights after each on the gates", least=1),
                "inner_lr": Param(1e-3, "their learning rate", paper=3e-4, above=0),
                "rank": Param(8, "of the adapters", least=1),
                "unrolled": Param(False, "gates see the weights one step ahead (second order)"),
                "ridge": Param(0.1, "of the closed form, as a share of the mean squared input", above=0),
                "merge": Param(False, "return the weights that the inner level learned, instead of the dense ones"),
                "guide": Param(
                    "device",
                    "what a unit costs while gates learn: time on the device, FLOPs, or the same share of each site",
                    choices=("device", "flops", "sites"),
                ),
                "depth": Param(True, "sub-layers may go as a whole"),
                "projection": Param(
                    "knapsack", "to whole units: exactly, or by rounding", choices=("knapsack", "round")
                ),
                "swaps": Param(6, "exchanges of time between sites tried on the held-out windows", paper=64, least=0),
                "compute": Param(
                    "auto", "of the search's passes: bf16 where it is fast", choices=("auto", "fp32", "bf16")
                ),
            },
            check_with={"samples": 8, "length": 16, "held_out": 2, "steps": 6, "swaps": 2, "compute": "fp32"},
        )
    ]
