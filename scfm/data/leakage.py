"""Are held-out cells known from training? Copies and near copies across the two sides, counted.

in   sources of cells, who trains and who is held out
out  Leakage: how many held-out cells have an exact or a near copy among the training cells

Exact copies have the same counts of the same genes, in whatever file and order of columns
(`EncodedCells.cell_hash`). Near copies are found by sketches that two profiles share with a
probability that grows with their similarity (`EncodedCells.sketches`), and each is confirmed by
comparing the two cells: with a Jaccard similarity J of their sets of (gene, count) a pair is seen
with probability 1 - (1 - J^12)^2, 0.99 at 0.99, 0.79 at 0.95, 0.48 at 0.9. So the number of near
copies is a lower bound, and no false alarm is in it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt64

from scfm.data.blocked import CHUNK_CELLS, BlockedSource
from scfm.data.blocks import encode, gene_key64
from scfm.data.gene_reading import VocabularyGenes
from scfm.data.gene_tables import Species
from scfm.data.identity import identify
from scfm.data.mixing import GOLDEN, mix64_array
from scfm.data.store import Store

FEWEST_GENES = 20  # cells of fewer are alike by chance
NEAR = 0.8  # Jaccard similarity from which two cells are near copies
MOST_PAIRS = 4096  # pairs of cells compared; beyond, the count says so
MOST_OF_A_WORD = 4  # cells on either side
MOST_EXAMPLES = 5


@dataclass(frozen=True)
class KeyedSource:
    """Cells, and a 64-bit name of each of their columns that other sources use, too."""

    source: Store | BlockedSource
    keys: UInt64[np.ndarray, " column"]


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """What of the held-out side is on the training side.

    Attributes
    ----------
    n_held_out
        Held-out cells.
    n_compared
        Of these, cells of at least 20 expressed genes: the others are alike by chance.
    exact
        Held-out cells with an exact copy among the training cells.
    near
        Further ones with a near copy. A lower bound.
    is_complete
        Whether all suspected pairs were compared; else ``near`` is of the first 4,096.
    examples
        (held-out cell, training cell, similarity), by the pool's numbers.
    """

    n_held_out: int
    n_compared: int
    exact: int
    near: int
    is_complete: bool
    examples: tuple[tuple[int, int, float], ...]

    def __str__(self) -> str:
        at_least = "" if self.is_complete else "at least "
        return (
            f"{self.exact:,} of {self.n_compared:,} held-out cells (those of {FEWEST_GENES} genes "
            f"and more) are exact copies of training cells, {at_least}{self.near:,} more are near "
            "copies"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Profiles:
    """Names of all cells' contents: the hash and two sketches."""

    words: tuple[UInt64[np.ndarray, " cell"], ...]
    n_genes: Int[np.ndarray, " cell"]


def keyed(
    source: Store | BlockedSource, species: Species, vocabulary: VocabularyGenes
) -> KeyedSource:
    """A source with its columns named as in every store. A store has its own species and names."""
    if isinstance(source, Store):
        return KeyedSource(source, gene_key64(source.genes.keys))
    return KeyedSource(source, gene_key64(identify(source.var, species, vocabulary).keys))


def holds_whole_counts(source: Store | BlockedSource) -> bool:
    """Whether cells can be compared at all: expected counts hardly ever agree exactly."""
    if isinstance(source, Store):
        return True
    return np.issubdtype(source.source.rows(np.zeros(1, dtype=np.int64)).counts.dtype, np.integer)


def find_leaks(
    sources: Sequence[KeyedSource],
    is_training: Bool[np.ndarray, " cell"],
    is_held_out: Bool[np.ndarray, " cell"],
) -> Leakage:
    """Compare the two sides. Cells are numbered through the sources in order.

    Stores know the hashes of their cells; a file is read once. Sources must hold whole counts.
    """
    parts = [_profiles(keyed_source) for keyed_source in sources]
    has_enough = np.concatenate([part.n_genes for part in parts]) >= FEWEST_GENES
    held_out = np.flatnonzero(is_held_out & has_enough)
    training = np.flatnonzero(is_training & has_enough)
    columns = [np.concatenate(words) for words in zip(*(p.words for p in parts), strict=True)]
    copied, exact = _pairs(columns[0], held_out, training)
    suspected = np.concatenate([_pairs(words, held_out, training)[1] for words in columns[1:]])
    suspected = np.unique(suspected[~np.isin(suspected[:, 0], copied)], axis=0)
    compared = suspected[:MOST_PAIRS]
    similarity = _similarities(sources, compared)
    near = compared[similarity >= NEAR]
    shown = [*((*pair, 1.0) for pair in exact.tolist()), *_with(near, similarity)]
    return Leakage(
        n_held_out=int(is_held_out.sum()),
        n_compared=len(held_out),
        exact=len(copied),
        near=len(np.unique(near[:, 0])),
        is_complete=len(compared) == len(suspected),
        examples=tuple(shown[:MOST_EXAMPLES]),
    )


