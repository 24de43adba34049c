"""The LightningModule, and what it keeps: its metric, how many tasks it solves together, its checkpoints."""

from imaml_lightning.learner.meta_learner import MetaLearner

__all__ = [
    "MetaLearner",
]
