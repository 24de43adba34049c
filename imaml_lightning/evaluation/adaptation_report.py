"""AdaptationReport: whether adaptation to a support set helped."""

from __future__ import annotations

from dataclasses import dataclass

from imaml_lightning.learner.advice import advice


@dataclass(frozen=True)
class AdaptationReport:
    """Whether adaptation to a support set helped.

    Attributes:
        examples, classes: of the support set; ``classes`` is None in regression.
        learners: networks in the ensemble, over which the following are means.
        loss_before, loss_after: of the support set, at θ and at φ.
        stationarity: ‖∇G‖ / ‖∇L_S‖ at φ; well below 1 where the inner problem was solved.
        growth: ‖∇G(φ)‖ / ‖∇G(θ)‖.
        diverged: whether G rose, or left the finite numbers, for one of them.
        solves: whether they mean to solve the inner problem, as MAML does not.
        left_out: of examples left out in turn, how many of those whose class had another example were classified
            rightly (0 to 1), or in regression the root mean squared error; None where there are too few examples.
        baseline: what guessing would reach in the place of ``left_out``: a class at random, or the mean of the others.
    """

    examples: int
    classes: int | None
    learners: int
    loss_before: float
    loss_after: float
    stationarity: float
    growth: float
    diverged: bool
    solves: bool
    left_out: float | None
    baseline: float | None

    def __str__(self) -> str:
        kind = "examples" if self.classes is None else f"examples of {self.classes} classes"
        lines = [f"support          {self.examples} {kind}"]
        if self.learners > 1:
            lines.append(f"ensemble         {self.learners} checkpoints")
        helped = "adaptation helped" if self.loss_after < self.loss_before else "adaptation did not help"
        lines.append(f"support loss     {self.loss_before:.4f} before, {self.loss_after:.4f} after: {helped}")
        solved = advice(self.stationarity, self.growth, self.diverged, self.solves)
        lines.append(f"inner problem    ‖∇G‖/‖∇L‖ = {self.stationarity:.2g}, {solved}")
        if self.left_out is None or self.baseline is None:
            lines.append("left out in turn too few examples: two of a class (three in regression) are needed")
        elif self.classes is None:
            lines.append(f"left out in turn error {self.left_out:.4g}; the others' mean would have {self.baseline:.4g}")
        else:
            lines.append(f"left out in turn {self.left_out:.1%} right; guessing has {self.baseline:.1%}")
        return "\n".join(lines)
