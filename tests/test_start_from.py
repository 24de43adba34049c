"""StartFrom: the last block adapted from the network of a training that adapted the head alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from imaml_lightning import Episode, Examples, MetaLearner
from imaml_lightning.errors import UsageError
from imaml_lightning.models import Conv4
from imaml_lightning.run.callbacks import StartFrom

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*have no `val_dataloader`.*")
OPTIONS: dict[str, Any] = {"filters": 8, "norm_first": True, "pools": 3, "unit_length": True, "any_way": True}


def learner(norm: str, **options: Any) -> MetaLearner:
    return MetaLearner(Conv4(norm=("running",) * 3 + (norm,), **{**OPTIONS, **options}), adapt=["body.3.*", "head.*"])


def episode() -> Episode:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(3).repeat(2).expand(2, 6)
    return Episode(*(Examples(torch.rand(2, 6, 1, 28, 28, generator=g), y) for _ in range(2)))


def fit(learner: MetaLearner, *callbacks: StartFrom) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu", max_steps=1, enable_checkpointing=False, callbacks=[*callbacks], num_sanity_val_steps=0, **quiet
    )  # fmt: skip
    trainer.fit(learner, DataLoader([episode()], batch_size=None))
    return trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[MetaLearner, Path]:
    """A learner whose statistics and weights have moved, and its checkpoint."""
    torch.manual_seed(0)
    head = MetaLearner(Conv4(norm="running", **OPTIONS), adapt=["head.*"])
    path = tmp_path_factory.mktemp("head") / "best.ckpt"
    fit(head).save_checkpoint(path)
    return head, path


def test_training_begins_at_the_same_function_of_images(trained: tuple[MetaLearner, Path]) -> None:
    head, path = trained
    deeper = learner("fixed")
    StartFrom(path).setup(Trainer(accelerator="cpu", logger=False, max_steps=1), deeper, "fit")
    x = episode().query.x[0]
    features = [one.network.eval().body(x) for one in (head, deeper)]
    torch.testing.assert_close(*features)
    assert not torch.allclose(deeper.network.body[3].norm.running_mean, torch.zeros(8))
    assert deeper.protocol == "inductive"


def test_statistics_stay_and_the_weights_of_a_fixed_layer_are_adapted(trained: tuple[MetaLearner, Path]) -> None:
    head, path = trained
    deeper = learner("fixed")
    fit(deeper, StartFrom(path))
    torch.testing.assert_close(deeper.network.body[3].norm.running_var, head.network.body[3].norm.running_var)
    assert not torch.equal(deeper.network.body[0].norm.running_var, head.network.body[0].norm.running_var)
    assert not torch.equal(deeper.network.body[3].norm.weight, head.network.body[3].norm.weight)
    assert "body.3.norm.weight" in deeper.flat.names


def test_fixed_statistics_are_those_of_batch_normalisation_in_evaluation() -> None:
    fixed = Conv4(norm="fixed", **OPTIONS).double().body[1].norm
    running = torch.nn.BatchNorm2d(8).double().eval()
    g = torch.Generator().manual_seed(1)
    for name, tensor in running.state_dict().items():
        if name != "num_batches_tracked":
            tensor.copy_(torch.rand(8, generator=g) + 0.5)
    fixed.load_state_dict(running.state_dict(), strict=False)
    x = torch.randn(4, 8, 5, 5, generator=g, dtype=torch.float64)
    torch.testing.assert_close(fixed(x), running(x))


def test_a_test_and_a_network_of_other_layers(trained: tuple[MetaLearner, Path], tmp_path: Path) -> None:
    _, path = trained
    trainer = Trainer(accelerator="cpu", logger=False, max_steps=1)
    other = learner("fixed", filters=16)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    StartFrom(path).setup(trainer, other, "test")
    with pytest.raises(UsageError, match=r"has no body.0.conv.weight of this shape.*--model.network"):
        StartFrom(path).setup(trainer, other, "fit")
    with pytest.raises(UsageError, match="does not exist"):
        StartFrom(tmp_path / "none.ckpt").setup(trainer, other, "fit")
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
