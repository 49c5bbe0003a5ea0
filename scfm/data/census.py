"""A SOMA experiment or a part of the CELLxGENE Census -> Container: counts in a TileDB database.

in   an address (scfm.data.soma_address): "soma:PATH", "census:homo_sapiens?obs=FILTER"
out  Container of the cells that meet the filter, in the order of soma_joinid; read in blocks

The extra ``census`` (tiledbsoma, cellxgene-census) is imported when such an address is opened.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pyarrow as pa

from scfm.data.container import Candidate, Container
from scfm.data.matrices import DenseRows
from scfm.data.soma_address import Address, absolute_address, parse_address
from scfm.data.soma_rows import SomaBlocks, SomaRows, first_line, soma_errors, soma_table
from scfm.errors import InputError, LabelError, MissingFileError, ScfmWarning, UnreadableFileError

INSTALL = "pip install 'scfm[census]'"
# Layers that hold counts by custom, the likeliest first: the Census calls them raw,
# tiledbsoma.io.from_anndata calls X data.
USUAL_LAYERS = ("raw", "counts", "data")
READ_CONFIG: dict[str, str | float] = {
    # Bytes a column of one read; by default 1 GB each, for every array that is open.
    "soma.init_buffer_bytes": 2**25,
    "py.init_buffer_bytes": 2**25,
    "sm.mem.total_budget": 2**28,  # 10 GB by default; with less than a tenth reads are no slower
}


def open_soma(source: str | Path) -> Container:
    """Open an address as a Container.

    Raises InputError (address, filter, no cell meets it), MissingFileError, UnreadableFileError
    (no experiment, no network) and, where the extra is not installed, InputError with its command.
    """
    address = parse_address(str(source))
    with _installed(address), soma_errors(str(address)):
        if address.scheme == "census":
            return _open_census(address)
        root = _open_local_or_remote(address)
        return _container(address, root, root, None)


def census_datasets(source: str | Path) -> list[str]:
    """One address for each dataset of the Census that has cells in ``source``; a soma: as it is.

    Paths in them are made absolute. Datasets differ in the genes they measured; opened one by one,
    each knows its own.
    """
    address = parse_address(absolute_address(source))
    if address.scheme != "census" or "dataset" in address.options:
        return [str(address)]
    with _installed(address), soma_errors(str(address)):
        address, census, experiment = _find_census(address)
        try:
            cells = _selected(address, experiment, with_dataset=True)
        finally:
            census.close()
    names = sorted(cells.column("dataset_id").unique().to_pylist())
    return [str(address.replaced(dataset=name)) for name in names]


def _open_census(address: Address) -> Container:
    address, census, experiment = _find_census(address)
    try:
        return _container(address, census, experiment, census)
    except BaseException:
        census.close()
        raise


def _find_census(address: Address) -> tuple[Address, Any, Any]:
    """The release that the version stands for, the open Census, and the organism in it."""
    import cellxgene_census

    uri, version = address.options.get("uri"), address.options.get("version", "stable")
    if uri and "version" in address.options:
        raise InputError(f"{address}: give version= or uri=, not both.")
    try:
        if uri is None:
            releases = cellxgene_census.get_census_version_directory()
            if version in releases:  # "stable" is another release next year: name what it is today
                build = str(releases[version]["release_build"])
                version = build if build in releases else version
            address = address.replaced(version=version)
        context = cellxgene_census.get_default_soma_context(READ_CONFIG)
        census = cellxgene_census.open_soma(census_version=version, uri=uri, context=context)
    except (OSError, ValueError) as error:  # requests raises OSErrors
        raise UnreadableFileError(
            f"{address}: cannot open the Census ({first_line(error)}). Check the name of the "
            "release and the network, or name a copy of the Census: uri=PATH_OR_URI."
        ) from error
    try:
        organisms = census["census_data"]
        name = address.place.strip().lower().replace(" ", "_")
        if name not in organisms:
            known = ", ".join(sorted(organisms))
            raise InputError(f"{address}: no organism {address.place!r}; there is: {known}.")
        return address, census, organisms[name]
    except KeyError as error:
        census.close()
        raise UnreadableFileError(f"{address}: is no Census: it has no {error}.") from error
    except BaseException:
        census.close()
        raise


def _open_local_or_remote(address: Address) -> Any:
    import tiledbsoma

    place = address.place
    if "://" not in place and not Path(place).exists():
        raise MissingFileError(f"{place}: no such folder (looked in {Path(place).absolute()}).")
    context = tiledbsoma.SOMATileDBContext(tiledb_config=READ_CONFIG)
    root = tiledbsoma.open(place, context=context)
    if not isinstance(root, tiledbsoma.Experiment):
        kind = getattr(root, "soma_type", type(root).__name__)
        root.close()
        raise UnreadableFileError(f"{place}: is a {kind}, not a SOMAExperiment.")
    return root


def _container(address: Address, root: Any, experiment: Any, census: Any | None) -> Container:
    name = str(address)
    wanted = address.options.get("measurement", "RNA")
    if wanted not in experiment.ms:
        known = ", ".join(sorted(experiment.ms))
        raise InputError(f"{name}: no measurement {wanted!r}; measurement= can be: {known}.")
    cells = _selected(address, experiment, with_dataset=census is not None)
    candidates = _candidates(experiment.ms[wanted], cells, name, census)
    if "measurement" not in address.options and "raw" in experiment.ms:
        candidates += [  # where tiledbsoma.io.from_anndata puts adata.raw
            Candidate("raw.X", "raw", candidate.open, candidate.read_var)
            for candidate in _candidates(experiment.ms["raw"], cells, name, None)
            if candidate.key == "data"
        ]
    return Container(
        name=name,
        format=address.scheme,
        path=None,
        candidates=candidates,
        read_obs=partial(_read_obs, address, experiment, cells.column("soma_joinid").to_numpy()),
        close=root.close,
        fingerprint=partial(_fingerprint, address, experiment, candidates, cells),
    )


def _candidates(
    measurement: Any, cells: pa.Table, name: str, census: Any | None
) -> list[Candidate]:
    layers = list(measurement.X) if "X" in measurement else []
    usual = [layer for layer in USUAL_LAYERS if layer in layers]
    columns = np.sort(soma_table(measurement.var, ["soma_joinid"]).column(0).to_numpy())
    is_kept = None if census is None else _measured(name, measurement, census, cells, columns)
    return [
        Candidate(
            label=f"X['{layer}']",
            key=layer,
            open=partial(_open_layer, measurement, layer, cells, columns, name),
            read_var=partial(_read_var, measurement, name),
            is_kept=is_kept,
        )
        for layer in [*usual, *(layer for layer in layers if layer not in usual)]
    ]


def _open_layer(
    measurement: Any, layer: str, cells: pa.Table, columns: np.ndarray, name: str
) -> SomaRows | DenseRows:
    array = measurement.X[layer]
    joinids = cells.column("soma_joinid").to_numpy()
    if not array.is_sparse:
        return DenseRows(SomaBlocks(array, joinids, columns, name))
    if "nnz" in cells.column_names:
        n_stored = int(cells.column("nnz").to_numpy().sum())
    else:
        n_stored = int(array.nnz * len(cells) / max(array.shape[0], 1))
    return SomaRows(array, joinids, columns, n_stored, name)


def _selected(address: Address, experiment: Any, *, with_dataset: bool) -> pa.Table:
    """soma_joinid of the cells that meet the filter, ascending; of the Census also its account of
    each cell: the dataset, the number of values (nnz) and their sum.
    """
    known = experiment.obs.keys()
    extra = [c for c in ("dataset_id", "nnz", "raw_sum") if with_dataset and c in known]
    clauses = []
    if "dataset" in address.options:
        clauses.append(f"dataset_id == {address.options['dataset']!r}")
    if address.options.get("obs"):
        clauses.append(address.options["obs"])
    value_filter = " and ".join(f"({clause})" for clause in clauses) or None
    try:
        cells = soma_table(experiment.obs, ["soma_joinid", *extra], value_filter=value_filter)
    except _soma_error() as error:
        columns = ", ".join(sorted(known))
        raise InputError(
            f"{address}: the filter {value_filter!r} is not understood ({first_line(error)}). It "
            f"is a SOMA value filter, such as \"cell_type == 'T cell'\". Columns: {columns}."
        ) from error
    if not len(cells):
        what = f"meets {value_filter!r}" if value_filter else "is there"
        raise InputError(f"{address}: no cell {what}. Values are written as in obs, in quotes.")
    return cells.take(pa.array(np.argsort(cells.column("soma_joinid").to_numpy(), kind="stable")))


def _read_obs(address: Address, experiment: Any, joinids: np.ndarray) -> pd.DataFrame:
    known = list(experiment.obs.keys())
    wanted = known
    if "columns" in address.options:
        wanted = [name.strip() for name in address.options["columns"].split(",") if name.strip()]
        absent = [name for name in wanted if name not in known]
        if absent:
            raise LabelError(
                f"{address}: obs has no {', '.join(map(repr, absent))}; columns= can name: "
                f"{', '.join(sorted(known))}."
            )
    index = _index_column(experiment.obs, "obs_id")
    columns: list[str] = ["soma_joinid", *([index] if index else []), *wanted]
    with soma_errors(str(address)):
        table = soma_table(experiment.obs, list(dict.fromkeys(columns)), joinids=joinids)
    return _frame(table, index, experiment.obs)


def _read_var(measurement: Any, name: str) -> pd.DataFrame:
    index = _index_column(measurement.var, "var_id") or _index_column(measurement.var, "feature_id")
    with soma_errors(name):
        return _frame(soma_table(measurement.var, None), index, measurement.var)


def _index_column(frame: Any, usual: str) -> str | None:
    """The column that names rows: the one an AnnData's index was put in, or the usual one."""
    stored = json.loads(frame.metadata.get("soma_dataframe_original_index_name", "null"))
    return next((c for c in (stored, usual) if c is not None and c in list(frame.keys())), None)


