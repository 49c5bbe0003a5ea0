"""The cells' table of a store, as Arrow -> as pandas, in types that h5ad can hold.

in   columns of scfm.data.store.Store.obs_table
out  a DataFrame named by the cells; the store's own columns left out
"""

from typing import Any

import pandas as pd
import pyarrow as pa

# What a store keeps of each cell for itself; all other columns are the source's.
OWN_COLUMNS = ("dataset", "row", "cell_hash", "n_counts", "n_genes", "sketch_a", "sketch_b", "name")


def obs_frame(table: pa.Table) -> pd.DataFrame:
    """The source's columns, as anndata can write them. One that holds nothing is left out."""
    columns = {}
    for name in table.column_names:
        column = table.column(name)
        if name not in OWN_COLUMNS and column.null_count < len(column):
            columns[name] = _pandas_column(column)
    if "name" in table.column_names and table.column("name").null_count == 0:
        index = table.column("name").to_pandas().astype(object)
    else:
        index = table.column("row").to_pandas().astype(str)
    return pd.DataFrame(columns, index=pd.Index(index, name=None))


def _pandas_column(column: pa.ChunkedArray) -> Any:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return column.to_pandas().array.remove_unused_categories()
    if column.null_count and pa.types.is_integer(kind):
        return column.to_pandas(types_mapper={kind: pd.Int64Dtype()}.get).array
    if column.null_count and pa.types.is_boolean(kind):
        return column.to_pandas(types_mapper={kind: pd.BooleanDtype()}.get).array
    if column.null_count and not pa.types.is_floating(kind):
        return pd.Categorical(column.to_pandas())  # h5ad has no text that may be missing
    return column.to_pandas().array
