"""The narrow waist: cells as tokens, packed; windows of DNA. NumPy and torch arrays alike; imports
neither.

A batch of cells is one flat run of tokens; cell ``i`` owns ``offsets[i]:offsets[i + 1]``. No
padding exists until an attention kernel wants it, so no result can depend on it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Bool, Float, Int, Shaped


@dataclass(frozen=True)
class CellBatch:
    """Cells ready for a model.

    Attributes
    ----------
    gene_ids
        Vocabulary ids. Within a cell: [CELL], [T], [S] (of these, those the vocabulary has), then
        genes in ascending id.
    values
        What the model is shown: log1p of counts per 10,000 (nats) for genes, log10 of a total
        count for [T] and [S], 0 for [CELL] and for targets, whose value the model must not see.
    offsets
        Token range of each cell.
    is_target
        True where the model must guess: hidden expressed genes and drawn zeros.
    target_values
        log1p of counts per 10,000 at the cell's raw depth; 0 where ``is_target`` is False.
    library_size
        Raw counts of the cell over all measured genes, in or out of the vocabulary.
    source_depth, target_depth
        log10 of the total count the shown values come from (S), and of the one wanted (T).
    labels
        Integer codes of obs columns, where a task needs them.
    cell_index
        Which cell of the run's data this is.
    is_hidden
        True where the encoder must not see the token; None: just where ``is_target`` is True. It
        differs where a target is shown all the same (its own value, or a wrong one), and where a
        gene is left out that is no target. A hidden token's value, where it is not 0, is for a
        decoder alone. Read it through `hidden`.
    """

    gene_ids: Int[Any, " token"]
    values: Float[Any, " token"]
    offsets: Int[Any, " bound"]
    is_target: Bool[Any, " token"]
    target_values: Float[Any, " token"]
    library_size: Float[Any, " cell"]
    source_depth: Float[Any, " cell"]
    target_depth: Float[Any, " cell"]
    cell_index: Int[Any, " cell"]
    labels: Mapping[str, Shaped[Any, " cell"]] = field(default_factory=dict)
    is_hidden: Bool[Any, " token"] | None = None

    @property
    def hidden(self) -> Bool[Any, " token"]:
        """True where the encoder must not see the token."""
        return self.is_target if self.is_hidden is None else self.is_hidden

    @property
    def n_cells(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_tokens(self) -> int:
        return len(self.gene_ids)

    def map(self, convert: Callable[[Any], Any]) -> "CellBatch":
        """The same batch with every array passed through ``convert`` (to a device, to torch)."""
        arrays = {
            name: convert(value)
            for name, value in vars(self).items()
            if name != "labels" and value is not None
        }
        return replace(self, **arrays, labels={k: convert(v) for k, v in self.labels.items()})


@dataclass(frozen=True)
class CellStates:
    """What an encoder makes of a batch.

    Attributes
    ----------
    tokens
        Hidden states of the tokens the encoder saw, packed.
    offsets
        Range of each cell in ``tokens``.
    cell
        One state per cell.
    """

    tokens: Float[Any, "visible d"]
    offsets: Int[Any, " bound"]
    cell: Float[Any, "cell d"]


@dataclass(frozen=True)
class RegionBatch:
    """Windows of DNA with what is known of their accessibility, ready for a model.

    An example is a window seen in one group of cells (a cell, a metacell, a cell type), or in none.

    Attributes
    ----------
    sequence
        One-hot over A, C, G, T; all 0 at N and past a chromosome's end.
    signal
        Accessibility along the window, a row a track: log1p of insertions (or fragments) a base
        pair, scaled to 20 million in all; no rows where a model reads sequence only.
    labels
        1 bound, 0 not bound, -1 unknown, for every task (a TF, or a TF in a cell type).
    region_index
        Which region of the source this is.
    group_index
        Which group of cells; -1 where there is none.
    cell
        Embedding of the group's cells by a model of RNA; None where a run has none.
    has_cell
        False where a group has no embedding: its row in ``cell`` is 0 and means nothing.
    """

    sequence: Float[Any, "window 4 base"]
    signal: Float[Any, "window track base"]
    labels: Int[Any, "window task"]
    region_index: Int[Any, " window"]
    group_index: Int[Any, " window"]
    cell: Float[Any, "window d"] | None = None
    has_cell: Bool[Any, " window"] | None = None

    @property
    def n_windows(self) -> int:
        return len(self.region_index)

    def map(self, convert: Callable[[Any], Any]) -> "RegionBatch":
        """The same batch with every array passed through ``convert`` (to a device, to torch)."""
        arrays = {k: convert(v) for k, v in vars(self).items() if v is not None}
        return replace(self, **arrays)
