"""What predict tells of pictures beside their predictions: how far to trust them, and the page that shows them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from imaml_lightning.errors import UsageError
from imaml_lightning.evaluation.none_of_these import Threshold, none_of_these
from imaml_lightning.evaluation.predictor import Predictor
from imaml_lightning.evaluation.protocols import Calibration
from imaml_lightning.evaluation.reliability import reliability, said
from imaml_lightning.learner.whole_file import whole_file


@dataclass(frozen=True)
class Trust:
    """How far a predictor's probabilities can be trusted, by its support set; None what that is too small to say."""

    reliable: Calibration | None
    threshold: Threshold | None

    @staticmethod
    def of(predictor: Predictor) -> Trust:
        """Costs an adaptation a class besides those of the report."""
        return Trust(reliability(predictor), none_of_these(predictor))

    def lines(self, probabilities: Tensor) -> list[str]:
        """For the terminal."""
        sure = probabilities.amax(1)
        lines = [f"how sure         {sure.mean():.1%} on average, the least certain {sure.min():.1%}"]
        if self.reliable:
            lines.append(f"probabilities    {said(self.reliable)}")
        if self.threshold is None:
            return [*lines, "none of these    cannot be told: three classes and two pictures of one are needed"]
        below = int((sure < self.threshold.probability).sum())
        return [*lines, f"none of these    {below} of {len(sure)}: {self.threshold}"]


def write_page(path: Path, text: str) -> None:
    """Whole or not at all.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        with whole_file(path, "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(f"cannot write {path} ({error.strerror}): choose another file by --report") from error
