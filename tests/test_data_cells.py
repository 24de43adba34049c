"""Cells of a table: which columns are features, what is empty, and how files write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_files import write

from imaml_lightning.data import SPLITS, ClassTable, Tasks, TaskTable
from imaml_lightning.data.table import read_table
from imaml_lightning.errors import DataError, DataWarning, UsageError

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


def test_a_long_table_shows_a_bar_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # for rich, a terminal
    text = "task,a,y\n" + "".join(f"t{i % 5},{i * i},{i % 2}\n" for i in range(2000))
    read_table(given(tmp_path, text))
    assert "Reading t.csv" in capsys.readouterr().err
    monkeypatch.delenv("FORCE_COLOR")
    read_table(given(tmp_path, text))
    assert not capsys.readouterr().err
