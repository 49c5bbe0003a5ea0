"""obs columns of several files under one name: mapping files, kinds, values, what is missing."""

import numpy as np
import pandas as pd
import pytest

from scfm.data import harmonise
from scfm.data.harmonise import (
    DEFAULT,
    ObsMapping,
    Origin,
    as_arrow,
    constant,
    find_origins,
    load_mapping,
    survey,
    unified,
)
from scfm.data.manifest import ObsColumn
from scfm.errors import ConfigError, LabelError

MAPPING = """
columns:
  cell_type: [cell_type, celltype]
  donor_id: donor
  age:
files:
  a.h5ad: {donor_id: "=a", cell_type: clusters}
values:
  cell_type: {"B cells": "B cell", "NA": ~, 3: third}
"""


@pytest.fixture
def mapping(tmp_path):
    (tmp_path / "mapping.yaml").write_text(MAPPING)
    return load_mapping(tmp_path / "mapping.yaml")


def test_mapping_file(mapping):
    assert mapping.columns == {
        "cell_type": ("cell_type", "celltype"),
        "donor_id": ("donor",),
        "age": ("age",),
    }
    assert mapping.files == {"a.h5ad": {"donor_id": "=a", "cell_type": "clusters"}}
    assert mapping.values == {"cell_type": {"B cells": "B cell", "NA": None, "3": "third"}}


def test_origins(mapping):
    found = find_origins(["celltype", "donor", "clusters"], "b.h5ad", mapping)
    assert found == {
        "cell_type": Origin(column="celltype"),
        "donor_id": Origin(column="donor"),
        "age": Origin(),
    }
    own = find_origins(["cell_type", "clusters"], "a.h5ad", mapping)
    assert own["donor_id"] == Origin(constant="a")
    assert own["cell_type"] == Origin(column="clusters")
    with pytest.raises(LabelError, match=r"'clusters', which it does not have. Its columns are x"):
        find_origins(["x"], "a.h5ad", mapping)


def test_default_keeps_the_standard_columns_however_spelled():
    columns = ["CellType", "tissue", "Donor", "Sex", "leiden", "development.stage"]
    found = find_origins(columns, "any.h5ad", DEFAULT)
    taken = {target: origin.column for target, origin in found.items() if origin.column}
    assert taken == {
        "cell_type": "CellType",
        "tissue": "tissue",
        "donor_id": "Donor",
        "sex": "Sex",
        "development_stage": "development.stage",
    }
    both = find_origins(["CellType", "cell_type"], "any.h5ad", DEFAULT)
    assert both["cell_type"].column == "cell_type"
    assert DEFAULT.also(["leiden"]).columns["leiden"] == ("leiden",)


def rebuilt(values, renames, column):
    """The values again, by hand, from what is stored."""
    found = as_arrow(values, renames, column).to_pylist()
    if column.kind == "category":
        return [None if code is None else column.categories[code] for code in found]
    return found


def test_values_are_renamed_and_counted(mapping):
    renames = mapping.values["cell_type"]
    values = pd.Series(["B cells", "T cell", "NA", None, "B cell"], dtype="category")
    found = survey(values, renames)
    assert found.n_missing == 2
    column = unified([found], None, "x")
    assert column == ObsColumn("category", ("B cell", "T cell"))
    assert rebuilt(values, renames, column) == ["B cell", "T cell", None, None, "B cell"]


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ([[True, False], [True]], "boolean"),
        ([[True, False], [3]], "integer"),
        ([[1, 2], [0.5]], "number"),
        ([[1, 2], ["one"]], "category"),
        ([[True], [0.5], ["x"]], "category"),
    ],
)
def test_kinds_widen_and_values_survive(files, kind):
    series = [pd.Series(values) for values in files]
    column = unified([survey(v, {}, as_text=kind == "category") for v in series], None, "x")
    assert column.kind == kind
    for values, given in zip(series, files, strict=True):
        wanted = [str(value) for value in given] if kind == "category" else given
        assert rebuilt(values, {}, column) == wanted


def test_missing_of_every_type():
    for values in (
        pd.Series([1.5, np.nan]),
        pd.Series([1, None], dtype="Int64"),
        pd.Series([True, None], dtype="boolean"),
        pd.Series(["x", None]),
        pd.Series(["x", ""]),
        pd.Series(pd.Categorical(["x", None])),
    ):
        found = survey(values, {})
        assert found.n_missing == 1
        assert rebuilt(values, {}, unified([found], None, "x"))[1] is None


def test_large_integers_are_exact():
    values = pd.Series([2**62 + 1, -5])
    assert rebuilt(values, {}, unified([survey(values, {})], None, "x")) == [2**62 + 1, -5]


