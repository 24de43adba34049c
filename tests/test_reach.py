"""Parameters that no gradient reaches: the same on one rank and on two, and said once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reach_cases import CASES, learn
from torch import Tensor

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*number of training batches.*", "ignore:.*no `val_dataloader`.*"
)
Found = dict[tuple[str, int], tuple[dict[str, Tensor], set[str]]]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Found]:
    """What each of two ranks has learned."""
    here, out = Path(__file__).parent, tmp_path_factory.mktemp("ranks") / "found"
    paths = os.pathsep.join([str(here.parent), str(here), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-W", "ignore", str(here / "reach_cases.py"), "2", str(out)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one, other = (torch.load(f"{out}.{rank}", weights_only=False) for rank in range(2))
    return one, other


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("case", list(CASES))
def test_two_ranks_learn_what_one_learns(case: str, steps: int, two_ranks: tuple[Found, Found]) -> None:
    unreached = CASES[case][2]
    if unreached:
        with pytest.warns(UserWarning, match=f"no gradient of .* reaches .*{max(unreached)}"):
            alone, said = learn(case, 1, steps)
    else:
        alone, said = learn(case, 1, steps)
    assert said == unreached
    for rank in two_ranks:
        together, said = rank[case, steps]
        assert said == unreached
        for name, value in alone.items():
            torch.testing.assert_close(together[name], value, rtol=1e-3, atol=1e-5, msg=name)
    # Ranks that exchanged their gradients agree to the last bit; nothing that is not trained decays.
    for name, value in two_ranks[0][case, steps][0].items():
        assert torch.equal(value, two_ranks[1][case, steps][0][name]), name
    start, _ = learn(case, 1, 0)
    for name in unreached:
        assert torch.equal(alone[name], start[name])
