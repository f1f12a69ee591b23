"""Models of any shape with random weights, for timing: latency depends on shapes, not on weights.

The weights of all models are views into one block of memory, so that opening a model copies nothing. Within a model,
no two tensors overlap.
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

BLOCK = 1 << 20  # random numbers that are generated; the pool repeats them


class RandomWeights:
    """Memory with as many random numbers as a dense model has parameters."""

    def __init__(self, anatomy: Anatomy, dtype: str, torch_device: str = "cpu") -> None:
        import torch

        from harness.models.saved.folders import TORCH_DTYPES

        self.anatomy = anatomy
        size = anatomy.params()
        need = stored_bytes(size, dtype)
        if torch_device == "cpu" and need > free_memory():
            raise EnvironmentFault(
                f"the model takes {need / 1e9:.1f} GB in {dtype}, {free_memory() / 1e9:.1f} GB are free",
                "give --dtype bf16, a smaller model or a larger machine",
            )
        self.numbers = torch.empty(size, dtype=TORCH_DTYPES[dtype], device=torch_device)
        block = torch.randn(min(BLOCK, size), generator=torch.Generator().manual_seed(0)) * 0.02
        block = block.to(self.numbers)
        for start in range(0, size, BLOCK):
            part = self.numbers[start : start + BLOCK]
            part.copy_(block[: part.numel()])

    def model(self, shape: Shape) -> Any:
        """A model of this shape. Any site may have no units."""
        import torch

        kind = architecture(self.anatomy.architecture)
        config = kind.config_of(self.anatomy, shape)
        state, start = {}, 0
        for name, dims in kind.anatomy(config).tensors.items():
            count = math.prod(dims)
            # Norms of ones and biases of zeros keep activations away from denormal numbers, which are slow.
            if len(dims) > 1:
                state[name] = self.numbers[start : start + count].view(dims)
                start += count
            else:
                constant = torch.zeros if name.endswith(".bias") else torch.ones
                state[name] = constant(dims, dtype=self.numbers.dtype, device=self.numbers.device)
        model = kind.build(config, state)
        return model.to(self.numbers.device)  # moves the buffers; the parameters are on the device already
