"""Compresso: masks on KV groups, MLP channels and the hidden width, learned beside LoRA under a sparsity target."""

from __future__ import annotations

from harness import Param, PrunerSpec, hookimpl

# The published experiments tell the model what happens to it; these words are ours.
PROMPT = (
    "Parts of you are being switched off to make you smaller and faster. "
    "Work with what is left and keep answering as well as you can."
)


@hookimpl
def harness_register_pruners():
    return [
        PrunerSpec(
            name="compresso",
            target="harness_compresso.method:Compresso",
            summary="learns which KV groups, channels and hidden dimensions go, training LoRA beside the masks",
            paper="Guo et al. 2023, Compresso, arXiv:2310.05015; repository microsoft/Moonlit",
            kinds=("structured",),
            needs=("calibration", "gradients", "training"),
            updates_weights=True,
            differs=(
                "text from --calibration, loss on every token, instead of Alpaca-GPT4 responses",
                "KV groups as units; survivors are whole; weights are removed, not zeroed",
                "a last correction without chance meets the ratio to a channel",
                "the prompt is not used when evaluating; quick trains without",
            ),
            parameters={
                "samples": Param(
                    40, "windows of calibration text; one pass over them is an epoch", paper=52000, least=1
                ),
                "length": Param(64, "tokens in each", paper=1024, least=2),
                "batch": Param(1, "windows in a step", least=1),
                "lora_epochs": Param(1, "epochs of LoRA alone, before there are masks", least=0),
                "prune_epochs": Param(7, "epochs of masks and LoRA together", least=1),
                "ramp_epochs": Param(4, "of these, so many until the sparsity target stands at the ratio", least=0),
                "tune_epochs": Param(1, "epochs of LoRA with the chosen units gone", paper=3, least=0),
                "lr": Param(5e-5, "learning rate of LoRA until the units are chosen", above=0),
                "mask_lr": Param(0.1, "learning rate of the masks", above=0),
                "multiplier_lr": Param(0.1, "rate at which the two multipliers climb", above=0),
                "tune_lr": Param(4e-4, "learning rate of LoRA afterwards, falling by half a cosine", above=0),
                "tune_accumulation": Param(
                    1, "steps' gradients averaged to one in the last training", paper=8, least=1
                ),
                "prompt": Param("", "words before every training window; needs a tokenizer", paper=PROMPT),
            },
            check_with={"samples": 2, "length": 16, "prune_epochs": 2, "ramp_epochs": 1},
        )
    ]
