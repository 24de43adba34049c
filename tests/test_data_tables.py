"""Tables and tensors: what is read, how rows are divided, and padding that counts for nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from tiny_files import write
from torch import nn
from torch.utils.data import TensorDataset

from imaml_lightning import MetaLearner
from imaml_lightning.adaptation import Implicit
from imaml_lightning.data import SPLITS, ClassTable, ClassTensors, EpisodeDataModule, Tasks, TaskTable
from imaml_lightning.data.table import read_table
from imaml_lightning.episode import IGNORED, Episode, Examples
from imaml_lightning.errors import UsageError
from imaml_lightning.inner import GradientDescent
from imaml_lightning.models import MLP, Conv4
from imaml_lightning.problem.curvature import GaussNewton, Hessian


def patients(path: Path, kind: str = "classification", count: int = 20) -> str:
    """Patients of 3 to 12 visits at 5 sites; rows shuffled; the first feature is the patient's number."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "patient": f"p{p:02d}",
            "site": f"s{p % 5}",
            "a": p,
            "b": 100 + 10 * rng.standard_normal(),
            "comment": "none",
            "y": ("ill" if v % 3 else "well") if kind == "classification" else 1000 + 50 * p + v,
        }
        for p in range(count)
        for v in range(3 + p % 10)
    ]
    return write(path, [rows[i] for i in rng.permutation(len(rows))])


def rngs(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(i) for i in range(count)]


def test_tasks_of_unequal_size_are_padded(tmp_path: Path) -> None:
    source = TaskTable(patients(tmp_path / "t.csv"), "y", "patient", group_column="site")
    source.setup()
    assert source.reading()["features"]["names"] == ["a", "b"]
    assert source.reading()["labels"] == ["ill", "well"]
    assert source.padded(2, 3)
    source.check("train", 2, 2, 3)
    support, query = source.sample("train", rngs(200), 2, 2, 3)
    assert support.x.shape == (200, 4, 2)
    assert query.y.shape == (200, 6)
    for x, y, xq, yq in zip(*support, *query, strict=True):
        real, asked = y != IGNORED, yq != IGNORED
        assert real.any()
        assert asked.any()
        assert not x[~real].any()
        both = torch.cat([x[real], xq[asked]])
        assert len(both.unique(dim=0)) == len(both)  # no row twice
        assert len(both[:, 0].unique()) == 1  # of one patient
    assert (torch.bincount((support.y != IGNORED).sum(1)) > 0).sum() >= 2


def test_splits_keep_groups_together_and_scale_by_the_training_rows(tmp_path: Path) -> None:
    path = patients(tmp_path / "t.csv")
    source = TaskTable(path, "y", "patient", group_column="site")
    source.setup()
    features = source.reading()["features"]
    sites = {}
    for split in SPLITS:
        # Validation and test go through their tasks in turn.
        count = len({float(x[0, 0]) for x, _ in source.rows(split)})
        x = source.sample_numbered(split, range(count), rngs(count), 2, 1, 1).support.x[:, 0, 0]
        numbers = (x * features["scale"][0] + features["mean"][0]).round().int().tolist()
        if split != "train":
            assert len(set(numbers)) == count
        sites[split] = {n % 5 for n in numbers}
    assert not sites["train"] & sites["val"] | sites["train"] & sites["test"] | sites["val"] & sites["test"]
    rows = read_table(path)["a"]
    kept = [float(a) for a in rows if int(a) % 5 in sites["train"]]
    assert features["mean"][0] == pytest.approx(np.mean(kept))
    assert features["scale"][0] == pytest.approx(np.std(kept))


def test_split_column_is_obeyed(tmp_path: Path) -> None:
    rows = [{"task": t, "split": SPLITS[t % 3], "x": t, "y": v} for t in range(9) for v in range(4)]
    source = TaskTable(write(tmp_path / "t.csv", rows), "y", kind="regression", split_column="split")
    source.setup()
    scale, mean = (source.reading()["features"][name][0] for name in ("scale", "mean"))
    for number, split in enumerate(SPLITS):
        x = source.sample(split, rngs(30), 1, 1, 1).support.x
        assert set((x.flatten() * scale + mean).round().int().tolist()) == {number, number + 3, number + 6}


