"""StartFrom: training begins at the network of another run's checkpoint."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from imaml_lightning.errors import UsageError
from imaml_lightning.learner.checkpoint import read_checkpoint

NETWORK = "network."


class StartFrom(Callback):
    """Begin with the network of a checkpoint: ``--trainer.callbacks+=StartFrom --trainer.callbacks.checkpoint best.ckpt``.

    Every parameter and statistic that has the same name and shape is copied; λ, the loss, the optimizer and the number
    of the meta-step are the new run's own. So what one training has learned with the head alone adapted can be the
    start of another that adapts more, with other solvers. A run that is resumed goes on from its own checkpoint.

    Args:
        checkpoint: path of a ``.ckpt`` file of this package.

    Raises:
        UsageError: when training begins, if it is no such file, or not every parameter of the network is in it.
    """

    def __init__(self, checkpoint: str | Path) -> None:
        self.checkpoint = checkpoint

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        network = pl_module.network
        assert isinstance(network, nn.Module)
        state = read_checkpoint(self.checkpoint)["state_dict"]
        given = {name.removeprefix(NETWORK): tensor for name, tensor in state.items() if name.startswith(NETWORK)}
        own = network.state_dict()
        same = {name: tensor for name, tensor in given.items() if name in own and tensor.shape == own[name].shape}
        if missing := [name for name, _ in network.named_parameters(remove_duplicate=False) if name not in same]:
            raise UsageError(
                f"{self.checkpoint} has no {missing[0]} of this shape, so training cannot start from it: "
                "give the network the same layers (--model.network), or another checkpoint"
            )
        network.load_state_dict(same, strict=False)
        left = [name for name in own if name not in same]
        rank_zero_info(
            f"starts from the network of {self.checkpoint}" + (f", but for {', '.join(left)}" if left else "")
        )
