"""Conv4, and its derivatives on many tasks at once: network; folded (tasks folded into channels); fused (passes over memory)."""

from imaml_lightning.models.conv4.network import Conv4

__all__ = ["Conv4"]
