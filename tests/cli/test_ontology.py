"""scfm ontology: what it prints, writes and refuses."""

import csv
import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scfm.cli.ontology import app
from scfm.errors import LabelError, MissingFileError, OutputError


@pytest.fixture
def cells(tmp_path):
    obs = pd.DataFrame(
        {"cell_type": ["NK", "HSC", "NK"], "n": ["1", "2", "3"]}, index=pd.Index(["a", "b", "c"])
    )
    path = tmp_path / "cells.h5ad"
    # no counts are looked at: log values will do
    ad.AnnData(np.full((3, 2), 0.5, dtype=np.float32), obs=obs).write_h5ad(path)
    return path


def run(*arguments) -> None:
    """Errors of ours come through: exit codes are the whole command's affair."""
    app([str(argument) for argument in arguments], standalone_mode=False)


def test_map_edit_and_map_again(cells, tmp_path, capsys):
    out = tmp_path / "mapping.csv"
    given = ("map", cells, "--label", "cell_type", "--out", out)
    run(*given, "--json")
    said = capsys.readouterr()
    assert "'HSC' may mean hematopoietic stem cell (CL:0000037)" in said.err
    assert json.loads(said.out)["labels"][1] == {
        **{"label": "NK", "term": "CL:0000623", "name": "natural killer cell"},
        **{"how": "synonym", "cells": 2, "near": ""},
    }
    out.write_text(out.read_text().replace("HSC,,", "HSC,CL:0000037,"))
    run(*given, "--mapping", out)
    with out.open(newline="") as file:
        assert [row["how"] for row in csv.DictReader(file)] == ["mapped", "mapped"]


def test_find(capsys):
    run("find", "NK", "HSC", "nothing")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("CL:0000623  natural killer cell (synonym) < group 1 innate")
    assert lines[0].endswith(", cell")
    assert lines[1].startswith("'HSC' may mean")
    assert lines[2].startswith("'nothing' is not found")


def test_refusals(cells, tmp_path, capsys):
    out = tmp_path / "mapping.csv"
    with pytest.raises(LabelError, match="no obs column 'type'"):
        run("map", cells, "--label", "type", "--out", out)
    with pytest.raises(OutputError):
        run("map", cells, "--label", "n", "--out", tmp_path / "no" / "x.csv")
    with pytest.raises(MissingFileError):
        run("map", tmp_path / "no.h5ad", "--label", "n", "--out", out)
    assert not out.exists()
    run("map", cells, "--label", "n", "--out", out)  # codes: a table to fill in
    assert "3 not found (3 cells)" in capsys.readouterr().err
