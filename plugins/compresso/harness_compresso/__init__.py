"""Compresso: masks on KV groups, MLP channels and the hidden width, learned beside LoRA under a sparsity target."""

from __future__ import annotations

from harness import Param, PrunerSpec, hookimpl

# The published experiments use a prompt that tells the model that it is pruned. This wording is ours.
PROMPT = (
    "Parts of you are being switched off to make you smaller and faster. "
    "Work with what is left and keep answering as well as you can."
)


@hookimpl
def harness_register_pruners():
    return [
        PrunerSpec(
            name="compresso",
            architectures=("decoder",),
            target="harness_compresso.method:Compresso",
            summary="learns which KV groups, channels and hidden dimensions go, training LoRA beside the masks",
            paper="Guo et al. 2023, Compresso, arXiv:2310.05015; repository microsoft/Moonlit",
            kinds=("structured",),
            needs=("calibration", "gradients", "training"),
            updates_weights=True,
            differs=(
                "text from --calibration, with a loss on every token, instead of Alpaca-GPT4 responses",
                "the units are KV groups; remaining units are not scaled; weights are removed, not zeroed",
                "a last deterministic correction meets the ratio to within one channel",
                "the prompt is not used in evaluation; the quick preset trains without it",
            ),
            parameters={
                "samples": Param(
                    40, "windows of calibration text; one pass over them is an epoch", paper=52000, least=1
                ),
                "length": Param(64, "tokens in each window", paper=1024, least=2),
                "batch": Param(1, "windows in a step", least=1),
                "lora_epochs": Param(1, "epochs of LoRA alone, before the masks", least=0),
                "prune_epochs": Param(7, "epochs of masks and LoRA together", least=1),
                "ramp_epochs": Param(4, "of these, epochs in which the sparsity target rises to the ratio", least=0),
                "tune_epochs": Param(1, "epochs of LoRA after the chosen units are removed", paper=3, least=0),
                "lr": Param(5e-5, "learning rate of LoRA until the units are chosen", above=0),
                "mask_lr": Param(0.1, "learning rate of the masks", above=0),
                "multiplier_lr": Param(0.1, "learning rate of the two multipliers", above=0),
                "tune_lr": Param(4e-4, "learning rate of LoRA after that, falling by half a cosine", above=0),
                "tune_accumulation": Param(
                    1, "batches whose gradients are averaged in a step of the last training", paper=8, least=1
                ),
                "prompt": Param("", "text before every training window; needs a tokenizer", paper=PROMPT),
            },
            check_with={"samples": 2, "length": 16, "prune_epochs": 2, "ramp_epochs": 1},
        )
    ]
