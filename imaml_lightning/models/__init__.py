"""Networks, of which any other nn.Module may take the place, and a learned loss."""

from imaml_lightning.models.conv4 import Conv4
from imaml_lightning.models.learned_loss import LearnedLoss
from imaml_lightning.models.mlp import MLP

__all__ = ["MLP", "Conv4", "LearnedLoss"]
