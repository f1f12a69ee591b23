"""Models of any shape from one block of random numbers: latency needs shapes, not weights.

Every model is a set of views into the same memory, each tensor at its own place, so that opening one costs no copy
and a model's tensors do not share cache lines with each other.
"""

from __future__ import annotations

import math
from typing import Any

from harness.api import Shape
from harness.errors import EnvironmentFault
from harness.models.anatomy.core import Anatomy
from harness.models.architectures.lookup import architecture
from harness.models.counting import stored_bytes
from harness.system.host import free_memory

BLOCK = 1 << 20  # random numbers drawn; the rest repeats them


class Pool:
    def __init__(self, anatomy: Anatomy, dtype: str, place: str = "cpu") -> None:
        import torch

        from harness.models.saved.folders import TORCH_DTYPES

        self.anatomy = anatomy
        size = anatomy.params()
        need = stored_bytes(size, dtype)
        if place == "cpu" and need > free_memory():
            raise EnvironmentFault(
                f"the model takes {need / 1e9:.1f} GB in {dtype}, {free_memory() / 1e9:.1f} GB are free",
                "give --dtype bf16, a smaller model or a larger machine",
            )
        self.numbers = torch.empty(size, dtype=TORCH_DTYPES[dtype], device=place)
        drawn = torch.randn(min(BLOCK, size), generator=torch.Generator().manual_seed(0)) * 0.02
        drawn = drawn.to(self.numbers)
        for start in range(0, size, BLOCK):
            part = self.numbers[start : start + BLOCK]
            part.copy_(drawn[: part.numel()])

    def model(self, shape: Shape) -> Any:
        """A model of this shape; every site may be empty."""
        import torch

        kind = architecture(self.anatomy.architecture)
        config = kind.config_of(self.anatomy, shape)
        state, at = {}, 0
        for name, dims in kind.anatomy(config).tensors.items():
            count = math.prod(dims)
            # norms of ones and biases of zeros keep activations away from denormals, which are slow
            if len(dims) > 1:
                state[name] = self.numbers[at : at + count].view(dims)
                at += count
            else:
                make = torch.zeros if name.endswith(".bias") else torch.ones
                state[name] = make(dims, dtype=self.numbers.dtype, device=self.numbers.device)
        model = kind.build(config, state)
        return model.to(self.numbers.device)  # buffers; the parameters are there already