def test_a_store_that_has_the_column():
    before = ObsColumn("category", ("T cell", "B cell"))
    column = unified([survey(pd.Series(["A", "B cell"]), {})], before, "x")
    assert column.categories == ("A", "B cell")  # the manifest's are merged at the commit


def test_a_stores_numbers_stay_numbers():
    numbers = ObsColumn("integer")
    assert unified([survey(pd.Series([True]), {})], numbers, "age").kind == "integer"
    with pytest.raises(LabelError, match=r"'age' holds integer values, the new files .* category"):
        unified([survey(pd.Series(["old"]), {})], numbers, "age")


def test_many_different_values_are_free_text(monkeypatch):
    monkeypatch.setattr(harmonise, "MOST_CATEGORIES", 3)
    values = pd.Series(["a", "b", None, "c", "d"])
    column = unified([survey(values, {})], None, "barcode")
    assert column == ObsColumn("string")
    assert rebuilt(values, {}, column) == ["a", "b", None, "c", "d"]
    column = unified([survey(values, {})], ObsColumn("category", ("z",)), "barcode")
    assert column == ObsColumn("category", ("a", "b", "c", "d"))


def test_unused_categories_are_left_out():
    values = pd.Series(pd.Categorical(["x"], categories=["never", "x"]))
    column = unified([survey(values, {})], None, "x")
    assert column.categories == ("x",)
    assert rebuilt(values, {}, column) == ["x"]


def test_constant():
    values = constant("lung", 3)
    assert rebuilt(values, {}, unified([survey(values, {})], None, "x")) == ["lung"] * 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", "must hold 'key: value' lines, got list"),
        ("colums: {}", "has a section 'colums'"),
        ("files: {}", "has no section 'columns'"),
        ("columns: {a: [x]}\nvalues: {b: {c: d}}", "values speaks of 'b'"),
        ("columns: {a: [x]}\nfiles: {f: {b: c}}", "f speaks of 'b'"),
        ("columns: {a: [no]}", "columns.a: wanted a name, got False. Put it in quotes"),
        ("columns: {a: [x]}\nfiles: {f: {a: ~}}", "wanted a name, got None"),
        ("columns: [", "is not readable YAML"),
    ],
)
def test_a_bad_mapping_is_refused(tmp_path, text, words):
    path = tmp_path / "mapping.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_mapping(path)
    assert words in str(caught.value)


def test_no_such_mapping(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load_mapping(tmp_path / "none.yaml")


def test_whole_floats_and_integers_are_one_name():
    """NaN makes floats of a column's integers; the donor is the same one."""
    column = ObsColumn("category", ("1", "2", "2.5"))
    for values in (
        pd.Series([1, 2]),
        pd.Series([1.0, 2.0, np.nan, 2.5]),
        pd.Series([1.0, 2.0], dtype=np.float32),
        pd.Series([1, 2, None], dtype="Float64"),
        pd.Series([1.0, 2.0, 2.5], dtype="category"),
        pd.Series(["1", 2.0, 2.5], dtype=object),
    ):
        assert rebuilt(values, {}, column)[:2] == ["1", "2"]
        assert set(survey(values, {}, as_text=True).categories) <= set(column.categories)
    odd = pd.Series([np.inf, 1e300, -0.5])
    assert survey(odd, {}, as_text=True).categories == ("inf", "1e+300", "-0.5")


def test_numbers_are_renamed_as_the_mapping_writes_them():
    values = pd.Series([1.0, 2.0, np.nan])
    assert survey(values, {"1": "one", "2.0": "two"}).categories == ("one", "two")


def test_which_columns_hold_names(mapping):
    named = ("donor_id", "cell_type", "development_stage", "tissue_ontology_term_id")
    assert all(DEFAULT.is_text(name) for name in named)
    assert not DEFAULT.is_text("is_primary_data")
    assert not mapping.is_text("age")
    assert ObsMapping(columns={"age": ("age",)}, values={"age": {"old": "80"}}).is_text("age")


def test_which_renamed_values_are_there():
    values = pd.Series(pd.Categorical(["a", "b", None], categories=["a", "b", "unused"]))
    found = survey(values, {"a": "A", "c": "C", "unused": None})
    assert found.renamed == {"a"}
    assert survey(pd.Series([1.0, np.nan]), {"1": "one", "nan": None}).renamed == {"1"}


@pytest.mark.parametrize("said", ["=", "=  "])
def test_a_constant_without_a_value_is_refused(tmp_path, said):
    path = tmp_path / "mapping.yaml"
    path.write_text(f"columns: {{donor_id: [donor]}}\nfiles: {{a.h5ad: {{donor_id: '{said}'}}}}")
    with pytest.raises(ConfigError, match=r"'donor_id' in a\.h5ad, which names no value"):
        load_mapping(path)
