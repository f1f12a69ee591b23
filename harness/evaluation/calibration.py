"""Windows of text that methods learn from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from harness.errors import UsageError

if TYPE_CHECKING:
    import torch
from harness.evaluation.texts import CALIBRATE, _serving, read, tokenize


def calibration(
    name: str,
    tokenizer: Any,
    count: int,
    length: int,
    seed: int,
    first: int | None = None,
    setting_of: Callable[[int], str] = lambda _: "",
) -> torch.Tensor:
    """`count` windows of `length` tokens from the rows that calibrate, drawn without replacement.

    Documents are joined before they are cut, so that short ones can be used. `first` is the token that begins every
    window, for models that need one. `setting_of` names the setting that a number came from, for error messages.
    """
    import torch

    def setting(value: int) -> str:
        return f" ({setting_of(value)})" if setting_of(value) else ""

    if count < 1 or length < 2:
        raise UsageError(
            f"{count} calibration windows of {length} tokens teach nothing",
            f"ask for more{setting(count if count < 1 else length)}",
        )
    text = read(name, CALIBRATE)
    tokens = tokenize(tokenizer, text.documents, text.join)
    windows = tokens[: len(tokens) // length * length].reshape(-1, length)
    if len(windows) < count:
        fewer = f"ask for at most {len(windows)}{setting(count)}, for" if len(windows) else "ask for"
        others = " or ".join(f"--calibration {source}" for source in _serving(CALIBRATE) if source != name)
        raise UsageError(
            f"the text {name} has {len(windows)} calibration windows of {length} tokens ({len(tokens)} in all), "
            f"not {count}",
            f"{fewer} shorter ones{setting(length)}, or for another text ({others})",
        )
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    chosen = windows[order[:count]]
    if first is not None:
        chosen[:, 0] = first
    return chosen
