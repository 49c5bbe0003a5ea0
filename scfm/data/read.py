"""A file or an AnnData -> a CellSource of raw counts. The one way counts come into scfm.

in   h5ad, zarr, 10x h5, 10x mtx, loom, SOMA, AnnData; a matrix that may or may not hold counts
out  CountsSource: raw counts in CSR rows, every value checked, with obs and var beside them

Opening reads the tables' shapes and some rows of each candidate matrix, to find the one that holds
counts: X, layers["counts"] or raw, in this order. A matrix on disk is read in blocks of about two
million values, so memory does not grow with the file. Two layouts cannot be read by rows and are
read whole: X stored by gene (CSC), with a warning when it is large, and the mtx text format.
"""

import logging
import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Int

from scfm.data.container import Candidate, Container, reading
from scfm.data.counts import CountRows
from scfm.data.fingerprint import sha256
from scfm.data.formats import open_container
from scfm.data.matrices import Matrix, RawRows, Rows, SparseColumns
from scfm.data.rawness import EXPECTED_REMEDY, REMEDY, Place, Verdict, clean, judge, refuse_empty
from scfm.errors import CountsError, EmptyCellError, InputError, ScfmWarning, UnreadableFileError

if TYPE_CHECKING:
    from anndata import AnnData

BYTES_A_VALUE = 8  # int32 column and int32 count
MEMORY_LIMIT = 512 * 2**20  # bytes of CSR up to which a file is read into memory
PREFERRED = ("X", "layers['counts']", "raw.X", "X['raw']", "X['counts']", "X['data']")
BINS_LAYER = "scfm_bins"  # of generated cells: small whole numbers, but no counts

logger = logging.getLogger(__name__)


def open_counts(
    source: "str | Path | AnnData",
    *,
    layer: str | None = None,
    expected_counts: bool = False,
    keep_empty: bool = False,
    backed: bool | None = None,
) -> "CountsSource":
    """Open single-cell data and find its raw counts.

    Parameters
    ----------
    source
        A path (h5ad, zarr folder, .zarr.zip, annbatch collection, 10x h5, 10x mtx folder or .mtx
        file, loom), an address of a SOMA experiment or of the CELLxGENE Census (scfm.data.census),
        or an AnnData, in memory or backed.
    layer
        "X", "raw" or a layer's name; in a 10x v2 file of several genomes, the genome. Without it
        the first of X, layers["counts"] and raw that holds counts.
    expected_counts
        Take non-negative non-integers that are neither log values nor normalised, such as RSEM's,
        and hand them out as float32. A matrix of integers still comes first.
    keep_empty
        Hand out cells without a single count instead of refusing the file.
    backed
        True: read from disk as rows are asked for. False: read all now. None: read now what takes
        less than 512 MB. An AnnData is used as it is.

    Raises
    ------
    MissingFileError, UnreadableFileError
        No such path; truncated, or of a format scfm does not know.
    CountsError
        No matrix holds raw counts. The message says what each holds, and the remedy.
    EmptyCellError
        Cells without a single count, unless they are kept.
    """
    return counts_in(
        open_container(source),
        layer=layer,
        expected_counts=expected_counts,
        keep_empty=keep_empty,
        backed=backed,
    )


def counts_in(
    container: Container,
    *,
    layer: str | None = None,
    expected_counts: bool = False,
    keep_empty: bool = False,
    backed: bool | None = None,
) -> "CountsSource":
    """As open_counts, of a container that is open; it is closed where that fails."""
    try:
        with reading(container.name):
            candidate, matrix = _choose(container, layer, expected_counts)
            rows = _as_rows(container, candidate, matrix, backed)
            opened = CountsSource(container, candidate, rows, expected_counts, keep_empty)
        if opened.in_memory and opened.path:
            _ = opened.obs
            container.close()  # the user may write to the file, which HDF5 forbids while it is open
    except BaseException:
        container.close()
        raise
    logger.info("%s: raw counts from %s", opened.name, opened.counts_from)
    return opened