def _with(near: np.ndarray, similarity: np.ndarray) -> list[tuple[int, int, float]]:
    found = similarity[similarity >= NEAR].round(3).tolist()
    return [(a, b, s) for (a, b), s in zip(near.tolist(), found, strict=True)]


def _profiles(keyed_source: KeyedSource) -> _Profiles:
    source = keyed_source.source
    if isinstance(source, Store):
        names = ("cell_hash", "sketch_a", "sketch_b")
        return _Profiles(tuple(map(source.numbers, names)), source.numbers("n_genes"))
    columns = np.arange(len(keyed_source.keys), dtype=np.int32)
    parts = [encode(rows, columns, keyed_source.keys, 0) for rows in source.chunks(CHUNK_CELLS)]
    sketches = np.concatenate([part.sketches for part in parts])
    hashes = np.concatenate([part.cell_hash for part in parts])
    n_genes = np.concatenate([part.n_genes for part in parts]).astype(np.int64)
    return _Profiles((hashes, sketches[:, 0].copy(), sketches[:, 1].copy()), n_genes)


def _pairs(
    words: UInt64[np.ndarray, " cell"],
    held_out: Int[np.ndarray, " held_out"],
    training: Int[np.ndarray, " training"],
) -> tuple[Int[np.ndarray, " copied"], Int[np.ndarray, "pair 2"]]:
    """Held-out cells whose word a training cell has; and (held-out cell, training cell) of a word.

    Of the pairs of one word only those of its first few cells on either side: a word may be shared
    by very many.
    """
    order = held_out[np.argsort(words[held_out], kind="stable")]
    wanted = words[order]
    # the training side may be large: it is only looked up, never sorted
    left = np.searchsorted(wanted, words[training], side="left")
    right = np.searchsorted(wanted, words[training], side="right")
    hits = np.flatnonzero(right > left)
    hits = hits[np.argsort(left[hits], kind="stable")]
    left, right, training = left[hits], right[hits], training[hits]
    starts, first, of_word = np.unique(left, return_index=True, return_inverse=True)
    is_copied = np.zeros(len(order) + 1, dtype=np.int64)
    np.add.at(is_copied, starts, 1)
    np.add.at(is_copied, right[first], -1)
    copied = np.sort(order[np.cumsum(is_copied[:-1]) > 0])
    is_early = np.arange(len(hits)) - first[of_word] < MOST_OF_A_WORD
    pairs = [
        np.stack([order[left[here] + i], training[here]], axis=1)
        for i in range(MOST_OF_A_WORD)
        for here in [is_early & (left + i < right)]
    ]
    return copied, np.unique(np.concatenate(pairs), axis=0)


def _similarities(sources: Sequence[KeyedSource], pairs: Int[np.ndarray, "pair 2"]) -> np.ndarray:
    """Jaccard similarity of each pair's sets of (gene, count)."""
    profiles = _sets_of(sources, np.unique(pairs))
    found = np.zeros(len(pairs))
    for i, (one, other) in enumerate(pairs.tolist()):
        shared = len(np.intersect1d(profiles[one], profiles[other], assume_unique=True))
        found[i] = shared / (len(profiles[one]) + len(profiles[other]) - shared)
    return found


def _sets_of(
    sources: Sequence[KeyedSource], cells: Int[np.ndarray, " some"]
) -> dict[int, UInt64[np.ndarray, " nonzero"]]:
    """A word for each (gene, count) of these cells."""
    starts = np.cumsum([0] + [keyed_source.source.n_cells for keyed_source in sources])
    found = {}
    for keyed_source, start, stop in zip(sources, starts[:-1], starts[1:], strict=True):
        mine = cells[(cells >= start) & (cells < stop)]
        if not len(mine):
            continue
        rows = keyed_source.source.rows(mine - start)
        words = mix64_array(
            keyed_source.keys[rows.indices] + rows.counts.astype(np.uint64) * GOLDEN
        )
        found |= dict(zip(mine.tolist(), np.split(words, rows.indptr[1:-1]), strict=True))
    return found
