"""A step under a budget: the multiplier of the latency is solved for, so that every step ends on the budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Time = Callable[[Tensor], Tensor]  # positions -> time, with gradients
QUICK, SLOW = 0.8, 0.95  # how much of the mean gradient, and of its square, a step leaves
SMOOTHING = 0.7  # of the price that scales the steps
HALVINGS = 40
PRICELESS = 1e12
RISE = 2.0  # more than so many times the price of before is haste, not worth


@dataclass
class Priced:
    """Adam's step on loss + price x time, with the price at which the new positions take no longer than the limit.

    A step is divided by the root of the mean squares of both, so that neither alone decides how far it goes. An
    augmented Lagrangian's multiplier climbs to this price by steps of its own and overshoots it; here it is found by
    halving, which costs forty looks at the cost model and no pass of the network.
    """

    rate: float
    mean: Tensor
    square: Tensor
    steps: int = 0
    price: float = 1.0
    least: Tensor | float = 0.0  # positions go no lower

    @staticmethod
    def of(positions: Tensor, rate: float) -> Priced:
        return Priced(rate, torch.zeros_like(positions), torch.zeros_like(positions))

    def step(self, positions: Tensor, gradient: Tensor, time: Time, limit: float, share: float = 1.0) -> Tensor:
        """The new positions, at this share of the rate."""
        self.steps += 1
        self.mean = QUICK * self.mean + (1 - QUICK) * gradient
        self.square = SLOW * self.square + (1 - SLOW) * gradient**2
        mean = self.mean / (1 - QUICK**self.steps)
        square = self.square / (1 - SLOW**self.steps)
        at = positions.clone().requires_grad_()
        (slope,) = torch.autograd.grad(time(at), at)
        slope = slope.to(mean)
        scale = (square + (self.price * slope) ** 2).sqrt() + 1e-12

        def moved(price: float) -> Tensor:
            return (
                (positions - share * self.rate * (mean + price * slope) / scale)
                .maximum(torch.as_tensor(self.least))
                .clamp(max=1)
            )

        with torch.no_grad():
            price = _cheapest(lambda price: float(time(moved(price))) <= limit)
        if price <= PRICELESS:  # else nothing is enough, which says nothing about what time is worth
            known = price if self.steps <= 3 else min(price, RISE * self.price + 1e-9)
            self.price = SMOOTHING * self.price + (1 - SMOOTHING) * known if self.steps > 3 else known
        return moved(price)


def _cheapest(enough: Callable[[float], bool]) -> float:
    """The smallest price that is enough, or a very high one if none is."""
    if enough(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while not enough(high):
        if high > PRICELESS:
            return high
        low, high = high, 4 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
