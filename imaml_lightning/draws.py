"""Random numbers drawn a second time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


class Draws:
    """The random numbers that come next, of the CPU and of ``device``: what is evaluated anew sees the same (dropout)."""

    def __init__(self, device: torch.device) -> None:
        recording = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        self.cpu = torch.get_rng_state()
        self.device = device if device.type == "cuda" and not recording else None
        self.state = torch.cuda.get_rng_state(device) if self.device else None

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Within it they come again; after it, what would have come without it."""
        with torch.random.fork_rng(devices=[self.device] if self.device else []):
            torch.set_rng_state(self.cpu)
            if self.device and self.state is not None:
                torch.cuda.set_rng_state(self.state, self.device)
            yield
