"""Backbones: bodies by name or of one's own, their weights, and how they see pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from own_bodies import Convolutions, Map, Rows, Transformer, head_only, pictures
from torch import nn

from imaml_lightning import EpisodeDataModule, UsageError, adapt
from imaml_lightning.data import ClassTensors
from imaml_lightning.episode import Examples
from imaml_lightning.models import Backbone, Conv4, weights_follow

timm = pytest.importorskip("timm")
safetensors = pytest.importorskip("safetensors.torch")


def colours() -> EpisodeDataModule:
    """Pictures of 12 classes, each of a colour of its own under noise."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(12).repeat_interleave(8)
    x = (torch.rand(12, 3, 1, 1, generator=g)[y] + 0.2 * torch.randn(96, 3, 16, 16, generator=g)).clamp(0, 1)
    source = ClassTensors((255 * x).to(torch.uint8), y, fractions=(0.5, 0.25, 0.25))
    return EpisodeDataModule(
        source, way=3, shot=1, query=3, tasks=4, train_batches=30, val_episodes=20, test_episodes=20
    )


def fit(network: Backbone, steps: int = 3) -> tuple[nn.Module, dict[str, float]]:
    """Train the head alone, and test."""
    trainer = Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, limit_val_batches=0,
                      enable_progress_bar=False, enable_model_summary=False, inference_mode=False, use_distributed_sampler=False)  # fmt: skip
    learner, data = head_only(network), colours()
    trainer.fit(learner, data)
    return learner, trainer.test(learner, data, verbose=False)[0]


