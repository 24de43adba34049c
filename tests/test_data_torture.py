"""A bank's preparation killed at 20 points: what is left is never taken for a bank, and a second run makes the same one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_data import Tiny

from imaml_lightning.data.bank import ClassBank, bank_path

POINTS = 20

#: Prepares a bank in the folder it is given, and is killed, as by ``kill -9``, in turn before each of 20 points: 16 classes, and
#: both sides of the sync and of the rename.
SCRIPT = """
import os, pathlib, signal, sys, time
from tiny_data import Tiny

def killer():
    left = point
    def passed():
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return passed

class Killed(Tiny):
    def build(self):
        for number, one in enumerate(super().build()):
            if number < 16:
                passed()
            yield one

def around(function):
    def wrapped(*args):
        passed()
        result = function(*args)
        passed()
        return result
    return wrapped

for point in range(int(sys.argv[2])):
    folder = pathlib.Path(sys.argv[1]) / str(point)
    child = os.fork()
    if child == 0:
        passed = killer()
        os.fsync, os.replace = around(os.fsync), around(os.replace)
        Killed(str(folder)).prepare()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0)
"""

#: Four processes prepare the same bank at once.
AT_ONCE = """
import os, sys
from tiny_data import Tiny
children = []
for _ in range(4):
    children.append(os.fork())
    if children[-1] == 0:
        Tiny(sys.argv[1]).prepare()
        os._exit(0)
for child in children:
    print(os.waitpid(child, 0)[1])
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders 0 to 19, each left behind by a process that was killed at that point."""
    root = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(root), str(POINTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.split() == [str(int(signal.SIGKILL))] * POINTS
    return root


def test_a_rerun_makes_the_same_bank_byte_for_byte(killed: Path, tmp_path: Path) -> None:
    whole = Tiny(str(tmp_path)).bank.path.read_bytes()
    recipe = Tiny().recipe()
    left = set()
    for point in range(POINTS):
        folder = killed / str(point)
        bank = ClassBank.open(bank_path(str(folder), recipe), recipe)
        left.add(bank is not None)
        assert bank is None or bank.path.read_bytes() == whole  # whole, or not there
        again = Tiny(str(folder))
        again.prepare()
        assert again.built == (bank is None)
        assert again.bank.path.read_bytes() == whole
    assert left == {True, False}  # killed before the rename, and after it


def test_a_bank_made_by_several_processes_at_once(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AT_ONCE, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout.split() == ["0"] * 4
    assert os.listdir(tmp_path) == [Tiny(str(tmp_path)).bank.path.name]