def _frame(table: pa.Table, index: str | None, frame: Any) -> pd.DataFrame:
    """In the order of soma_joinid, which names the rows where nothing else does."""
    found = table.to_pandas(split_blocks=True).sort_values("soma_joinid", kind="stable")
    joinids = found.pop("soma_joinid")
    found.index = pd.Index(
        joinids.astype(str) if index is None else found[index].astype(str), dtype=object
    )
    stored = json.loads(frame.metadata.get("soma_dataframe_original_index_name", "null"))
    found.index.name = index if index is not None and index == stored else None
    return found.drop(columns=index) if index in ("obs_id", "var_id", stored) else found


def _measured(
    name: str, measurement: Any, census: Any, cells: pa.Table, columns: np.ndarray
) -> np.ndarray | None:
    """(gene,) which genes any of the cells' datasets measured.

    Where datasets differ, a gene that one did not measure reads as zero in its cells, which is
    said: nothing but opening the datasets one by one tells such a zero from a real one.
    """
    key = "feature_dataset_presence_matrix"
    if key not in measurement or "dataset_id" not in cells.column_names:
        return None
    datasets = soma_table(census["census_info"]["datasets"], ["soma_joinid", "dataset_id"])
    chosen = set(cells.column("dataset_id").unique().to_pylist())
    is_chosen = [value in chosen for value in datasets.column("dataset_id").to_pylist()]
    rows = np.sort(datasets.column("soma_joinid").to_numpy()[is_chosen])
    found = pa.concat_tables(measurement[key].read((pa.array(rows),)).tables())
    is_present = found.column("soma_data").to_numpy() != 0
    column = np.searchsorted(columns, found.column("soma_dim_1").to_numpy()[is_present])
    n_measuring = np.bincount(column, minlength=len(columns))
    is_measured = n_measuring > 0
    n_everywhere = int((n_measuring == len(rows)).sum())
    if n_everywhere < is_measured.sum():
        warnings.warn(
            f"{name}: its cells are of {len(rows)} datasets, which measured "
            f"{int(is_measured.sum()):,} genes together but only {n_everywhere:,} all of them; "
            "elsewhere a zero may mean that a gene was not looked for. To keep these apart open "
            "the datasets one by one, dataset=ID, as scfm.data.census.census_datasets lists them.",
            ScfmWarning,
            stacklevel=2,
        )
    return is_measured


