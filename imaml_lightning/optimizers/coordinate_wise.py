"""CoordinateWise: an optimizer that is itself a small network, the same for every parameter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from imaml_lightning.optimizers.base import DifferentiableOptimizer, State


class CoordinateWise(nn.Module, DifferentiableOptimizer):
    """φ ← φ − lr (eᵃ g + b |g|), in which a small network gives a and b for each coordinate.

    Its inputs are log |g|, the sign of g, and the mean of g over about 2 and 10 steps relative to |g|. The last layer
    starts at zero: the rule starts as gradient descent and learns to do better.

    Args:
        lr: scale of all steps; what the network adds is relative to it.
        hidden: width of its one hidden layer.

    Cost: 6 · hidden multiplications a parameter and step. Source: Andrychowicz et al. (2016), "Learning to learn by
    gradient descent by gradient descent", section 2.1 and appendix A, with running means in place of an LSTM.
    """

    MEMORY = (0.5, 0.9)

    def __init__(self, lr: float = 0.1, hidden: int = 8) -> None:
        super().__init__()
        self.lr = lr
        last = nn.Linear(hidden, 2)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), last)

    def start(self, phi: Tensor) -> State:
        return {f"mean{memory}": torch.zeros_like(phi) for memory in self.MEMORY}

    def update(self, phi: Tensor, gradient: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        after = {f"mean{m}": m * state[f"mean{m}"] + (1 - m) * gradient for m in self.MEMORY}
        size = gradient.abs() + 1e-8
        features = [size.log() / 10, gradient / size, *(torch.tanh(mean / size) for mean in after.values())]
        gain, push = self.net(torch.stack(features, -1)).unbind(-1)
        return phi - self.lr * (gradient * gain.exp() + size * push), after
