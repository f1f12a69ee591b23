"""An optimiser step under a time limit: the multiplier of the time is solved for, so that the step meets the limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Time = Callable[[Tensor], Tensor]  # positions -> time, with gradients
QUICK, SLOW = 0.8, 0.95  # shares of the mean gradient and of the mean square that a step keeps
SMOOTHING = 0.7  # share of the smoothed price that a step keeps
HALVINGS = 40
PRICELESS = 1e12  # a price above this means that no price meets the limit
RISE = 2.0  # the smoothed price rises at most by this factor per step


@dataclass
class PricedSteps:
    """Steps of Adam on loss + price x time, with the price at which the new positions meet the time limit.

    A step is divided by the root of the mean squares of both gradients, so that neither alone decides its length. The
    multiplier of an augmented Lagrangian approaches this price in steps of its own and overshoots it. Here the price is
    found by bisection, which costs forty evaluations of the cost model and no pass of the network.
    """

    rate: float
    mean: Tensor
    square: Tensor
    steps: int = 0
    price: float = 1.0
    lowest: Tensor | float = 0.0  # lower bound of the positions

    @staticmethod
    def of(positions: Tensor, rate: float) -> PricedSteps:
        return PricedSteps(rate, torch.zeros_like(positions), torch.zeros_like(positions))

    def step(self, positions: Tensor, gradient: Tensor, time: Time, limit: float, share: float = 1.0) -> Tensor:
        """The new positions, after a step at this share of the learning rate."""
        self.steps += 1
        self.mean = QUICK * self.mean + (1 - QUICK) * gradient
        self.square = SLOW * self.square + (1 - SLOW) * gradient**2
        mean = self.mean / (1 - QUICK**self.steps)
        square = self.square / (1 - SLOW**self.steps)
        variable = positions.clone().requires_grad_()
        (time_gradient,) = torch.autograd.grad(time(variable), variable)
        time_gradient = time_gradient.to(mean)
        scale = (square + (self.price * time_gradient) ** 2).sqrt() + 1e-12

        def stepped(price: float) -> Tensor:
            return (
                (positions - share * self.rate * (mean + price * time_gradient) / scale)
                .maximum(torch.as_tensor(self.lowest))
                .clamp(max=1)
            )

        with torch.no_grad():
            price = _lowest_price(lambda price: float(time(stepped(price))) <= limit)
        if price <= PRICELESS:  # a step that cannot meet the limit says nothing about the price of time
            bounded = price if self.steps <= 3 else min(price, RISE * self.price + 1e-9)
            self.price = SMOOTHING * self.price + (1 - SMOOTHING) * bounded if self.steps > 3 else bounded
        return stepped(price)


def _lowest_price(enough: Callable[[float], bool]) -> float:
    """The smallest price that is enough, or one above PRICELESS if none is."""
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