def _fingerprint(
    address: Address, experiment: Any, candidates: list[Candidate], cells: pa.Table
) -> str:
    """sha256 of what tells one selection of cells from another without reading all counts.

    The release, organism and measurement; which cells and genes; the number of values and their sum
    per cell where the database keeps them; the values of up to 256 cells spread over all; and, of
    a local database, the names of its matrices' fragments, which every write changes.
    """
    digest = hashlib.sha256()
    identity = {
        "scheme": address.scheme,
        "organism": address.place if address.scheme == "census" else None,
        "version": address.options.get("version"),
        "measurement": address.options.get("measurement", "RNA"),
        "n_cells": len(cells),
    }
    digest.update(json.dumps(identity, sort_keys=True).encode())
    for column in ("soma_joinid", "nnz", "raw_sum"):
        if column in cells.column_names:
            digest.update(cells.column(column).to_numpy().astype("<f8").tobytes())
    with soma_errors(str(address)):
        for candidate in candidates:
            names = "\n".join(map(str, candidate.read_var().index))
            digest.update(f"{candidate.label}\n{names}\n".encode())
            sample = candidate.open().sample()
            for part, kind in zip(sample, ("<i8", "<i8", "<f8"), strict=True):
                digest.update(part.astype(kind).tobytes())
    for fragment in _fragments(experiment):
        digest.update(fragment.encode())
    return digest.hexdigest()


def _fragments(experiment: Any) -> list[str]:
    """Names of the fragments of all matrices of a local database, sorted."""
    place = experiment.uri.removeprefix("file://")
    if "://" in place:
        return []
    root = Path(unquote(place))
    found = root.glob("ms/*/X/*/__fragments/*")
    return sorted(path.relative_to(root).as_posix() for path in found)


def _soma_error() -> type[Exception]:
    import tiledbsoma

    return tiledbsoma.SOMAError


@contextmanager
def _installed(address: Address) -> Iterator[None]:
    try:
        import tiledbsoma  # noqa: F401

        if address.scheme == "census":
            import cellxgene_census  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(
            f"{address}: needs the package {error.name}, which is not installed: {INSTALL}"
        ) from error
    yield