def test_regression_targets_are_scaled(tmp_path: Path) -> None:
    source = TaskTable(patients(tmp_path / "t.csv", "regression"), "y", "patient", kind="regression")
    source.setup()
    support, query = source.sample("train", rngs(100), 1, 4, 20)
    assert support.y.shape == (100, 4, 1)
    assert query.y.isnan().any()
    assert abs(query.y[query.real()].mean()) < 1
    scaler = source.reading()["scaler"]
    back = query.y[query.real()] * scaler["scale"][0] + scaler["mean"][0]
    assert 999 < back.min() < back.max() < 2000


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("curvature", [GaussNewton(), Hessian()])
def test_padding_changes_no_figure_and_no_gradient(kind: str, curvature) -> None:
    """A padded batch of unequal tasks against each task alone, unpadded."""
    g = torch.Generator().manual_seed(0)
    sizes = [(3, 4), (5, 2), (1, 5)]

    def examples(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(count, 2, generator=g, dtype=torch.float64)
        if kind == "classification":
            return x, torch.randint(3, (count,), generator=g)
        return x, torch.randn(count, 3, generator=g, dtype=torch.float64)

    tasks = [(examples(s), examples(q)) for s, q in sizes]
    alone = [Episode(*(Examples(x[None], y[None]) for x, y in task)) for task in tasks]
    filler = IGNORED if kind == "classification" else float("nan")

    def pad(part: int) -> Examples:
        xs, ys = zip(*(task[part] for task in tasks), strict=True)
        return Examples(nn.utils.rnn.pad_sequence(xs, True, 0.7), nn.utils.rnn.pad_sequence(ys, True, filler))

    padded = Episode(pad(0), pad(1))
    criterion = nn.CrossEntropyLoss() if kind == "classification" else nn.MSELoss()
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    learner = MetaLearner(network, Implicit(GradientDescent(0.2, 40), curvature=curvature), criterion)

    def figures(episode: Episode) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        learner.zero_grad()
        judged = learner.judge(learner.adapted(episode.support).phi, episode.query)
        judged["loss"].sum().backward()
        return judged, torch.cat([p.grad.flatten() for p in network.parameters()])

    together, gradient = figures(padded)
    apart = [figures(one) for one in alone]
    for name, value in together.items():
        torch.testing.assert_close(value, torch.cat([one[name] for one, _ in apart]))
    torch.testing.assert_close(gradient, sum(g for _, g in apart))


def test_a_table_meta_trains(tmp_path: Path) -> None:
    data = EpisodeDataModule(
        TaskTable(patients(tmp_path / "t.csv"), "y", "patient"),
        way=2, shot=2, query=3, tasks=4, train_batches=3, val_episodes=4, test_episodes=8,
    )  # fmt: skip
    learner = MetaLearner(MLP(2, 2, [8]), Implicit(GradientDescent(0.1, 3)))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(
        max_steps=4,
        inference_mode=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        **quiet,
    )
    trainer.fit(learner, data)
    assert trainer.callback_metrics["train/loss"].isfinite()
    assert trainer.test(learner, data, verbose=False)[0]["test/accuracy_inductive"] <= 1


class _Watched:
    """As much of a Trainer as ``setup`` asks for."""

    world_size, global_rank = 1, 0

    def __init__(self, learner: MetaLearner) -> None:
        self.lightning_module = learner


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (MLP(5, 2), r"MLP cannot take the inputs of TaskTable, of shape \(2,\)"),
        (MLP(2, 3), "MLP has 3 outputs, but a task has 2 classes"),
        (
            nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 2)),
            "would count the padding of the unequal tasks of TaskTable",
        ),
    ],
)
def test_a_network_that_does_not_fit_is_refused_at_the_start(tmp_path: Path, network, sentence: str) -> None:
    data = EpisodeDataModule(TaskTable(patients(tmp_path / "t.csv"), "y", "patient"), way=2, shot=2, query=3)
    data.trainer = _Watched(MetaLearner(network))  # type: ignore[assignment]
    with pytest.raises(UsageError, match=sentence):
        data.setup()


