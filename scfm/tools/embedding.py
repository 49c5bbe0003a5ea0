"""scfm.tl.embed, and the same for a file that need not fit in memory.

in   AnnData or a path, a model
out  obsm["X_scfm"], settings and gene report in uns["scfm"]
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from scfm.data.genes import GeneReport
from scfm.data.write import SafeFile, put, write_annotated
from scfm.errors import ConfigError
from scfm.model.base import CellModel
from scfm.tasks.embedding import EmbeddedCells, EmbeddingConfig, embed_cells
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tokens.pool import PoolMember
from scfm.tokens.vocab import GeneVocab
from scfm.tools.loading import as_model, input_config
from scfm.version import __version__

if TYPE_CHECKING:
    from anndata import AnnData


def embed(
    adata: "AnnData",
    model: CellModel | str | Path,
    *,
    key_added: str = "X_scfm",
    pooling: str | None = None,
    target_depth: float | str | None = None,
    batch_size: int = 64,
    layer: str | None = None,
    species: str = "auto",
    orthologs: bool = False,
    minimum_coverage: float = 0.5,
    copy: bool = False,
) -> "AnnData | None":
    """Embed every cell; the AnnData may be backed.

    Parameters
    ----------
    adata
        Raw counts in X, ``layers["counts"]`` or ``raw``; they are found, or refused.
    model
        From :func:`scfm.load`, or a path or hub id.
    key_added
        Where in ``obsm`` the (n_cells, d_model) float32 embedding goes.
    pooling
        One of the model's ``poolings``; None: its first. The default family has "cell", "mean",
        "max", "S" and "T"; scFoundation has "all" ([S, T, max, mean], four times as wide), "max"
        (over genes, T and S), "mean", "S" and "T".
    target_depth
        The total count that the model is asked for (T): "t4" is 10^4, "f2" twice the cell's own,
        "a1" ten times it; a number is its log10; "source" is the cell's own. None: the model's
        choice, each cell's own depth in the default family and "t4" in scFoundation.
    layer
        "X", "raw" or a layer's name, to say where the raw counts are.
    orthologs
        Match mouse genes through one-to-one human orthologs.

    Returns
    -------
    The copy if ``copy``, else None: ``adata`` gains ``obsm[key_added]`` and
    ``uns["scfm"][key_added]``.
    """
    adata = adata.copy() if copy else adata
    model, key_added = as_model(model), checked_key(key_added)
    how = EmbeddingConfig.of(model, pooling, target_depth)
    config = input_config(layer, species, minimum_coverage, orthologs=orthologs)
    member, report = open_input(adata, vocab_of(model), config, model.token_config)
    adata.obsm[key_added] = embed_source(model, member, how, batch_size).embedding
    settings = embed_settings(model, member, report, how)
    adata.uns["scfm"] = {**scfm_uns(adata), key_added: settings}
    return adata if copy else None


def embed_source(
    model: CellModel, member: PoolMember, how: EmbeddingConfig, batch_size: int
) -> EmbeddedCells:
    """All cells of an opened input at once."""
    parts = embed_cells(model, member, how, batch_size=checked_batch_size(batch_size))
    return EmbeddedCells(*map(np.concatenate, zip(*parts, strict=True)))


def embed_file(
    path: str | Path,
    model: CellModel | str | Path,
    out: str | Path,
    *,
    key_added: str = "X_scfm",
    pooling: str | None = None,
    target_depth: float | str | None = None,
    batch_size: int = 64,
    config: InputConfig | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> GeneReport:
    """Embed a file into a new h5ad that holds everything an old h5ad did.

    Of the other formats it holds the raw counts as X, obs and var, and a warning says so.

    The matrix is read in chunks and the embedding written as it is made, so memory does not grow
    with the number of cells. ``out`` appears when it is complete, or stays what it was.
    """
    model, key_added = as_model(model), checked_key(key_added)
    how = EmbeddingConfig.of(model, pooling, target_depth)
    reading = config or InputConfig()
    member, report = open_input(path, vocab_of(model), reading, model.token_config, backed=True)
    settings = embed_settings(model, member, report, how)

    def write(file: SafeFile) -> None:
        width = model.width(how.pooling)
        target = new_embedding(file, key_added, member.source.n_cells, width)
        for found in embed_cells(model, member, how, batch_size=checked_batch_size(batch_size)):
            cells = found.cell_index
            target[cells[0] : cells[-1] + 1] = found.embedding
            file.check()  # a full disk is heard of now, not after the last cell
            on_progress(int(cells[-1]) + 1, member.source.n_cells)
        write_settings(file, key_added, settings)

    write_annotated(member.source, out, write)
    return report


def new_embedding(file: SafeFile, key: str, n_cells: int, d: int, dtype: Any = np.float32) -> Any:
    """An empty obsm array, as anndata would have written it."""
    if "obsm" not in file:
        put(file, "obsm", {})
    obsm: Any = file["obsm"]
    if key in obsm:
        del obsm[key]
    array = obsm.create_dataset(key, shape=(n_cells, d), dtype=dtype)
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return array


def scfm_uns(adata: "AnnData") -> dict[str, Any]:
    """uns["scfm"] as it is; nothing where something else of that name lies there."""
    kept = adata.uns.get("scfm")
    return dict(kept) if isinstance(kept, Mapping) else {}


def checked_key(key: str, name: str = "key_added", example: str = "X_scfm") -> str:
    """A name that obsm, obs and uns can hold. Raises ConfigError."""
    if not key or "/" in key:
        raise ConfigError(f"{name} is '{key}'; wanted a name without '/', such as {example}.")
    return key


def write_settings(file: SafeFile, key: str, settings: dict[str, Any]) -> None:
    """Settings into uns["scfm"][key], beside what is there."""
    for group in ("uns", "uns/scfm"):
        if group not in file or not isinstance(file[group], h5py.Group):
            put(file, group, {})
    put(file, f"uns/scfm/{key}", settings)


def embed_settings(
    model: CellModel, member: PoolMember, report: GeneReport, how: EmbeddingConfig
) -> dict[str, Any]:
    """What made an embedding: enough to make it again, and to see that two belong together."""
    return {
        "scfm_version": __version__,
        "weights_sha256": model_id(model),
        "pooling": how.pooling,
        "target_depth": str(how.target_depth),
        "counts_from": member.source.counts_from,
        "genes": report.to_dict(),
    }


def model_id(model: CellModel) -> str:
    """The hash of the weights file a model was loaded from; "" for one never saved."""
    return str(model.provenance.get("weights_sha256", ""))


def vocab_of(model: CellModel) -> GeneVocab:
    """Its genes."""
    assert model.vocab is not None, "models are loaded or built with a vocabulary"
    return model.vocab


def checked_batch_size(batch_size: int) -> int:
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}.")
    return batch_size
