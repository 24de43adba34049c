"""DeviceBank: a source's whole bank in a device's memory, where episodes of numbers look their examples up."""

from __future__ import annotations

import torch
from torch import Tensor

from imaml_lightning.data.class_source import ClassSource
from imaml_lightning.episode import Episode, Examples


class DeviceBank:
    """The bank of ``source``, copied to the device of the first episode."""

    def __init__(self, source: ClassSource) -> None:
        self.source = source
        self._examples: Tensor | None = None  # [example, *feature]

    def looked_up(self, episode: Episode) -> Episode:
        """The episode of which x are numbers of examples ``[task, example]``, with the examples."""
        device = episode.support.x.device
        if self._examples is None or self._examples.device != device:
            self._examples = torch.tensor(self.source.bank.examples, device=device)
        bank = self._examples
        return Episode(*(Examples(bank[e.x], e.y) for e in episode))
