"""Colours that mean the same in every picture."""

from __future__ import annotations

RIGHT, WRONG = "#2a7f3f", "#c0392b"
AFTER, BEFORE, TRAIN = "#1f4e8c", "#999999", "#8fb3d9"
#: For things compared side by side; told apart with any colour vision (Okabe and Ito, 2008).
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
#: By result code, from good to bad.
RESULT = {
    "converged": "#2a7f3f",
    "step_limit": "#e69f00",
    "indefinite": "#cc79a7",
    "stalled": "#56b4e9",
    "breakdown": "#7f4f24",
    "nonfinite": "#c0392b",
}
