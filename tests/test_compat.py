"""Import repairs: made where something is missing, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from imaml_lightning import _compat
from imaml_lightning.data.torchmeta import repair

PACKAGE = Path(_compat.__file__).parent

# Stand-ins for torchvision, so that both cases are tried whatever the installed build is.
WITHOUT_OPERATORS = """
    import torch
    from torchvision import extension  # left behind in sys.modules when the next lines fail
    torch.library.register_fake("torchvision::nms")(lambda dets, scores, threshold: dets)
    torch.library.register_fake("torchvision::qnms")(lambda dets, scores, threshold: dets)
"""
WITHOUT_NMS = """
    import torch
    if "library" not in globals() and not hasattr(torch.ops.torchvision, "qnms"):
        torch.kept = torch.library.Library("torchvision", "DEF")
        torch.kept.define("qnms(Tensor dets) -> Tensor")
    torch.library.register_fake("torchvision::nms")(lambda dets, scores, threshold: dets)
"""
WITH_OPERATORS = """
    import torch
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", lambda dets, scores, threshold: scores + 1, "CompositeExplicitAutograd")
"""


def passes(folder: Path, torchvision: str, code: str) -> None:
    """``code`` ends well in a fresh process beside a torchvision of our own.

    ``compat`` is loaded from its file there, for the package would import lightning, which needs all of torchvision.
    """
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(textwrap.dedent(torchvision))
    (package / "extension.py").write_text("import torch\nready = hasattr(torch.ops.torchvision, 'nms')\n")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(PACKAGE)])},
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_missing_operators_are_declared(tmp_path: Path) -> None:
    passes(
        tmp_path,
        WITHOUT_OPERATORS,
        """
        import _compat, sys
        _compat.repair_torchvision()
        assert "torch" not in sys.modules  # which would take its time
        import torch, torchvision
        assert torchvision.__file__.startswith(sys.path[1]), torchvision.__file__
        assert torch.ops.torchvision.nms and torch.ops.torchvision.qnms
        assert torchvision.extension.ready  # nothing is left of the failed import
        assert len(_compat._declared) == 1
        finders = list(sys.meta_path)
        _compat.repair_torchvision()  # once is enough
        assert sys.meta_path == finders
        """,
    )


def test_real_operators_are_not_shadowed(tmp_path: Path) -> None:
    passes(
        tmp_path,
        WITH_OPERATORS,
        """
        import _compat, torch
        _compat.repair_torchvision()
        import torchvision
        assert _compat._declared == []
        dets, scores = torch.zeros(2, 4), torch.ones(2)
        assert torch.ops.torchvision.nms(dets, scores, 0.5).tolist() == [2.0, 2.0]
        assert not hasattr(torch.ops.torchvision, "qnms")
        """,
    )


def test_one_missing_operator_leaves_the_other_alone(tmp_path: Path) -> None:
    passes(
        tmp_path,
        WITHOUT_NMS,
        """
        import _compat, torch
        _compat.repair_torchvision()
        import torchvision
        assert len(_compat._declared) == 1
        assert len(torch.ops.torchvision.qnms.default._schema.arguments) == 1
        assert torch.ops.torchvision.nms
        """,
    )


def test_other_failures_pass_through_untouched(tmp_path: Path) -> None:
    passes(
        tmp_path,
        "raise RuntimeError('something else')",
        """
        import _compat
        _compat.repair_torchvision()
        try:
            import torchvision
        except RuntimeError as error:
            assert str(error) == "something else" and _compat._declared == []
        else:
            raise AssertionError
        """,
    )


def test_missing_torchvision_is_left_missing() -> None:
    code = """
        import sys, _compat
        _compat.repair_torchvision()
        sys.path[:] = [path for path in sys.path if "packages" not in path]
        try:
            import torchvision
        except ModuleNotFoundError:
            sys.exit(0)
        sys.exit(1)
        """
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment, check=False)
    assert done.returncode == 0


def test_installed_torchvision_resizes_after_the_repair() -> None:
    import torchvision
    from PIL import Image

    assert torchvision.transforms.Resize(28)(Image.new("L", (105, 105))).size == (28, 28)


NEEDED_BY_TORCHMETA = ("_get_confirm_token", "_save_response_content")


def test_torchmeta_gets_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    repair.repair_torchmeta()
    import torchmeta.datasets.utils as utils
    import torchvision.datasets.utils as vision
    from torchmeta.utils.data.task import SubsetTask

    for name in NEEDED_BY_TORCHMETA:
        monkeypatch.setattr(vision, name, None)
        delattr(vision, name)
    monkeypatch.delattr(utils, "check_integrity")
    monkeypatch.delattr(SubsetTask, "__getitems__", raising=False)
    repair.repair_torchmeta()
    assert all(callable(getattr(vision, name)) for name in NEEDED_BY_TORCHMETA)
    assert utils.check_integrity is vision.check_integrity


def test_torchmeta_keeps_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    repair.repair_torchmeta()
    import torchmeta.datasets.utils as utils
    import torchvision.datasets.utils as vision
    from torchmeta.utils.data.task import SubsetTask

    real = object()
    things = [
        *((vision, name) for name in NEEDED_BY_TORCHMETA),
        (utils, "check_integrity"),
        (SubsetTask, "__getitems__"),
    ]
    for owner, name in things:
        monkeypatch.setattr(owner, name, real, raising=False)
    repair.repair_torchmeta()
    assert all(vars(owner)[name] is real for owner, name in things)


def test_torchmetas_own_batches_can_be_read(tmp_path: Path) -> None:
    from tiny_data import write_omniglot_root

    repair.repair_torchmeta()
    from torchmeta.datasets.helpers import omniglot
    from torchmeta.utils.data import BatchMetaDataLoader

    write_omniglot_root(tmp_path, drawings=4)
    dataset = omniglot(str(tmp_path), shots=1, ways=3, test_shots=2, meta_train=True, seed=0)
    batch = next(iter(BatchMetaDataLoader(dataset, batch_size=2, num_workers=0)))
    assert batch["train"][0].shape == (2, 3, 1, 28, 28)
    assert batch["test"][0].shape == (2, 6, 1, 28, 28)


def test_google_drive_helpers(tmp_path: Path) -> None:
    import io
    from types import SimpleNamespace

    response = SimpleNamespace(cookies={"a": "b", "download_warning_1": "token"}, raw=io.BytesIO(b"x" * 100_000))
    assert repair._get_confirm_token(response) == "token"
    assert repair._get_confirm_token(SimpleNamespace(cookies={})) is None
    repair._save_response_content(response, str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == b"x" * 100_000