@pytest.mark.parametrize(
    ("body", "options"),
    [
        (Convolutions, {"without": "fc"}),
        (Map, {}),
        (Rows, {"part": 1}),
        (Transformer, {"part": "pooled"}),
        (lambda: timm.create_model("test_vit", num_classes=0, img_size=32), {"pixels": 32}),
    ],
    ids=["running statistics", "map", "LSTM and tuple", "dict", "ViT"],
)
@pytest.mark.parametrize("frozen", [True, False])
def test_any_body_trains_with_its_head_adapted(body: Callable[[], nn.Module], options: dict, frozen: bool) -> None:
    torch.manual_seed(0)
    network = Backbone(body=body(), frozen=frozen, **{"pixels": 16, **options})
    before = {name: value.clone() for name, value in network.body.state_dict().items()}
    _, metrics = fit(network)
    changed = [name for name, value in network.body.state_dict().items() if not torch.equal(value, before[name])]
    assert not changed if frozen else changed
    assert metrics["test/accuracy_inductive"] > 0.5  # a third is guessing
    assert metrics["test/inner_stationarity"] < 1e-3


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Backbone(), "a name or a body"),
        (lambda: Backbone("resnet18", Map()), "a name or a body"),
        (lambda: Backbone("resnt18"), "timm has no resnt18, did you mean resnet18"),
        (lambda: Backbone("torchvision/resnt18"), "torchvision has no resnt18, did you mean resnet18"),
        (lambda: Backbone("test_resnet", frozen=True), "a frozen test_resnet without weights is random"),
        (lambda: Backbone(body=Map(), weights="pretrained", pixels=16), "has no weights to download"),
        (lambda: Backbone(body=Map()), "does not say in which size"),
        (lambda: Backbone(body=Map(), pixels=16, mean=[0.5, 0.5]), "mean has 2 numbers and a picture 3 colours"),
        (lambda: Backbone(body=Convolutions(), pixels=16, without="head"), "has no layer head"),
        (lambda: Backbone(body=Rows(), pixels=16), "returns a tuple: say which part, one of 0, 1,"),
        (lambda: Backbone(body=Rows(), pixels=16, part=2), "a tuple without a part 2"),
        (lambda: Backbone(body=Rows(), pixels=16, part=0), r"features of shape \(1, 16, 7\) for one picture"),
        (lambda: Backbone(body=Transformer(), pixels=16), "returns a dict: say which part, one of tokens, pooled,"),
        (lambda: Backbone(body=Map(), pixels=16, weights="none.pt"), "weights none.pt do not exist"),
    ],
)
def test_what_cannot_be_a_backbone_is_refused(make: Callable[[], Backbone], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        make()


def test_a_named_body_without_weights_says_that_it_is_trained_from_scratch() -> None:
    with pytest.warns(UserWarning, match="test_resnet has no weights and is trained from scratch"):
        network = Backbone("test_resnet")
    assert not network.frozen
    assert network.body.pixels == timm.get_pretrained_cfg("test_resnet").input_size[-1]
    with pytest.warns(UserWarning, match="from scratch"):
        vision = Backbone("torchvision/shufflenet_v2_x0_5")
    assert vision.body.features == 1024


def test_pictures_reach_the_body_in_its_size_and_colours_less_its_mean() -> None:
    torch.manual_seed(0)
    body, mean, deviation = Map(), [0.1, 0.2, 0.3], [0.5, 0.25, 2.0]
    network = Backbone(body=body, pixels=8, mean=mean, deviation=deviation, frozen=True, neck="none")
    x = pictures(4, 8)
    seen = torch.stack([(x[:, i] - mean[i]) / deviation[i] for i in range(3)], 1)
    expected = body(seen).mean((2, 3))
    torch.testing.assert_close(network.body(x), expected)
    unit = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(network.embedding(network.neck(network.body(x))), unit)
    # Of twice the size every pixel is the mean of its neighbours under the filter's triangle, all of whose weights are positive.
    large = network.body.picture(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert large.shape == seen.shape
    torch.testing.assert_close(large.mean((0, 2, 3)), seen.mean((0, 2, 3)), atol=0.05, rtol=0)
    grey = network.body.picture(x[:, :1])
    torch.testing.assert_close(grey[:, 2], (x[:, 0] - 0.3) / 2)
    torch.testing.assert_close(network.body(network.body(x)), network.body(x))  # features pass
    one = Backbone(body=nn.Sequential(nn.Flatten()), pixels=8, body_channels=1, neck="none")
    torch.testing.assert_close(one.body(x), x.mean(1).flatten(1))


@pytest.mark.parametrize("kind", ["safetensors", "state_dict", "within", "checkpoint"])
def test_weights_of_a_file(kind: str, tmp_path: Path) -> None:
    trained, path = timm.create_model("test_resnet", num_classes=10), tmp_path / "weights.pt"
    state = {key: value + 1 for key, value in trained.state_dict().items()}
    if kind == "safetensors":
        path = tmp_path / "weights.safetensors"
        safetensors.save_file(state, path)
    elif kind == "checkpoint":
        torch.save({"state_dict": {f"network.body.{key}": value for key, value in state.items()}, "epoch": 3}, path)
    else:
        torch.save({"model": state, "args": ["-x"]} if kind == "within" else state, path)
    network = Backbone("test_resnet", weights=str(path))
    assert network.frozen
    own = network.body.network.state_dict()
    assert len(own) < len(state)
    for key, value in own.items():
        torch.testing.assert_close(value, state[key])


def test_weights_that_are_not_of_the_network_are_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "w.pt")
    for content, sentence in (
        ({"layer.weight": torch.ones(1)}, "are of another network than Map: .* they lack 1, such as layer.bias"),
        ({f"a.layer.{key}": torch.ones(2) for key in ("weight", "bias")}, r"layer\.\w+ in shape \(2,\), Map in"),
        ({"epoch": 1}, "hold no tensors"),
        (nn.Linear(1, 1), "cannot be read"),  # a pickled object, which could run code of its own
    ):
        torch.save(content, path)
        with pytest.raises(UsageError, match=sentence):
            Backbone(body=Map(), pixels=8, weights=path)
    Path(path).write_bytes(b"x")
    with pytest.raises(UsageError, match="cannot be read"):
        Backbone(body=Map(), pixels=8, weights=path)


def test_a_checkpoint_replaces_the_file() -> None:
    with weights_follow():
        network = Backbone("test_resnet", weights="gone.safetensors")
    assert network.frozen


def test_features_in_place_of_pictures_give_the_same_probabilities() -> None:
    torch.manual_seed(0)
    network = Backbone(body=Convolutions(), without="fc", pixels=16, frozen=True, neck="linear")
    learner, x = head_only(network).eval(), pictures(12)
    y = [0, 1, 2] * 4
    features = network.body(x)
    assert features.shape == (12, 24)
    predictor = adapt(learner, x, y)
    torch.testing.assert_close(adapt(learner, features.detach(), y)(features.detach()), predictor(x))
    phi = learner.adapted(Examples(x[None], torch.tensor([y]))).phi
    unit = nn.functional.normalize(network.neck(features), dim=1)
    torch.testing.assert_close(predictor(x), (unit @ phi.view(3, -1).T).softmax(1).detach())


def test_a_network_of_ours_serves_as_a_body(tmp_path: Path) -> None:
    """A body that was trained here on other data: the checkpoint of its learner holds it by another name."""
    conv4 = Conv4(size=16, filters=8, any_way=True, norm="running", pools=3)
    path = tmp_path / "best.ckpt"
    torch.save({"state_dict": {f"network.{k}": v for k, v in conv4.state_dict().items()}}, path)
    again = Conv4(size=16, filters=8, any_way=True, norm="running", pools=3)
    network = Backbone(body=again, weights=str(path), without="head", pixels=16, body_channels=1)
    x = pictures(3)[:, :1]
    torch.testing.assert_close(network.body(x), conv4.eval().embedding(conv4.body(x)))
