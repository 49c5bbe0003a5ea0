"""docs/denoising.md: its Python runs, in order, in one namespace."""

import re
from pathlib import Path

import scipy.sparse as sp

from tests.toys import toy_adata, toy_scfoundation

PAGE = Path(__file__).resolve().parents[1] / "docs" / "denoising.md"


def test_the_pages_python_runs(rng):
    adata, model = toy_adata(rng), toy_scfoundation(60)
    bulk = toy_adata(rng, n_cells=5)
    bulk.X = sp.csr_matrix(bulk.X * 1000)
    given = {"adata": adata, "bulk": bulk, "model": model, "genes": list(adata.var_names[:3])}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), given)
    assert given["means"].shape == (2, 3, model.config.sizes.d_decoder)
    assert given["features"].shape == (5, model.config.sizes.d_model)
