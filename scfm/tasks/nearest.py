"""Unit vectors -> the reference vectors of largest cosine. Exact, or approximate where many.

in   unit vectors (or zeros) of query and reference cells
out  each query cell's nearest reference cells, nearest first, and their cosines

Exact is the rule: products of a block in float32 find the few candidates of each cell, whose
cosines are then taken in float64, so that no answer hangs on the block or on BLAS. Its cost grows
with the reference, so that of more than 100,000 cells faiss finds the candidates where it is
installed: of what was tried on 100,000 cells its inverted lists were made fastest (3 s of one core,
so that none need be saved) at a recall of 0.999; pynndescent took minutes.
"""

import importlib.util
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from scfm.data.compiled import compiled
from scfm.errors import ConfigError

# Cosines are compared on this grid: two that differ by less are a tie. Without it a tie would be
# decided by the last bit of a sum.
COSINE_STEPS = 10**9
BLOCK_VALUES = 1 << 22  # cosines held at a time: 16 MB, however many query cells
MOST_EXACT = 100_000  # reference cells up to which "auto" is exact
SINGLE_STEP = 2.0**-24  # half the gap between float32 numbers just below 1
LISTS_SEARCHED = 32
SPARE = 8  # approximate neighbours that are asked for beyond those wanted, for ties

Searching = Literal["auto", "exact", "approximate"]
SEARCHES: tuple[Searching, ...] = get_args(Searching)


@runtime_checkable
class Search(Protocol):
    """Finds neighbours among the reference vectors it was made of."""

    def nearest(
        self, query: Float[np.ndarray, "cell d"], n_neighbours: int
    ) -> tuple[Int[np.ndarray, "cell k"], Float[np.ndarray, "cell k"]]: ...


