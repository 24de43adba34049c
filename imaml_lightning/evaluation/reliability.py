"""Whether a predictor's probabilities mean what they say, by examples left out in turn."""

from __future__ import annotations

from imaml_lightning.evaluation.predictor import Predictor
from imaml_lightning.evaluation.protocols import Calibration, Evaluation, calibration


def reliability(predictor: Predictor, bins: int = 5) -> Calibration | None:
    """Confidence against accuracy of support examples left out in turn; None where none can be, or in regression."""
    if predictor.labels is None:
        return None
    probabilities, truth, _ = predictor.left_out()
    # Logarithms, whose softmax gives the probabilities back; of 0 the smallest that there is.
    logits = probabilities.double().clamp_min(1e-300).log()
    return calibration(Evaluation(logits[None], truth[None]), bins) if len(truth) else None


def said(found: Calibration) -> str:
    """In one line: how sure on average, how often right, and the expected calibration error."""
    sure, right = ((values.nan_to_num() * found.share).sum() for values in (found.confidence, found.accuracy))
    return f"{sure:.1%} sure on average, {right:.1%} right; expected calibration error {found.error:.3f} (left out in turn)"
