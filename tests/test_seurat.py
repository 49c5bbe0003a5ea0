"""docs/seurat.R: a Seurat object to h5ad, through scfm, and back, in R itself where it is there."""

import json
import shutil
import subprocess
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scfm
from tests.toys import toy_adata, toy_model

RECIPE = Path(__file__).resolve().parents[1] / "docs" / "seurat.R"

TO_H5AD = """
source("{recipe}")
table <- as.matrix(read.csv("counts.csv", row.names = 1, check.names = FALSE))
object <- CreateSeuratObject(as(t(table), "CsparseMatrix"))
object$kind <- factor(ifelse(seq_len(ncol(object)) %% 2 == 0, "even", "odd"))
object$score <- seq_len(ncol(object)) / 4
write_h5ad(object, "from_r.h5ad")
"""

FROM_H5AD = """
source("{recipe}")
object <- read_h5ad("embedded.h5ad")
embedding <- Embeddings(object, "scfm")
found <- list(
  cells = colnames(object), genes = rownames(object),
  totals = unname(object$nCount_RNA), kind = as.character(object$kind),
  score = unname(object$score),
  first = unname(embedding[1, ]), last = unname(embedding[nrow(embedding), ])
)
write(jsonlite::toJSON(found, digits = NA), "found.json")
"""


@pytest.fixture(scope="module")
def r():
    """Runs a script by R in a folder."""
    command = shutil.which("Rscript")
    if command is None:
        pytest.skip("needs R: Rscript is not installed")
    wanted = 'for (p in c("Seurat", "hdf5r", "jsonlite")) stopifnot(requireNamespace(p))'
    if subprocess.run([command, "-e", wanted], capture_output=True).returncode:
        pytest.skip("needs the R packages Seurat, hdf5r and jsonlite")

    def run(script: str, folder: Path) -> None:
        (folder / "script.R").write_text(script.format(recipe=RECIPE))
        done = subprocess.run(
            [command, "script.R"], cwd=folder, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr

    return run


def test_there_and_back(r, tmp_path, rng):
    cells = toy_adata(rng, n_cells=7)
    table = pd.DataFrame(np.asarray(cells.X.todense()), cells.obs_names, cells.var_names)
    table.to_csv(tmp_path / "counts.csv")
    r(TO_H5AD, tmp_path)
    written = ad.read_h5ad(tmp_path / "from_r.h5ad")
    np.testing.assert_array_equal(written.X.todense(), table.to_numpy())
    assert written.obs_names.tolist() == table.index.tolist()
    assert written.var_names.tolist() == table.columns.tolist()
    assert written.obs["kind"].tolist() == ["odd", "even"] * 3 + ["odd"]

    scfm.tl.embed(written, toy_model())
    written.obs["kind"] = written.obs["kind"].astype("category")
    written.write_h5ad(tmp_path / "embedded.h5ad")
    r(FROM_H5AD, tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["cells"] == table.index.tolist()
    assert found["genes"] == table.columns.tolist()
    assert found["totals"] == table.sum(axis=1).tolist()
    assert found["kind"] == written.obs["kind"].tolist()
    assert found["score"] == written.obs["score"].tolist()
    for place, row in (("first", 0), ("last", -1)):
        np.testing.assert_allclose(found[place], written.obsm["X_scfm"][row], rtol=1e-6)
