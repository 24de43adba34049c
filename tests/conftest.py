"""What every test shares: nothing of the user's is read or written, and one thread so that results repeat."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import imaml_lightning  # noqa: F401 (repairs torchvision before any test imports lightning)


@pytest.fixture(scope="session", autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Banks go to a folder of this session; Weights & Biases stays offline and knows no key. Subprocesses inherit it."""
    patch = pytest.MonkeyPatch()
    # One cache for all processes of pytest-xdist, each of which has a folder of its own in the session's.
    base = tmp_path_factory.getbasetemp()
    patch.setenv("IMAML_CACHE", str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"))
    patch.setenv("WANDB_MODE", "offline")
    patch.setenv("OMP_NUM_THREADS", "1")
    patch.setenv("PYTHONPATH", f"{Path(__file__).parent}{os.pathsep}{Path(__file__).parents[1]}")
    patch.delenv("WANDB_API_KEY", raising=False)
    torch.set_num_threads(int(os.environ.get("IMAML_TEST_THREADS", "1")))  # make test-kernels asks for two
    yield
    patch.undo()
