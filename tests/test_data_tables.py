"""Tables and tensors: what is read, how rows are divided, and padding that counts for nothing."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import TensorDataset

from imaml_lightning import MetaLearner
from imaml_lightning.adaptation import Implicit
from imaml_lightning.curvature import GaussNewton, Hessian
from imaml_lightning.data import SPLITS, ClassTable, ClassTensors, EpisodeDataModule, Tasks, TaskTable
from imaml_lightning.data.table import read_table
from imaml_lightning.episode import IGNORED, Episode, Examples
from imaml_lightning.errors import DataError, DataWarning, UsageError
from imaml_lightning.inner import GradientDescent
from imaml_lightning.models import MLP, Conv4


def write(path: Path, rows: list[dict[str, object]]) -> str:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


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


GAPS = """task,a,b,c,word,y
p,1,10,,x,u
p,2,,5,x,v
p,3,30,6,x,u
q,4,40,7,x,v
q,,50,8,x,u
q,6,60,NA,x,v
r,7,70,9,x,u
r,8,80,9,x,u
s,9,90,9,x,v
s,10,100,9,x,v
"""


def given(tmp_path: Path, text: str = GAPS, name: str = "t.csv", encoding: str = "utf-8") -> str:
    (tmp_path / name).write_bytes(text.encode(encoding))
    return str(tmp_path / name)


def whole(text: str = GAPS) -> str:
    """The rows without an empty cell."""
    return "".join(line + "\n" for line in text.splitlines() if ",," not in line and ",NA," not in line)


def test_empty_cells_of_features_are_refused_with_column_and_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"column a is empty in row 6: .*impute true.*data\.source\.features"):
        TaskTable(given(tmp_path), "y", leave_out=False).setup()
    text = "task,a,y\n" + "".join(f"t{i % 5},{'' if i % 7 == 0 else i},{i % 2}\n" for i in range(70))
    with pytest.raises(DataError, match=r"column a is empty in rows 2, 9, 16, 23, 30 and 5 more"):
        TaskTable(given(tmp_path, text), "y").setup()
    with pytest.raises(DataError, match=r"column c is empty in rows 2 and 7"):
        ClassTable(given(tmp_path), "y", features=["c"], cache=str(tmp_path)).setup()


def test_empty_cells_become_the_mean_and_an_indicator(tmp_path: Path) -> None:
    path = given(tmp_path, GAPS.replace("task,", "split,task,", 1).replace("\n", "\ntrain,", 10).rstrip("\n"))
    text = (tmp_path / "t.csv").read_text().replace("train,s", "val,s").replace("train,r", "test,r")
    (tmp_path / "t.csv").write_text(text)
    source = TaskTable(path, "y", split_column="split", impute=True)
    source.setup()
    features = source.reading()["features"]
    assert features["names"] == ["a", "b", "c"]
    assert features["indicators"] == ["a", "b", "c"]
    assert features["mean"] == pytest.approx([16 / 5, 38, 6.5])
    assert features["scale"] == pytest.approx(
        [np.std([1, 2, 3, 4, 6]), np.std([10, 30, 40, 50, 60]), np.std([5, 6, 7, 8])]
    )
    x = np.concatenate([rows for rows, _ in source.rows("train")])
    assert x.shape == (6, 6)
    assert source.shape == (6,)
    a, b, c = (
        np.array([1, 2, 3, 4, np.nan, 6]),
        np.array([10, np.nan, 30, 40, 50, 60]),
        np.array([np.nan, 5, 6, 7, 8, np.nan]),
    )
    for place, column in enumerate((a, b, c)):
        expected = (column - np.nanmean(column)) / np.nanstd(column)
        np.testing.assert_allclose(x[:, place], np.nan_to_num(expected), rtol=1e-6)
        assert x[:, 3 + place].tolist() == np.isnan(column).astype(float).tolist()
    assert not np.concatenate([rows for rows, _ in source.rows("val")])[:, 3:].any()


def test_rows_with_empty_cells_are_left_out_with_a_count(tmp_path: Path) -> None:
    plain = ClassTable(given(tmp_path, whole(), "whole.csv"), "y", fractions=(0.4, 0.3, 0.3), cache=str(tmp_path))
    with pytest.raises(UsageError):
        ClassTable(given(tmp_path), "y", cache=str(tmp_path)).setup()
    source = ClassTable(given(tmp_path), "y", fractions=(0.4, 0.3, 0.3), cache=str(tmp_path), leave_out=True)
    with pytest.warns(DataWarning, match=r"4 rows with empty cells are left out: rows 2, 3, 6 and 7"):
        source.setup()
    plain.setup()
    assert np.array_equal(source.bank.examples, plain.bank.examples)


@pytest.mark.parametrize("empty", ["", "NA", "nan", "NULL", "#N/A"])
@pytest.mark.parametrize("column", ["y", "task", "site"])
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_a_missing_label_is_no_label(tmp_path: Path, empty: str, column: str, kind: str) -> None:
    rows = [{"task": f"t{i % 6}", "site": f"s{i % 6 % 3}", "a": i * i, "y": i % 2} for i in range(36)]
    rows[4][column] = rows[9][column] = empty
    path = write(tmp_path / "t.csv", rows)
    options = {"group_column": "site", "kind": kind}
    with pytest.raises(DataError, match=rf"column {column} is empty.* in rows 6 and 11: .*leave_out true"):
        TaskTable(path, "y", **options).setup()
    source = TaskTable(path, "y", leave_out=True, **options)
    with pytest.warns(DataWarning, match="2 rows with empty cells are left out: rows 6 and 11"):
        source.setup()
    assert sum(len(y) for split in SPLITS for _, y in source.rows(split)) == 34
    assert source.classes == (2 if kind == "classification" else 0)
    if column == "y":
        with pytest.raises(DataError, match="column y is empty"):
            ClassTable(path, "y", cache=str(tmp_path)).setup()


def test_a_label_may_be_the_word_none(tmp_path: Path) -> None:
    rows = [{"task": f"t{i % 5}", "a": i * i, "y": ("none", "mild")[i // 5 % 2]} for i in range(30)]
    source = TaskTable(write(tmp_path / "t.csv", rows), "y")
    source.setup()
    assert source.reading()["labels"] == ["mild", "none"]


def test_which_columns_are_features_is_said(tmp_path: Path, capsys) -> None:
    rows = [
        {"task": f"t{i % 5}", "a": i * i, "size": "big", "void": "", "flag": i % 3 == 0, "y": i % 2} for i in range(30)
    ]
    path = write(tmp_path / "t.csv", rows)
    source = TaskTable(path, "y", kind="regression")
    source.setup()
    assert source.reading()["features"]["names"] == ["a", "flag"]
    said = capsys.readouterr().err
    assert "2 features, a, flag; not used is size: words, such as 'big' in row 2; not used is void: empty" in said
    TaskTable(path, "y", kind="regression", features=["a"]).setup()
    assert "not used is flag: not named" in capsys.readouterr().err
    rows[7]["a"] = "<5"
    with pytest.raises(DataError, match="row 9: '<5' in column a is no number"):
        TaskTable(write(tmp_path / "t.csv", rows), "y").setup()
    with pytest.raises(
        DataError, match="no numeric column left for the features: size has words, such as 'big' in row 2"
    ):
        TaskTable(write(tmp_path / "t.csv", [{k: r[k] for k in ("task", "size", "y")} for r in rows]), "y").setup()


@pytest.mark.parametrize("name", ["id", "", "Unnamed: 0"])
@pytest.mark.parametrize("first", [0, 1, 1000])
@pytest.mark.parametrize("shuffled", [False, True])
def test_a_column_that_numbers_the_rows_is_warned_of(tmp_path: Path, name: str, first: int, shuffled: bool) -> None:
    order = np.random.default_rng(0).permutation(30) if shuffled else np.arange(30)
    rows = [{name: first + order[i], "task": f"t{i % 5}", "a": i * i, "b": i // 2, "y": i % 2} for i in range(30)]
    path = write(tmp_path / "t.csv", rows)
    with pytest.warns(DataWarning, match=f"column '{name}' numbers the rows, and is a feature"):
        TaskTable(path, "y", kind="regression").setup()
    with pytest.warns(DataWarning, match="numbers the rows"):
        ClassTable(path, "task", cache=str(tmp_path)).setup()
    TaskTable(path, "y", kind="regression", features=["a", "b"]).setup()


WRITTEN = {
    "comma": (",", ".", "utf-8"),
    "comma BOM": (",", ".", "utf-8-sig"),
    "semicolon": (";", ".", "utf-8"),
    "semicolon decimal": (";", ",", "utf-8"),
    "semicolon decimal BOM": (";", ",", "utf-8-sig"),
    "tab": ("\t", ".", "utf-8"),
    "tab decimal UTF-16": ("\t", ",", "utf-16"),
    "bar decimal": ("|", ",", "utf-8"),
}


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_separators_decimal_commas_and_byte_order_marks(tmp_path: Path, kind: str, newline: str) -> None:
    separator, decimal, encoding = WRITTEN[kind]
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=30), rng.normal(size=30) * 1e-7
    y = rng.normal(size=30)
    lines = [["größe", "task", "b", "n", "y"]]
    for i in range(30):
        lines.append([*(f"{value:.17g}".replace(".", decimal) for value in (a[i],)), f"t {i % 5}"])
        lines[-1] += [*(f"{value:.17g}".replace(".", decimal) for value in (b[i],)), str(i * i)]
        lines[-1].append(f"{y[i]:.17g}".replace(".", decimal))
    path = given(tmp_path, newline.join(separator.join(line) for line in lines) + newline, "t.csv", encoding)
    table = read_table(path)
    assert list(table) == ["größe", "task", "b", "n", "y"]
    for name, values in (("größe", a), ("b", b), ("n", np.arange(30) ** 2), ("y", y)):
        assert table.parsed(name)[0].tolist() == values.tolist()
        assert not table.parsed(name)[1]
    source = TaskTable(path, "y", kind="regression")
    source.setup()
    assert source.reading()["features"]["names"] == ["größe", "b", "n"]


def test_commas_and_semicolons_in_words_do_not_separate(tmp_path: Path) -> None:
    table = read_table(given(tmp_path, 'a;"b, c; d";y\n1;"x, y";2\n3;";";4\n'))
    assert table == {"a": ["1", "3"], "b, c; d": ["x, y", ";"], "y": ["2", "4"]}
    table = read_table(given(tmp_path, '"a;b",y\n1,2\n3,4\n'))
    assert list(table) == ["a;b", "y"]
    assert list(read_table(given(tmp_path, "weight, kg;y\n1,5;2\n3,5;4\n"))) == ["weight, kg", "y"]
    assert list(read_table(given(tmp_path, "only\n1\n2\n"))) == ["only"]


def test_points_and_commas_in_one_table_are_refused(tmp_path: Path) -> None:
    text = "task;a;b;y\n" + "".join(f"t{i % 5};{i},5;1.{i:03d};{i % 2}\n" for i in range(30))
    with pytest.raises(DataError, match="decimal commas in column a and points in b"):
        TaskTable(given(tmp_path, text), "y").setup()
    TaskTable(given(tmp_path, text), "y", kind="regression", features=["a"]).setup()
    thousands = "task,a,y\n" + "".join(f't{i % 5},"1,{i:03d}",{i % 2}\n' for i in range(30))
    with pytest.raises(DataError, match="a has words, such as '1,000' in row 2"):
        TaskTable(given(tmp_path, thousands), "y").setup()


def test_rows_are_counted_as_a_spreadsheet_counts(tmp_path: Path) -> None:
    text = 'task,a,note,y\np,1,"two\nlines",u\n\np,,x,u\n'
    with pytest.raises(DataError, match="column a is empty in row 4"):
        TaskTable(given(tmp_path, text), "y").setup()
    with pytest.raises(DataError, match="row 4 has 3 cells and not 4"):
        read_table(given(tmp_path, text.replace("p,,x,u", "p,x,u")))


def test_tasks_and_classes_that_are_too_small_are_left_out_with_a_count(tmp_path: Path) -> None:
    rows = [{"task": f"t{i % 9}", "a": i * i, "y": i // 9 % 2} for i in range(54)]
    rows += [{"task": "x", "a": 1, "y": 0}, {"task": "x", "a": 2, "y": 1}, {"task": "z", "a": 2, "y": 1}]
    path = write(tmp_path / "t.csv", rows)
    with pytest.raises(DataError, match=r"Task [xz] cannot be divided.*leave_out true"):
        TaskTable(path, "y").setup()
    source = TaskTable(path, "y", leave_out=True)
    with pytest.warns(DataWarning, match=r"tasks of \w+ with fewer than two rows \(of one class\) are left out: "):
        source.setup()
    names = [name for split in SPLITS for name in source._names[split]]
    assert sorted(names) == [f"t{i}" for i in range(9)]
    assert len(names) == sum(len(source.rows(split)) for split in SPLITS)
    with pytest.warns(DataWarning, match="2 classes of .* with fewer than 3 rows are left out: x and z"):
        bank = ClassTable(path, "task", min_examples=3, cache=str(tmp_path)).bank
    assert sorted(bank.names) == [f"t{i}" for i in range(9)]
    tasks = {s: [(np.zeros((4, 2)), np.zeros(4, int)), (np.zeros((2, 2)), np.arange(2))] for s in SPLITS}
    with pytest.raises(DataError, match="Task 1 of train cannot be divided"):
        Tasks(tasks)
    with pytest.warns(DataWarning, match="1 tasks of (train|val|test)"):
        assert len(Tasks(tasks, leave_out=True).rows("train")) == 1


@pytest.mark.parametrize(
    ("x", "y", "sentence"),
    [
        (np.zeros((4, 2)), np.array([0.0, 1, np.nan, 2]), "not finite"),
        (np.full((4, 2), np.inf), np.zeros(4), "not finite"),
        (np.zeros((4, 2)), np.array([0, 0, -100, 1]), "class -100: number the classes from 0"),
    ],
)
def test_given_tasks_that_would_be_taken_for_padding_are_refused(x: np.ndarray, y: np.ndarray, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        Tasks({split: [(x, y)] for split in SPLITS})


def test_given_tensors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    x, y = np.zeros((40, 2)), np.arange(40) // 4
    for bad_x, bad_y in ((np.where(np.arange(80).reshape(40, 2) == 3, np.nan, x), y), (x, np.where(y == 3, np.nan, y))):
        with pytest.raises(DataError, match="not finite"):
            ClassTensors(bad_x, bad_y, cache=str(tmp_path))


def test_a_long_table_shows_a_bar_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # for rich, a terminal
    text = "task,a,y\n" + "".join(f"t{i % 5},{i * i},{i % 2}\n" for i in range(2000))
    read_table(given(tmp_path, text))
    assert "Reading t.csv" in capsys.readouterr().err
    monkeypatch.delenv("FORCE_COLOR")
    read_table(given(tmp_path, text))
    assert not capsys.readouterr().err


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
