"""Networks; any other nn.Module does as well."""

from imaml_lightning.models.conv4 import Conv4
from imaml_lightning.models.mlp import MLP

__all__ = ["MLP", "Conv4"]