def test_images_of_another_size_are_refused_at_the_start() -> None:
    data = EpisodeDataModule(
        ClassTensors(np.zeros((40, 3, 28, 28), np.uint8), np.arange(40) // 4, fractions=(0.4, 0.3, 0.3)), way=3, query=2
    )
    data.trainer = _Watched(MetaLearner(Conv4(3)))  # type: ignore[assignment]
    with pytest.raises(UsageError, match=r"Conv4 cannot take .* \(3, 28, 28\): .* channels"):
        data.setup()


def test_classes_of_a_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"class": f"c{c}", "genus": f"g{c // 2}", "x": c + 0.01 * rng.random(), "z": rng.random()}
        for c in range(12)
        for _ in range(3 + c % 3)
    ]
    source = ClassTable(write(tmp_path / "t.csv", rows), "class", group_column="genus", cache=str(tmp_path))
    data = EpisodeDataModule(source, way=2, shot=1, query=2)
    episode = data.episode("train", 0, tasks=20)
    assert source.shape == (2,)
    assert episode.support.x.dtype == torch.float32
    bank = source.bank
    genera = [{bank.groups[i] for i in bank.splits[s]} for s in SPLITS]
    assert sum(map(len, genera)) == len(set.union(*genera)) == 6
    assert source.reading()["target"] == "class"  # which predict asks for
    features = source.reading()["features"]
    number = (episode.support.x[..., 0] * features["scale"][0] + features["mean"][0]).floor().int()
    again = (episode.query.x[..., 0] * features["scale"][0] + features["mean"][0]).floor().int()
    assert torch.equal(number.repeat_interleave(2, 1), again)  # query rows are of the classes of the support rows


def test_tensors_and_data_sets_in_three_lines(tmp_path: Path) -> None:
    x = torch.arange(60, dtype=torch.float32).repeat(2, 1).T.contiguous()
    y = torch.arange(60) // 4
    episodes = []
    for source in (
        ClassTensors(x, y, cache=str(tmp_path)),
        ClassTensors.of(TensorDataset(x, y), cache=str(tmp_path)),
    ):
        data = EpisodeDataModule(source, way=3, shot=1, query=2)
        episodes.append(data.episode("test", 0))
    assert torch.equal(episodes[0].query.x, episodes[1].query.x)
    assert torch.equal((episodes[0].support.x[0, :, 0] // 4).repeat_interleave(2), episodes[0].query.x[0, :, 0] // 4)


def test_given_tasks_in_three_lines() -> None:
    tasks = {
        s: [(np.random.default_rng(i).normal(size=(5 + i, 3)), np.arange(5.0 + i)) for i in range(3)] for s in SPLITS
    }
    data = EpisodeDataModule(Tasks(tasks), shot=4, query=3)
    support, query = data.episode("val", 0, tasks=3)
    assert support.y.shape == (3, 4, 1)
    assert query.real().sum(1).tolist() == [1, 2, 3]


BAD = {
    "no file": (None, {}, "does not exist"),
    "no rows": ("a,y,task\n", {}, "has no rows"),
    "ragged": ("a,y,task\n1,2\n", {}, "row 2 has 2 cells and not 3"),
    "twice": ("a,a,task\n1,2,3\n", {}, "two columns of one name"),
    "no target": ("a,z,task\n1,2,3\n", {}, "has no column y: its columns are a, z, task"),
    "no number": ("a,y,task\nx,2,3\n", {"features": ["a"]}, "row 2: 'x' in column a is no number"),
    "no feature": ("y,task\n1,2\n", {}, "has no numeric column left"),
    "no split": ("a,y,task,s\n1,2,3,dev\n", {"split_column": "s"}, "'dev' in column s is none of train"),
    "leak": ("a,y,task,s\n1,2,3,val\n1,2,3,test\n", {"split_column": "s"}, "row 3: 3 is in test and in val of column s"),
    "single": ("a,y,task\n1,2,3\n1,2,4\n1,2,5\n1,2,6\n1,2,7\n", {}, "Task . cannot be divided"),
    "no val": ("a,y,task\n1,2,3\n1,2,3\n", {}, "no tasks for val"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_named(tmp_path: Path, case: str) -> None:
    text, options, sentence = BAD[case]
    if text is not None:
        (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UsageError, match=sentence):
        TaskTable(str(tmp_path / "t.csv"), "y", kind="regression", **options).setup()


def test_way_must_be_the_number_of_labels(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"set --data\.way 2"):
        EpisodeDataModule(TaskTable(patients(tmp_path / "t.csv"), "y", "patient"), way=5).episode("val", 0)


def test_parquet_reads_as_csv(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {"task": ["a", "a", "b"], "x": [1.5, 2.0, -3.0], "n": [1, 2, 3], "y": ["u", "v", "u"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet")
    assert table == {name: [str(cell) for cell in cells] for name, cells in columns.items()}
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match="cannot be read as Parquet"):
        read_table(tmp_path / "bad.parquet")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match="pip install pyarrow"):
        read_table(tmp_path / "t.parquet")