class CountsSource:
    """Raw counts of one file or AnnData: a scfm.data.counts.CellSource.

    Also a context manager; ``close`` lets go of the file. It can be pickled while its file exists.

    Attributes
    ----------
    name
        The path, or "AnnData".
    counts_from
        "X", "layers['counts']", "raw.X"; in a 10x file of several genomes, the genome.
    format
        "h5ad", "zarr", "annbatch", "10x h5", "10x mtx", "loom", "soma", "census", "AnnData".
    path
        None for an AnnData and for a SOMA database, which ``name`` addresses.
    in_memory
        Whether all counts are in memory; the file then is closed already.
    var, obs
        Tables of the columns and of the cells. A backed file's ``obs`` is read when asked for.
    """

    def __init__(
        self,
        container: Container,
        candidate: Candidate,
        rows: Rows,
        expected_counts: bool,
        keep_empty: bool = False,
    ) -> None:
        self._container, self._candidate, self._rows = container, candidate, rows
        self._expected_counts, self._keep_empty = expected_counts, keep_empty
        self.name, self.format, self.path = container.name, container.format, container.path
        self.counts_from = candidate.label
        self.n_cells = rows.shape[0]
        self.in_memory = rows.in_memory
        self.var: pd.DataFrame = candidate.read_var()
        if len(self.var) != rows.shape[1]:
            raise UnreadableFileError(
                f"{self.counts_from} has {rows.shape[1]:,} columns but its table of genes has "
                f"{len(self.var):,} rows."
            )
        self._column_map = None
        if candidate.is_kept is not None:
            is_kept = candidate.is_kept
            self._column_map = np.where(is_kept, np.cumsum(is_kept) - 1, -1).astype(np.int32)
            self.var = self.var.loc[is_kept]
        self._place = Place(self.name, self.counts_from, self.var.index)
        if not keep_empty:
            refuse_empty(rows.empty_rows(), self.n_cells, self.name)

    @property
    def obs(self) -> pd.DataFrame:
        return self._obs

    @cached_property
    def _obs(self) -> pd.DataFrame:
        with reading(self.name):
            obs = self._container.read_obs()
        if len(obs) != self.n_cells:
            raise UnreadableFileError(
                f"{self.name}: {self.counts_from} has {self.n_cells:,} rows but its table of cells "
                f"has {len(obs):,}."
            )
        return obs

    def rows(self, cell_index: Int[np.ndarray, " cell"]) -> CountRows:
        """These cells, in this order; one may be asked for twice.

        Raises CountsError, EmptyCellError, UnreadableFileError as ``open_counts``; IndexError.
        """
        cell_index = np.asarray(cell_index, dtype=np.int64)
        if cell_index.size and not 0 <= cell_index.min() <= cell_index.max() < self.n_cells:
            raise IndexError(f"{self.name} has cells 0 to {self.n_cells - 1}.")
        with reading(self.name):
            raw = self._rows.take(cell_index)
        return self._clean(raw, cell_index)

    def chunks(self, n_cells: int) -> Iterator[CountRows]:
        """All cells in file order, ``n_cells`` at a time; the last chunk may be shorter.

        Reading is done in larger blocks of its own, so small chunks cost nothing more. Raises as
        ``rows``, when the block with the offending cell is read.
        """
        if n_cells < 1:
            raise ValueError(f"n_cells must be at least 1, got {n_cells}")
        waiting: list[CountRows] = []
        for block in self.blocks():
            waiting.append(block)
            have = sum(rows.n_cells for rows in waiting)
            if have >= n_cells:
                rows = _joined(waiting)
                stop = have - have % n_cells
                yield from (_cut(rows, i, i + n_cells) for i in range(0, stop, n_cells))
                waiting = [_cut(rows, stop, have)] if stop < have else []
        if waiting:
            yield _joined(waiting)

    def blocks(self) -> Iterator[CountRows]:
        """All cells in file order, as many at a time as are read together; none is copied."""
        start = 0
        blocks = self._rows.blocks()
        while True:
            with reading(self.name):
                raw = next(blocks, None)
            if raw is None:
                return
            stop = start + len(raw.indptr) - 1
            yield self._clean(raw, np.arange(start, stop))
            start = stop

    def _clean(self, raw: RawRows, cell_index: np.ndarray) -> CountRows:
        return clean(
            raw,
            cell_index,
            place=self._place,
            column_map=self._column_map,
            expected_counts=self._expected_counts,
            keep_empty=self._keep_empty,
        )

    def fingerprint(self) -> str:
        """What identifies the content, in hex: a file's sha256; scfm.data.census for a database."""
        if self._container.fingerprint is not None:
            return self._container.fingerprint()
        if self.path is None:
            raise TypeError("An AnnData object has no fingerprint; use its file.")
        return sha256(self.path)

    def close(self) -> None:
        self._container.close()

    def __enter__(self) -> "CountsSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self):
        if self.format == "AnnData":
            raise TypeError("A source over an AnnData object cannot be pickled; use its file.")
        how = (self._expected_counts, self._keep_empty, not self.in_memory)
        return _reopened, (self.path or self.name, self._candidate.key, *how)


def _reopened(
    path: str | Path, layer: str, expected_counts: bool, keep_empty: bool, backed: bool
) -> CountsSource:
    return open_counts(
        path,
        layer=layer,
        expected_counts=expected_counts,
        keep_empty=keep_empty,
        backed=backed,
    )


