"""Labelled cells of one model, ready to label others: what `scfm reference build` saves.

in   a fitted NeighbourClassifier, what it was fitted on, how far it can be trusted
out  Reference: calibrated TypeProbabilities of query cells, and the cells that support them
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float, Num

from scfm.errors import ConfigError, GeneCoverageError, ModelError
from scfm.tasks.neighbours import NeighbourClassifier, Support
from scfm.tasks.probability_calibration import ProbabilityCalibration
from scfm.tasks.prototypes import PrototypeClassifier
from scfm.tasks.type_probabilities import TypeProbabilities

Vote = Literal["neighbours", "prototypes"]
VOTES: tuple[Vote, ...] = get_args(Vote)
FEWEST_SHARED = 0.1  # of the genes of either side: fewer, and embeddings are of other genes


@dataclass(frozen=True)
class Answer:
    """What a reference says of some cells; ``support`` where neighbours were asked."""

    probabilities: TypeProbabilities
    support: Support | None


@dataclass(frozen=True)
class Reference:
    """A labelled data set in one model's embedding.

    Attributes
    ----------
    voters, prototypes
        The neighbour vote over its cells, and one vector a label.
    embedding, depth
        Of the cells that vote, in the voters' order: as the model gave them, before anything was
        taken out; log10 of the total counts.
    cells
        Their names ("cell"), rows in the file ("row"), and donors ("donor") where named.
    calibrations
        By way of voting; fitted on the reference's own cells.
    terms
        Cell Ontology ids of the classes that have one.
    genes
        Symbols of the model's genes that the reference measures.
    facts
        Where it comes from: model, data, settings, versions, hashes.
    folder
        Where it was loaded from; None for one that was just built.
    """

    voters: NeighbourClassifier
    prototypes: PrototypeClassifier
    embedding: Float[np.ndarray, "reference d"] = field(repr=False)
    depth: Float[np.ndarray, " reference"] = field(repr=False)
    cells: pd.DataFrame = field(repr=False)
    calibrations: Mapping[str, ProbabilityCalibration]
    terms: Mapping[str, str]
    genes: tuple[str, ...] = field(repr=False)
    facts: Mapping[str, Any] = field(repr=False)
    folder: Path | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        return self.voters.classes

    @property
    def name(self) -> str:
        """For messages: the folder, or the data it was built from."""
        return str(self.folder or self.facts["data"])

    @property
    def n_cells(self) -> int:
        """Cells that vote."""
        return len(self.voters.codes)

    def answer(
        self,
        embedding: Num[np.ndarray, "cell d"],
        depth: Float[np.ndarray, " cell"],
        vote: Vote = "neighbours",
    ) -> Answer:
        """Calibrated probabilities of query cells."""
        support = None
        if vote == "neighbours":
            support = self.voters.support(embedding, depth)
            found = self.voters.answer(support)
        else:
            found = self.prototypes.probabilities(embedding, depth)
        return Answer(self.calibrations[vote].apply(found), support)

    def names_of(self, support: Support) -> np.ndarray:
        """Names of neighbours."""
        return self.cells["cell"].to_numpy(dtype=object)[support.neighbour]

    def require_model(self, weights_sha256: str, rebuild: str) -> None:
        """ModelError for another model than the one that embedded the reference."""
        own = str(self.facts["weights_sha256"])
        if own != weights_sha256:
            raise ModelError(
                f"The reference {self.name} was built with another model (weights sha256 "
                f"{own[:12] or 'of none that was saved'}, this model's are "
                f"{weights_sha256[:12] or 'of none that was saved'}): embeddings of two models "
                f"cannot be compared. Build it again with this one:\n{rebuild}"
            )

    def require_species(self, species: str, orthologs: bool, name: str) -> None:
        """GeneCoverageError for cells of another species, unless orthologs were asked for."""
        own = str(self.facts["species"])
        if own != species and not orthologs:
            raise GeneCoverageError(
                f"The reference {self.name} is {own} and {name} is {species}. Labels "
                "carry over by one-to-one orthologs alone: if that is meant, say --orthologs "
                "(orthologs=True in Python). If the species was guessed wrongly, name it: "
                f"--species {own}."
            )

    def require_genes(self, measured: tuple[str, ...], name: str) -> float:
        """Share of the genes of the side with fewer that both measure. GeneCoverageError for few.

        Each side may be covered by the model's vocabulary and yet have no gene with the other.
        """
        shared = len(set(measured) & set(self.genes))
        fewer = max(min(len(measured), len(self.genes)), 1)
        if shared < FEWEST_SHARED * fewer or not shared:
            raise GeneCoverageError(
                f"{name} and the reference {self.name} share {shared:,} genes of the "
                f"{len(measured):,} and {len(self.genes):,} that the model knows of each: what the "
                "model makes of them is of other genes, and no neighbour means anything. The first "
                f"has {', '.join(measured[:3])} ..., the reference {', '.join(self.genes[:3])} "
                "... . Take a reference that measures what these cells do."
            )
        return shared / fewer


def checked_vote(vote: str) -> Vote:
    """Raises ConfigError for a way of voting that is none."""
    if vote not in VOTES:
        raise ConfigError(f"vote is '{vote}'; known are {' and '.join(VOTES)}.")
    return vote  # pyright: ignore[reportReturnType]