@dataclass(frozen=True)
class ExactSearch:
    """All cosines, block by block."""

    reference: Float[np.ndarray, "reference d"] = field(repr=False)

    @cached_property
    def _single(self) -> Float[np.ndarray, "reference d"]:
        return self.reference.astype(np.float32)

    def nearest(
        self,
        query: Float[np.ndarray, "cell d"],
        n_neighbours: int,
        *,
        own: Int[np.ndarray, " cell"] | None = None,
        block: int | None = None,
    ) -> tuple[Int[np.ndarray, "cell k"], Float[np.ndarray, "cell k"]]:
        """As the function `nearest`."""
        n_query, n_reference = len(query), len(self.reference)
        k = min(n_neighbours, n_reference - (own is not None))
        assert k > 0
        block = block or max(1, BLOCK_VALUES // n_reference)
        own = np.full(n_query, -1, dtype=np.int64) if own is None else own
        query = np.ascontiguousarray(query, dtype=np.float64)
        neighbour = np.empty((n_query, k), dtype=np.int64)
        steps = np.empty((n_query, k), dtype=np.int64)
        # what float32 can be off by: rounding of both vectors and of a sum of d products
        slack = np.float32((query.shape[1] + 4) * SINGLE_STEP)
        for first in range(0, n_query, block):
            rows = slice(first, first + block)
            coarse = query[rows].astype(np.float32) @ self._single.T
            _select(
                *(coarse, slack, query[rows], self.reference, own[rows]),
                *(neighbour[rows], steps[rows]),
            )
        return neighbour, np.clip(steps / COSINE_STEPS, -1.0, 1.0)


@dataclass(frozen=True)
class ApproximateSearch:
    """The lists of near vectors (faiss, IVF) that lie closest to a query; made at the first one.

    The same in every process: k-means that makes the lists is seeded, and what is found is ranked
    by cosines in float64 as the exact search ranks it.
    """

    reference: Float[np.ndarray, "reference d"] = field(repr=False)

    @cached_property
    def _index(self) -> Any:
        faiss = _faiss()
        n, d = self.reference.shape
        n_lists = max(1, min(int(4 * np.sqrt(n)), n // 64))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, n_lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.niter, index.nprobe = 8, LISTS_SEARCHED
        vectors = np.ascontiguousarray(self.reference, dtype=np.float32)
        index.train(vectors[:: 1 + n // (128 * n_lists)])
        index.add(vectors)
        return index

    def nearest(
        self, query: Float[np.ndarray, "cell d"], n_neighbours: int
    ) -> tuple[Int[np.ndarray, "cell k"], Float[np.ndarray, "cell k"]]:
        """Nearly all of the nearest, with exact cosines."""
        k = min(n_neighbours, len(self.reference))
        if len(query) == 0:
            return np.empty((0, k), dtype=np.int64), np.empty((0, k))
        asked = min(k + SPARE, len(self.reference))
        _, found = self._index.search(np.ascontiguousarray(query, dtype=np.float32), asked)
        found = np.asarray(found, dtype=np.int64)
        cosine = np.einsum("cd,ckd->ck", query, self.reference[found])
        steps = np.where(found < 0, -(2**62), np.rint(cosine * COSINE_STEPS).astype(np.int64))
        order = np.lexsort((found, -steps), axis=1)[:, :k]
        neighbour = np.take_along_axis(found, order, 1)
        cosine = np.clip(np.take_along_axis(steps, order, 1) / COSINE_STEPS, -1.0, 1.0)
        if (short := np.flatnonzero((neighbour < 0).any(1))).size:  # lists of too few vectors
            exact = ExactSearch(self.reference).nearest(query[short], k)
            neighbour[short], cosine[short] = exact
        return neighbour, cosine


def searched(reference: Float[np.ndarray, "reference d"], how: Searching = "auto") -> Search:
    """The search over some vectors; "auto" is exact up to `MOST_EXACT` of them, or without faiss.

    Raises ConfigError for "approximate" where faiss is not installed.
    """
    if how == "approximate":
        _faiss()
        return ApproximateSearch(reference)
    is_large = how == "auto" and len(reference) > MOST_EXACT
    if is_large and importlib.util.find_spec("faiss") is not None:
        return ApproximateSearch(reference)
    return ExactSearch(reference)


def _faiss() -> Any:
    try:
        with warnings.catch_warnings():  # of the way its bindings are generated
            warnings.simplefilter("ignore", DeprecationWarning)
            import faiss
    except ImportError as error:
        raise ConfigError(
            "Approximate search needs faiss: pip install 'scfm[ann]'. Without it the search is "
            "exact, and slower for references of more than 100,000 cells."
        ) from error
    return faiss


def nearest(
    query: Float[np.ndarray, "cell d"],
    reference: Float[np.ndarray, "reference d"],
    n_neighbours: int,
    *,
    own: Int[np.ndarray, " cell"] | None = None,
    block: int | None = None,
) -> tuple[Int[np.ndarray, "cell k"], Float[np.ndarray, "cell k"]]:
    """Reference cells of largest cosine to each query cell, nearest first, and their cosines.

    Both sides are unit vectors (or zeros). Equal cosines go to the lower reference index.
    ``own`` is each query cell's index in the reference, where it must not be its own neighbour;
    ``block`` is how many query cells are held at a time; nothing hangs on it.
    """
    return ExactSearch(reference).nearest(query, n_neighbours, own=own, block=block)


@compiled
def _select(coarse, slack, query, reference, own, neighbour, steps):
    """The k best of each row by cosine in float64, of equals the lower index.

    ``coarse`` may be off by ``slack``: what lies further than that below the k-th best so far
    cannot be among them, and is passed over.
    """
    n_cells, n_reference = coarse.shape
    n_dimensions, k = query.shape[1], neighbour.shape[1]
    for cell in range(n_cells):
        n_found, bar = 0, np.float32(-np.inf)
        for other in range(n_reference):
            if coarse[cell, other] < bar or other == own[cell]:
                continue
            cosine = 0.0
            for i in range(n_dimensions):
                cosine += query[cell, i] * reference[other, i]
            step = np.int64(np.rint(cosine * 1e9))
            if n_found == k and step <= steps[cell, k - 1]:
                continue
            at = min(n_found, k - 1)
            while at > 0 and steps[cell, at - 1] < step:
                steps[cell, at] = steps[cell, at - 1]
                neighbour[cell, at] = neighbour[cell, at - 1]
                at -= 1
            steps[cell, at], neighbour[cell, at] = step, other
            n_found = min(n_found + 1, k)
            if n_found == k:
                bar = np.float32(steps[cell, k - 1] / 1e9) - slack
