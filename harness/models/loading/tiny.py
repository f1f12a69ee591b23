"""The model `tiny`: random weights from a fixed seed, and a tokenizer of bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.api import ModelCard
from harness.models.loading.cache import once


def tiny(card: ModelCard) -> tuple[Path, str]:
    """Random weights from a fixed seed and a tokenizer of bytes: seconds, no network."""

    def make(folder: Path) -> None:
        import torch

        from harness.models.architectures import modeling
        from harness.models.saved import folders
        from harness.system import process

        process.disable_library_progress_bars()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _, model_class = modeling.classes(card.config["model_type"])
            model = model_class(modeling.config(card.config))
        folders.write(model, byte_tokenizer(), folder)

    return once(f"{card.name}-{card.revision}", make), card.revision


def byte_tokenizer() -> Any:
    """A tokenizer of 256 bytes and two special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<bos>", "<eos>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(special + letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>")
