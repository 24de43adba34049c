"""``python -m imaml_lightning.evaluation.figures RUN_FOLDER``."""

import sys
from pathlib import Path

from imaml_lightning.evaluation.figures import learning_curves

run = Path(*sys.argv[1:2])
if len(sys.argv) != 2 or not (run / "metrics.csv").is_file():
    print("error: give the folder of a run, runs/NAME/NUMBER, which has a metrics.csv", file=sys.stderr)
    sys.exit(2)
learning_curves(run).savefig(run / "learning.png", dpi=120)
print(run / "learning.png")
