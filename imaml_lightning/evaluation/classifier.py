"""Classifier: a predictor as one network, from pictures as bytes to probabilities."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from imaml_lightning.errors import UsageError
from imaml_lightning.evaluation.predictor import Predictor
from imaml_lightning.problem.network import FlatNetwork


class Classifier(nn.Module):
    """p = mean over the ensemble of softmax(z(x/255; φ)), with the adapted φ as its weights.

    Args:
        predictor: adapted to the pictures of some classes.
        ink: pictures are of drawings: light ones are inverted, as in training.

    Raises:
        UsageError: of a regression, or of a network whose answers depend on the other pictures of a batch.
    """

    def __init__(self, predictor: Predictor, ink: bool = False) -> None:
        super().__init__()
        if predictor.labels is None or predictor.support.x.ndim != 4:
            raise UsageError("what is exported classifies pictures: adapt to pictures in a folder for each class")
        for learner in predictor.learners:
            if learner.protocol == "transductive":
                raise UsageError(
                    f"{type(learner.network).__name__} normalises each picture beside the support set, which a single network "
                    "does not have: train one of another norm (--model.network.norm running or group), or a Backbone"
                )
        self.classes, self.ink = len(predictor.labels), ink
        pairs = zip(predictor.learners, predictor.phis, strict=True)
        self.members = nn.ModuleList(settled(learner.flat, phi[0]) for learner, phi in pairs)

    def forward(self, pictures: Tensor) -> Tensor:
        """Probabilities ``[example, class]`` of uint8 ``[example, channel, height, width]``."""
        x = pictures.float()
        if self.ink:
            x = torch.where(x.mean((1, 2, 3), keepdim=True) > 127, 255 - x, x)
        x = x / 255
        return torch.stack([member(x)[:, : self.classes].softmax(1) for member in self.members]).mean(0)


def settled(flat: FlatNetwork, phi: Tensor) -> nn.Module:
    """A copy of the network, in evaluation mode, whose adapted tensors are ``phi [param]`` and no longer parameters."""
    network = copy.deepcopy(flat.network).eval().requires_grad_(False)
    tensors = dict(network.named_parameters(remove_duplicate=False)) | dict(
        network.named_buffers(remove_duplicate=False)
    )
    for name, value in flat.named(phi.detach()).items():
        for alias in [alias for alias, tensor in tensors.items() if tensor is tensors[name]]:
            owner, _, attribute = alias.rpartition(".")
            module = network.get_submodule(owner)
            delattr(module, attribute)
            module.register_buffer(attribute, value.clone())
    for tensor in (*network.parameters(), *network.buffers()):
        # Whole tensors in the usual order: torch.export.save packs no slices of others (an LSTM's) and no other orders well.
        tensor.data = tensor.detach().clone(memory_format=torch.contiguous_format)
    return network
