"""Labels for query cells from the mean direction of each label: the light form of a reference.

in   a fitted NeighbourClassifier; embeddings of query cells
out  TypeProbabilities

One vector a label is all that is searched, so cost and memory hang on the number of labels alone.
A label of several unlike kinds of cells is served worse than by its cells.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Num

from scfm.tasks.directions import unit_vectors
from scfm.tasks.neighbours import NeighbourClassifier
from scfm.tasks.type_probabilities import TypeProbabilities

# Cosines are divided by it before they are made probabilities. Only a start: the calibration's
# temperature is fitted on top.
SHARPNESS = 0.1


@dataclass(frozen=True)
class PrototypeClassifier:
    """One unit vector a label. Made by ``PrototypeClassifier.of``.

    Attributes
    ----------
    voters
        Whose classes these are, and who gives query cells their directions.
    prototypes
        In the order of the classes.
    min_similarity
        Cosine to the nearest prototype below which a query cell is unlike all that was learned.
    """

    voters: NeighbourClassifier
    prototypes: Float[np.ndarray, "type d"] = field(repr=False)
    min_similarity: float

    @classmethod
    def of(cls, voters: NeighbourClassifier) -> "PrototypeClassifier":
        """Mean directions of a reference's labels.

        The threshold is the same percentile of its cells as with neighbours. No cell is left out
        of its own mean, which moves it by 1 / cells of its label.
        """
        percentile = voters.config.unknown_percentile
        labels = range(len(voters.classes))
        sums = [voters.directions[voters.codes == label].sum(0) for label in labels]
        means, _ = unit_vectors(np.stack(sums), "the reference")
        closest = (voters.directions @ means.T).max(1)
        least = -1.0 if percentile == 0 else float(np.percentile(closest, percentile))
        return cls(voters, means, least)

    def probabilities(
        self,
        embedding: Num[np.ndarray, "cell d"],
        depth: Float[np.ndarray, " cell"] | None = None,
    ) -> TypeProbabilities:
        """Softmax of the cosines; novelty is (1 - largest cosine) / 2.

        A cell whose embedding is all zeros has no probabilities.
        """
        directions, is_zero = self.voters.directions_of(embedding, depth)
        cosine = np.clip(directions @ self.prototypes.T, -1.0, 1.0)
        closest = np.where(is_zero, -1.0, cosine.max(1))
        weight = np.exp((cosine - cosine.max(1, keepdims=True)) / SHARPNESS)
        shares = weight / weight.sum(1, keepdims=True)
        return TypeProbabilities(
            classes=self.voters.classes,
            probabilities=np.where(is_zero[:, None], 0.0, shares),
            is_outlier=is_zero | (closest < self.min_similarity),
            novelty=(1.0 - closest) / 2,
        )
