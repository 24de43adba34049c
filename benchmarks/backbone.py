"""A body that was trained on letters from fonts, as the pretrained body for other pictures: heads against nearest centroids.

    python -m imaml_lightning fit --config letters
    python benchmarks/backbone.py --body runs/letters/000/best.ckpt

The body is frozen, and its features are computed once. Rows of the table, all on the same episodes, all inductive:

    nearest centroid     of the body's features: what takes three lines
    head of the letters  λ and temperature as the letters' training left them: nothing is trained on the new pictures
    norm, linear         the same body with a neck, and head, λ and temperature meta-trained on other classes of these pictures

``--speed`` measures a meta-step of the configuration ``backbone`` with a resnet18, with and without a feature bank.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import torch
from _common import publish
from lightning.pytorch import Trainer, seed_everything
from PIL import Image
from torch import Tensor

from imaml_lightning import Episode, EpisodeDataModule, MetaLearner
from imaml_lightning.adaptation import Implicit
from imaml_lightning.data import ClassSource, ClassTensors, Omniglot
from imaml_lightning.evaluation import Evaluation, calibration, evaluate, load
from imaml_lightning.inner import Newton
from imaml_lightning.linear import Exact
from imaml_lightning.models import Backbone, Conv4, OneHotSquaredError
from imaml_lightning.problem import ProximalTerm
from imaml_lightning.problem.curvature import Hessian
from imaml_lightning.run.callbacks import FeatureBank
from imaml_lightning.run.callbacks.feature_bank import keep_features


def omniglot() -> ClassSource:
    return Omniglot(os.environ.get("IMAML_OMNIGLOT_ROOT", "data"), download=True, splits="random", rotations=False)


def digits() -> ClassSource:
    """Handwritten digits of scikit-learn, 0 to 4 for training, 5 to 9 for test."""
    from sklearn.datasets import load_digits

    images, y = load_digits(return_X_y=True)
    small = (images.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    x = np.stack([np.asarray(Image.fromarray(each).resize((28, 28), Image.Resampling.BILINEAR)) for each in small])[
        :, None
    ]
    test = y > 4
    names = [
        f"{split} {label}" for split, rows in (("train", ~test), ("val", test), ("test", test)) for label in y[rows]
    ]
    pictures = np.concatenate([x[~test], x[test], x[test]])
    return ClassTensors(pictures, names, [name.split()[0] for name in names])


SOURCES = {"digits": (digits, ["5w1s", "5w5s"], 5), "Omniglot": (omniglot, ["5w1s", "5w5s", "20w1s", "20w5s"], 20)}


def frozen(body: str, neck: str) -> MetaLearner:
    """The letters' body, with a head and a neck that are new."""
    conv4 = Conv4(filters=[32, 64, 64, 64], norm="running", norm_first=True, pools=3, unit_length=True, any_way=True)
    network = Backbone(body=conv4, weights=body, without="head", pixels=28, body_channels=1, neck=neck)
    adaptation = Implicit(Newton(), Exact(), Hessian(), ProximalTerm(0.1, learn=True))
    return MetaLearner(network, adaptation, support_criterion=OneHotSquaredError(), adapt=["head.weight"],
                       optimizer=lambda p: torch.optim.Adam(p, lr=0.003))  # fmt: skip


def as_the_letters_left_it(body: str) -> MetaLearner:
    """No neck, and λ and temperature of the checkpoint."""
    learner, letters = frozen(body, "none"), load(body)
    assert letters.support_criterion is not None
    learner.support_criterion.load_state_dict(letters.support_criterion.state_dict())
    learner.adaptation.load_state_dict(letters.adaptation.state_dict())
    return learner


def nearest_centroid(learner: MetaLearner, episode: Episode) -> Tensor:
    """−‖u − mean of the class‖² ``[task, example, class]`` of the body's features u."""
    support, query = episode
    way = int(support.y.max()) + 1
    centroids = torch.stack([support.x[:, support.y[0] == label].mean(1) for label in range(way)], 1)
    return -torch.cdist(query.x, centroids).square()


def trained(learner: MetaLearner, data: EpisodeDataModule, steps: int) -> float:
    """Meta-train, in core-seconds."""
    began = time.process_time()
    trainer = Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, limit_val_batches=0,
                      enable_model_summary=False, enable_progress_bar=False, inference_mode=False,
                      use_distributed_sampler=False)  # fmt: skip
    trainer.fit(learner, data)
    return time.process_time() - began


