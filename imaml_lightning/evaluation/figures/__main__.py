"""``python -m imaml_lightning.evaluation.figures RUN_FOLDER``."""

import sys
from pathlib import Path

from imaml_lightning.evaluation.figures import learning_curves

run = Path(sys.argv[1])
learning_curves(run).savefig(run / "learning.png", dpi=120)
print(run / "learning.png")
