"""Randomness from explicit numbers: what a network draws follows from where it is used, not from what came before."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class Generators:
    """The generators that a network may draw from (torch's on the CPU and on ``device``, NumPy's, Python's) as they are now."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.torch = torch.get_rng_state()
        # A recording must not be asked; what is recorded draws anew at every replay.
        asked = device.type == "cuda" and not torch.cuda.is_current_stream_capturing()
        self.cuda = torch.cuda.get_rng_state(device) if asked else None
        self.numpy, self.python = np.random.get_state(), random.getstate()

    def restore(self) -> None:
        """Set them back."""
        torch.set_rng_state(self.torch)
        if self.cuda is not None and not torch.cuda.is_current_stream_capturing():
            torch.cuda.set_rng_state(self.cuda, self.device)
        np.random.set_state(self.numpy)
        random.setstate(self.python)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Within it they give once more what they gave since this was made; after it they go on as if nothing had been."""
        now = Generators(self.device)
        self.restore()
        try:
            yield
        finally:
            now.restore()


@contextmanager
def seeded(device: torch.device, *numbers: int) -> Iterator[None]:
    """Within it the generators are seeded by ``numbers`` (0 or more each) alone; after it they are as they were."""
    before = Generators(device)
    words = [int(word) for word in np.random.SeedSequence(numbers).generate_state(3)]
    # For a CPU its generator alone: torch.manual_seed writes down a traceback for every kind of device that is not in use.
    (torch.default_generator if device.type == "cpu" else torch).manual_seed(words[0])
    np.random.seed(words[1])
    random.seed(words[2])
    try:
        yield
    finally:
        before.restore()


def draws(device: torch.device, function: Callable[[], Any]) -> bool:
    """Whether ``function`` draws random numbers from a generator of :class:`Generators`. Calls it; nothing is drawn after all."""
    before = Generators(device)
    function()
    after = Generators(device)
    before.restore()
    same = torch.equal(before.torch, after.torch)
    if before.cuda is not None and after.cuda is not None:
        same = same and torch.equal(before.cuda, after.cuda)
    return not (same and repr(before.numpy) == repr(after.numpy) and before.python == after.python)