def compared(name: str, body: str, steps: int, episodes: int) -> Iterator[dict[str, object]]:
    """Rows of one source of pictures."""
    make, settings, way = SOURCES[name]
    source = make()
    learners = {
        "head of the letters": as_the_letters_left_it(body),
        "norm": frozen(body, "norm"),
        "linear": frozen(body, "linear"),
    }
    features = keep_features(learners["norm"], EpisodeDataModule(source))
    seconds = dict.fromkeys(learners, 0.0)
    training = EpisodeDataModule(source, way=way, shot=1, query=4, tasks=4, eval_way=5, train_batches=50)
    training.features = features
    for neck in ("norm", "linear"):
        seconds[neck] = trained(learners[neck], training, steps)
    for setting in settings:
        ways, shots = (int(part) for part in setting.rstrip("s").split("w"))
        data = EpisodeDataModule(source, way=way, eval_way=ways, eval_shot=shots, eval_query=15)
        data.features = features
        plain = evaluate(learners["norm"], data, episodes=episodes, answer=nearest_centroid)
        yield row(name, setting, "nearest centroid", plain, plain, 0.0)
        for way_of, learner in learners.items():
            yield row(name, setting, way_of, evaluate(learner.eval(), data, episodes=episodes), plain, seconds[way_of])


def row(name: str, setting: str, head: str, of: Evaluation, plain: Evaluation, seconds: float) -> dict[str, object]:
    (mean, half), (gain, pair) = of.mean(), of.gain_over(plain)
    better = "" if of is plain else f"{100 * gain:+.2f} ± {100 * pair:.2f}"
    return {"pictures": name, "setting": setting, "head": head, "accuracy, %": f"{100 * mean:.2f} ± {100 * half:.2f}",
            "over nearest centroid, paired": better, "calibration error": "" if of is plain else f"{calibration(of).error:.3f}",
            "core-seconds of meta-training": f"{seconds:.0f}"}  # fmt: skip


def speed() -> Iterator[dict[str, object]]:
    """Seconds of a meta-step of 8 tasks, 5-way 1-shot with 4 queries, with a resnet18 of random weights on random pictures."""
    import timm

    g = torch.Generator().manual_seed(0)
    x = torch.randint(256, (150, 3, 224, 224), generator=g, dtype=torch.uint8)
    for bank, steps in ((False, 2), (True, 100)):
        with tempfile.TemporaryDirectory() as folder:
            source = ClassTensors(x, torch.arange(15).repeat(10), fractions=(0.34, 0.33, 0.33), cache=folder)
            body = timm.create_model("resnet18", num_classes=0)
            network = Backbone(body=body, frozen=True, pixels=224)
            adaptation = Implicit(Newton(), Exact(), Hessian(), ProximalTerm(0.1, learn=True))
            learner = MetaLearner(network, adaptation, support_criterion=OneHotSquaredError(), adapt=["head.weight"])
            data = EpisodeDataModule(source, way=5, shot=1, query=4, tasks=8, train_batches=steps)
            times = list[float]()
            callbacks = [FeatureBank()] if bank else []
            trainer = Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, limit_val_batches=0,
                              enable_model_summary=False, enable_progress_bar=False, inference_mode=False,
                              use_distributed_sampler=False, callbacks=callbacks)  # fmt: skip
            learner.on_train_batch_start = lambda *_, times=times: times.append(time.process_time())  # type: ignore[method-assign]
            began = time.process_time()
            trainer.fit(learner, data)
            times.append(time.process_time())
            yield {"feature bank": "with" if bank else "without", "meta-steps": steps,
                   "before the first step, core-s": times[0] - began,
                   "a meta-step, core-s": float(np.median(np.diff(times[1:] if bank else times)))}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--body", help="best.ckpt of fit --config letters.")
    parser.add_argument("--pictures", nargs="+", default=[*SOURCES], choices=SOURCES)
    parser.add_argument("--steps", type=int, default=300, help="Meta-steps of the necks.")
    parser.add_argument("--episodes", type=int, default=1000, help="Test episodes of each setting.")
    parser.add_argument("--speed", action="store_true", help="Measure a meta-step with and without a feature bank.")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    if chosen.speed:
        publish("feature_bank", list(speed()))
    if chosen.body:
        rows = [row for name in chosen.pictures for row in compared(name, chosen.body, chosen.steps, chosen.episodes)]
        publish("backbone", rows)


if __name__ == "__main__":
    main()
