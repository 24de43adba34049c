"""Pictures: a run's folder shows at a glance whether it learns."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger

from imaml_lightning.figures import contact_sheet, learning_curves, regression_fits


class Pictures(Callback):
    """After each validation, draws learning.png and episode.png (the first validation tasks) in the run's folder and in W&B."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        episode = trainer.strategy.batch_to_device(trainer.datamodule.episode("val", 0, tasks=4))
        before, after = pl_module.outputs(episode)
        draw = regression_fits if episode.query.y.is_floating_point() else contact_sheet
        figures = {"episode": draw(episode, before, after)}
        if (self.folder / "metrics.csv").exists():
            figures["learning"] = learning_curves(self.folder)
        for name, figure in figures.items():
            path = self.folder / f"{name}.png"
            figure.savefig(path, dpi=120)
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_image(f"pictures/{name}", [str(path)])
