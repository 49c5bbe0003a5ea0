import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scfm.errors import ConfigError, InputError, LabelError
from scfm.plotting import tf_heatmap


@pytest.fixture
def adata(rng):
    groups = pd.Categorical(np.repeat(["B", "T", "NK"], 10))
    names = [f"TF{i}" for i in range(6)]
    data = ad.AnnData(
        np.zeros((30, 1)), obs=pd.DataFrame({"type": groups}, index=map(str, range(30)))
    )
    values = rng.normal(0, 0.1, (30, 6)).astype(np.float32)
    values[:10, 2] += 5
    values[3] = np.nan
    data.obsm["X_tf_activity"], data.uns["tf_names"] = values, names
    return data


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def shown(ax):
    (mesh,) = ax.collections
    rows = [tick.get_text() for tick in ax.get_yticklabels()]
    columns = [tick.get_text() for tick in ax.get_xticklabels()]
    return pd.DataFrame(mesh.get_array().reshape(len(rows), len(columns)), rows, columns)


def test_means_by_group(adata):
    table = shown(tf_heatmap(adata, group_key="type", standardise=False))
    assert list(table.columns) == ["B", "NK", "T"]
    assert set(table.index) == set(adata.uns["tf_names"])
    values = pd.DataFrame(adata.obsm["X_tf_activity"], columns=adata.uns["tf_names"])
    wanted = values.groupby(adata.obs["type"].to_numpy()).mean()
    for tf in table.index:
        np.testing.assert_allclose(table.loc[tf], wanted.loc[table.columns, tf], rtol=1e-5)


def test_standardised_rows_and_the_most_different_tfs(adata):
    table = shown(tf_heatmap(adata, group_key="type", n_tfs=1))
    assert list(table.index) == ["TF2"]
    np.testing.assert_allclose(table.loc["TF2"].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(table.loc["TF2"].std(ddof=0), 1, rtol=1e-6)


def test_tfs_by_name_in_the_order_named(adata):
    ax = plt.subplots()[1]
    assert tf_heatmap(adata, group_key="type", tfs=["TF4", "tf1"], ax=ax) is ax
    assert list(shown(ax).index) == ["TF4", "TF1"]


def test_refused(adata):
    with pytest.raises(ConfigError, match="TF9"):
        tf_heatmap(adata, group_key="type", tfs=["TF9"])
    with pytest.raises(LabelError, match="no column 'kind'"):
        tf_heatmap(adata, group_key="kind")
    adata.uns["tf_names"] = ["A"]
    with pytest.raises(InputError, match="different runs"):
        tf_heatmap(adata, group_key="type")
    del adata.uns["tf_names"]
    with pytest.raises(InputError, match=r"tl\.tf_activity"):
        tf_heatmap(adata, group_key="type")
