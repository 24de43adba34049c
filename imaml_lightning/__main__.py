"""``python -m imaml_lightning``, and the console script ``imaml-lightning``."""

import os

# Before torch starts OpenMP: threads that spin while they wait make a busy machine many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from imaml_lightning.cli import main

if __name__ == "__main__":
    main()
