"""docs/tutorial.ipynb: its cells run, in order, in one namespace, in an empty folder."""

import json
import re
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "tutorial.ipynb"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # scanpy's and umap's own; the commands' are not warnings
def test_the_notebook_runs(tmp_path, monkeypatch):
    notebook = json.loads(NOTEBOOK.read_text())
    assert notebook["nbformat"] == 4
    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    given: dict = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == []  # what a run printed goes stale
        code = "".join(cell["source"]).replace("steps = 300", "steps = 3")
        code = re.sub(r"(sc\.read_h5ad\(.*\))", r"\1[::8].copy()", code)
        exec(compile(code, f"{NOTEBOOK.name}:{cell['id']}", "exec"), given)
    plt.close("all")
    assert given["report"].n_cells == given["judged"].n_obs
    assert set(given["query"].obs["scfm_cell_type"]) <= {*given["refs"].classes, "unknown"}
