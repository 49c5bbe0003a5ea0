"""An annbatch collection, many AnnData groups in one zarr store -> one Container.

in   the Containers of the groups dataset_0, dataset_1, ... of the same genes
out  one Container, their rows one below the other in the order of their numbers

annbatch itself, which needs Python 3.12, is not needed to read what it wrote: a collection is zarr
with a mark on its root. The order is that in which annbatch numbers the rows.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scfm.data.container import Candidate, Container
from scfm.data.matrices import (
    RawRows,
    Rows,
    SparseColumns,
    SparseRows,
    gathered,
    spread_rows,
    stacked,
)
from scfm.errors import UnreadableFileError

ENCODING = "annbatch-preshuffled"
_MEMBER = re.compile(r"dataset_(\d+)$")


def is_collection(root: Any) -> bool:
    """Whether a zarr group is marked as annbatch marks its collections."""
    return root.attrs.get("encoding-type") == ENCODING


def members_of(root: Any) -> list[str]:
    """Names of a collection's groups, by number: dataset_10 follows dataset_9."""
    found = {int(match[1]): key for key in list(root.keys()) if (match := _MEMBER.match(key))}
    return [found[number] for number in sorted(found)]


def stack_containers(
    members: Sequence[Container], path: Path, close: Callable[[], None]
) -> Container:
    """Containers of the same genes as one.

    Raises UnreadableFileError: no member, genes that differ, no matrix that all of them have.
    """
    if not members:
        raise UnreadableFileError(
            f"{path}: is an annbatch collection without a dataset. Fill it first: "
            "annbatch.DatasetCollection(PATH).add_adatas([...])."
        )
    places = [{c.label: c for c in member.candidates} for member in members]
    shared = [label for label in places[0] if all(label in place for place in places)]
    if not shared:
        raise UnreadableFileError(
            f"{path}: no matrix is in all of its {len(members)} datasets; the first holds "
            f"{', '.join(places[0]) or 'none'}."
        )
    candidates = []
    for label in shared:
        parts = [place[label] for place in places]
        candidates.append(
            Candidate(
                label=label,
                key=parts[0].key,
                open=partial(_open_stacked, parts),
                read_var=partial(_read_var, parts, members, path),
            )
        )
    return Container(
        name=str(path),
        format="annbatch",
        path=path,
        candidates=candidates,
        read_obs=partial(_read_obs, members),
        close=close,
    )


class StackedRows:
    """Matrices of the same columns, one below the other: scfm.data.matrices.Rows."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0] + [part.shape[0] for part in parts])
        self.shape = (int(self.starts[-1]), parts[0].shape[1])

    @property
    def n_stored(self) -> int:
        return sum(part.n_stored for part in self.parts)

    @property
    def in_memory(self) -> bool:
        return all(part.in_memory for part in self.parts)

    def empty_rows(self) -> np.ndarray:
        pairs = zip(self.parts, self.starts, strict=False)
        return np.concatenate([part.empty_rows() + start for part, start in pairs])

    def blocks(self) -> Iterator[RawRows]:
        for part in self.parts:
            yield from part.blocks()

    def take(self, rows: np.ndarray) -> RawRows:
        """These rows, in this order; every part is asked once."""
        owner = np.searchsorted(self.starts, rows, side="right") - 1
        order = np.argsort(owner, kind="stable")
        owners, firsts = np.unique(owner[order], return_index=True)
        groups = np.split(order, firsts[1:])
        pieces = [
            self.parts[part].take(rows[group] - self.starts[part])
            for part, group in zip(owners, groups, strict=False)
        ]
        if not pieces:
            return self.parts[0].take(rows)
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        return gathered(stacked(pieces), place)

    def sample(self) -> RawRows:
        return self.take(spread_rows(self.shape[0]))

    def load(self) -> SparseRows:
        parts = [part.load() for part in self.parts]
        rows = stacked([RawRows(part.indptr, part.indices, part.values) for part in parts])
        return SparseRows(rows.indptr, rows.indices, rows.values, self.shape[1])


def _open_stacked(parts: Sequence[Candidate]) -> StackedRows:
    opened = []
    for part in parts:
        matrix = part.open()
        if isinstance(matrix, SparseColumns):
            raise UnreadableFileError(
                f"{part.label} is stored by gene (CSC), which neither annbatch nor scfm can read "
                "by cells. Write the collection again from matrices in CSR: adata.X.tocsr()."
            )
        opened.append(matrix)
    widths = sorted({matrix.shape[1] for matrix in opened})
    if len(widths) > 1:
        raise UnreadableFileError(
            f"{parts[0].label} has {widths[0]:,} columns in one dataset and {widths[-1]:,} in "
            "another."
        )
    return StackedRows(opened)


def _read_var(parts: Sequence[Candidate], members: Sequence[Container], path: Path) -> pd.DataFrame:
    """The first dataset's table; the others must list the same genes in the same order."""
    first = parts[0].read_var()
    for part, member in zip(parts[1:], members[1:], strict=True):
        if not part.read_var().index.equals(first.index):
            raise UnreadableFileError(
                f"{path}: the genes of {member.name} are not those of {members[0].name}, in the "
                "same order. Write the collection again with annbatch, which joins them."
            )
    return first


def _read_obs(members: Sequence[Container]) -> pd.DataFrame:
    """One below the other. Categories are united, so that columns stay categorical."""
    frames = [member.read_obs() for member in members]
    for column in frames[0]:
        parts = [frame[column] for frame in frames if column in frame]
        if len(parts) == len(frames) and all(
            isinstance(part.dtype, pd.CategoricalDtype) for part in parts
        ):
            united = pd.api.types.union_categoricals([part.array for part in parts])
            for frame in frames:
                frame[column] = frame[column].cat.set_categories(united.categories)
    return pd.concat(frames)