def _choose(
    container: Container, layer: str | None, expected_counts: bool
) -> tuple[Candidate, Matrix]:
    """The candidate that holds counts, by a look at some rows of each."""
    candidates = _considered(container, layer)
    found: dict[str, tuple[Matrix, Verdict]] = {}
    for candidate in candidates:
        matrix = candidate.open()
        if 0 in matrix.shape:
            raise InputError(
                f"{container.name}: {candidate.label} is empty, {matrix.shape[0]:,} cells x "
                f"{matrix.shape[1]:,} genes. Give data with at least one cell and one gene."
            )
        verdict = judge(matrix.sample())
        if verdict.kind == "counts":
            _say_passed_over(container.name, candidate.label, found)
            return candidate, matrix
        found[candidate.label] = (matrix, verdict)
    if expected_counts:
        for candidate in candidates:
            matrix, verdict = found[candidate.label]
            if verdict.kind == "expected":
                return candidate, matrix
    raise _refusal(container, candidates, {label: v for label, (_, v) in found.items()})


def _considered(container: Container, layer: str | None) -> list[Candidate]:
    keys = [candidate.key for candidate in container.candidates]
    listed = ", ".join(keys) or "nothing"
    if layer is not None:
        named = [candidate for candidate in container.candidates if candidate.key == layer]
        if not named:
            raise CountsError(
                f"{container.name}: there is no {layer!r}; layer= (--layer) can be: {listed}."
            )
        return named[:1]  # a layer that is itself called "raw" or "X" gives way to these
    if container.must_choose:
        raise CountsError(
            f"{container.name}: holds the counts of {len(keys)} genomes: {listed}. "
            f"Say which to use: layer={keys[0]!r} (--layer {keys[0]})."
        )
    preferred = [c for c in container.candidates if c.label in PREFERRED]
    if not preferred:
        raise CountsError(
            f"{container.name}: has neither X nor layers['counts'] nor raw; there is: {listed}. "
            f"{REMEDY}"
        )
    return preferred


def _refusal(
    container: Container,
    candidates: list[Candidate],
    found: dict[str, Verdict],
) -> InputError:
    if all(verdict.kind == "empty" for verdict in found.values()):
        return EmptyCellError(
            f"{container.name}: none of the cells looked at has a count in "
            f"{', '.join(found)}. Filter them with scanpy.pp.filter_cells(adata, min_counts=1)."
        )
    sentences = "; ".join(f"{label} {verdict.found}" for label, verdict in found.items())
    remedy = REMEDY
    if any(verdict.kind == "expected" for verdict in found.values()):
        remedy = f"{EXPECTED_REMEDY} Else {remedy}"
    other = next(
        filter(_holds_counts, (c for c in container.candidates if c not in candidates)), None
    )
    if other:
        name = f"layer={other.key!r} (--layer {other.key})"
        remedy = f"{other.label} looks like raw counts: use {name}."
    return CountsError(f"{container.name}: {sentences}. {remedy}")


def _holds_counts(candidate: Candidate) -> bool:
    if candidate.key == BINS_LAYER:
        return False
    try:
        return judge(candidate.open().sample()).kind == "counts"
    except UnreadableFileError:  # it was not asked for, only looked at for a hint
        return False


def _say_passed_over(name: str, taken: str, found: dict[str, tuple[Matrix, Verdict]]) -> None:
    for label, (_, verdict) in found.items():
        logger.info("%s: %s %s; taking %s", name, label, verdict.found, taken)


def _as_rows(
    container: Container, candidate: Candidate, matrix: Matrix, backed: bool | None
) -> Rows:
    """Something rows can be read from, in memory where that was asked for or is cheap."""
    size = matrix.n_stored * BYTES_A_VALUE
    if isinstance(matrix, SparseColumns):
        if size > MEMORY_LIMIT:
            warnings.warn(
                f"{container.name}: {candidate.label} is stored by gene (CSC) and has to be read "
                f"whole, which takes about {2 * size / 2**30:.1f} GB. Store it by cell to avoid "
                "that: adata.X = adata.X.tocsr().",
                ScfmWarning,
                stacklevel=3,
            )
        return matrix.load()
    wants_memory = size <= MEMORY_LIMIT if backed is None else not backed
    is_stored = container.format != "AnnData"
    return matrix.load() if wants_memory and is_stored else matrix


def _joined(blocks: list[CountRows]) -> CountRows:
    if len(blocks) == 1:
        return blocks[0]
    starts = np.cumsum([0] + [int(block.indptr[-1]) for block in blocks[:-1]])
    pointers = [block.indptr[1:] + start for block, start in zip(blocks, starts, strict=True)]
    return CountRows(
        indptr=np.concatenate([[0], *pointers]),
        indices=np.concatenate([block.indices for block in blocks]),
        counts=np.concatenate([block.counts for block in blocks]),
        cell_index=np.concatenate([block.cell_index for block in blocks]),
    )


def _cut(rows: CountRows, start: int, stop: int) -> CountRows:
    first, last = rows.indptr[start], rows.indptr[stop]
    return CountRows(
        indptr=rows.indptr[start : stop + 1] - first,
        indices=rows.indices[first:last],
        counts=rows.counts[first:last],
        cell_index=rows.cell_index[start:stop],
    )
