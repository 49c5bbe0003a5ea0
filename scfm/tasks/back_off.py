"""Where a cell's finest type is in doubt, the finest one above it that is not. NumPy only.

in   TypeProbabilities, the ontology's term of each class
out  BackedOff: a term a cell with its probability, or "unknown"

A cell is of a term if it is of any class at or below it, so a term's probability is the sum over
these classes. The deepest term whose probability passes the threshold is taken: a cell that may be
a CD4 or a CD8 T cell is a T cell. Source: hedging, Deng et al. 2012, doi:10.1109/CVPR.2012.6248086.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from scfm.data.cell_ontology import CellOntology
from scfm.errors import ConfigError, LabelError
from scfm.tasks.type_probabilities import TypeProbabilities

THRESHOLD = 0.8
ROUNDING = 1e-9  # sums of probabilities may fall short of what they are by so much
# What every cell of a tissue is, whatever its type: to say it is to say nothing. The terms are of
# traits (a nucleus, one nucleus, motility), not of kinds.
NO_TYPE = (
    "CL:0000000",  # cell
    "CL:0000255",  # eukaryotic cell
    "CL:0002242",  # nucleate cell
    "CL:0000226",  # single nucleate cell
    "CL:0000219",  # motile cell
)


@dataclass(frozen=True)
class BackedOff:
    """Some cells' types in terms of an ontology.

    Attributes
    ----------
    terms, names
        What a cell may be called, the more general first.
    codes
        Of each cell, -1 where it is unknown.
    confidence
        Probability of the cell's term. Of an unknown cell that of its most probable one, which is
        below the threshold; 0 for one that is unlike all that was learned.
    """

    terms: tuple[str, ...]
    names: tuple[str, ...]
    codes: Int[np.ndarray, " cell"] = field(repr=False)
    confidence: Float[np.ndarray, " cell"] = field(repr=False)

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def term(self) -> Shaped[np.ndarray, " cell"]:
        """Id of each cell's term, "" where it is unknown."""
        return np.array([*self.terms, ""], dtype=object)[self.codes]

    def labels(self, unknown: str = "unknown") -> Shaped[np.ndarray, " cell"]:
        """Name of each cell's term."""
        return np.array([*self.names, unknown], dtype=object)[self.codes]


@dataclass(frozen=True)
class Backing:
    """The terms at or above some classes, and how a cell gets one.

    Attributes
    ----------
    classes
        As TypeProbabilities has them.
    class_terms
        The term of each; "" for a class without one, whose probability then speaks for no term.
    threshold
        Probability a term must have, above 0.
    no_type
        Terms that are too general to be an answer.
    """

    classes: tuple[str, ...]
    class_terms: tuple[str, ...]
    ontology: CellOntology = field(repr=False)
    threshold: float = THRESHOLD
    no_type: tuple[str, ...] = NO_TYPE

    def __post_init__(self) -> None:
        assert len(self.classes) == len(self.class_terms)
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"The threshold must lie in (0, 1], got {self.threshold}.")
        strange = [term for term in self.class_terms if term and term not in self.ontology]
        if strange:
            raise LabelError(
                f"{', '.join(strange[:5])}: no term in use in the Cell Ontology "
                f"{self.ontology.version}. Wanted ids such as CL:0000084; scfm ontology find NAME "
                "says which."
            )

    @cached_property
    def terms(self) -> tuple[str, ...]:
        """Every possible answer, the less deep first, of equals the least id."""
        above = {a for term in self.class_terms if term for a in self.ontology.lineage(term)}
        kept = above.difference(self.no_type)
        return tuple(sorted(kept, key=lambda term: (self.ontology.depth(term), term)))

    @cached_property
    def holds(self) -> Bool[np.ndarray, "term type"]:
        """Whether a class is at or below a term."""
        lineages = [
            self.ontology.lineage(term) if term else frozenset[str]() for term in self.class_terms
        ]
        rows = [[term in lineage for lineage in lineages] for term in self.terms]
        return np.array(rows, dtype=bool).reshape(len(self.terms), len(self.classes))

    def probabilities(self, found: TypeProbabilities) -> Float[np.ndarray, "cell term"]:
        """Probability of every term of ``terms``; 0 for outliers. Rows sum to no fixed number."""
        assert found.classes == self.classes, "the classes are not those of the terms"
        sums = np.zeros((len(found), len(self.terms)))
        # class by class: the order of additions then is the same for any number of cells
        for column, theirs in enumerate(self.holds.T):
            sums[:, theirs] += found.probabilities[:, column, None]
        return np.where(found.is_outlier[:, None], 0.0, np.minimum(sums, 1.0))

    def back_off(self, found: TypeProbabilities) -> BackedOff:
        """The deepest term of each cell that passes; of equals the most probable, then least id."""
        sums, cells = self.probabilities(found), np.arange(len(found))
        codes = np.full(len(found), -1, dtype=np.int64)
        passes = sums >= self.threshold - ROUNDING
        depths = np.array([self.ontology.depth(term) for term in self.terms], dtype=np.int64)
        for depth in np.unique(depths)[::-1]:
            at = np.flatnonzero(depths == depth)
            best = at[np.where(passes[:, at], sums[:, at], -1.0).argmax(1)]
            codes = np.where((codes < 0) & passes[cells, best], best, codes)
        most = sums.max(1, initial=0.0)
        own = sums[cells, codes] if self.terms else most
        names = tuple(map(self.ontology.name, self.terms))
        return BackedOff(self.terms, names, codes, np.where(codes < 0, most, own))


def back_off(
    found: TypeProbabilities,
    terms: Mapping[str, str] | Sequence[str],
    ontology: CellOntology,
    threshold: float = THRESHOLD,
) -> BackedOff:
    """The deepest term whose probability passes the threshold, for every cell.

    ``terms`` is the term of each class, by name or in order; "" or none for a class without one.
    A cell is unknown where nothing passes but what every cell is (`NO_TYPE`), and where it is an
    outlier. Raises ConfigError for a threshold outside (0, 1], LabelError for what is no term.
    """
    if isinstance(terms, Mapping):
        terms = [terms.get(name, "") for name in found.classes]
    return Backing(found.classes, tuple(terms), ontology, threshold).back_off(found)
