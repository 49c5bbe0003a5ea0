"""A model fine-tuned on the cells learned from, as a method of an evaluation: anew in every fold.

in   a model, the opened sets, how it is fine-tuned
out  a Method; nothing of the judged cells has a part in any weight

Cells that stop the training are taken from those learned from, whole donors where donors are named.
"""

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Shaped

from scfm.evaluate.type_methods import Cells, Fitted, Reference
from scfm.model.base import CellModel
from scfm.tasks.celltype import CelltypeConfig, classifier_pooling, fit_classifier
from scfm.tasks.celltype_data import LabelledPool, require_types, split_labelled
from scfm.tasks.celltype_features import Seen, look_with
from scfm.tasks.classification import as_probabilities, pool_scores
from scfm.tasks.embedding import EmbeddingConfig
from scfm.tasks.probability_calibration import ProbabilityCalibration
from scfm.tasks.type_probabilities import TypeProbabilities
from scfm.tokens.pool import PoolMember


@dataclass(frozen=True)
class FineTuned:
    """A model that learns the labels of each fold's training side.

    Attributes
    ----------
    members
        The sets, opened for the model.
    places
        Number in the members' pool of each row of the evaluation's table.
    groups
        Donor of each row; "" where none is named. None: cells stop the training at random.
    """

    key: str
    name: str
    note: str
    model: CellModel = field(repr=False)
    members: tuple[PoolMember, ...] = field(repr=False)
    places: Int[np.ndarray, " row"] = field(repr=False)
    config: CelltypeConfig = field(repr=False)
    groups: Shaped[np.ndarray, " row"] | None = field(default=None, repr=False)
    kind: Literal["model", "untrained", "baseline"] = "model"
    own_calibration: ProbabilityCalibration | None = None
    known: dict[int | None, Seen] = field(default_factory=dict, repr=False)  # by epoch shown

    def fit(self, reference: Reference) -> Fitted:
        config = replace(self.config, judged_share=0.0, seed=reference.seed)
        assert reference.cells.rows is not None, "fine-tuning reads the cells themselves"
        pool = self.pool_of(reference.cells.rows, reference.labels, config)
        split = split_labelled(
            pool.types,
            judged_share=0.0,
            validation_share=config.validation_share,
            seed=config.seed,
            groups=self._groups_of(pool, reference.cells.rows),
            by="donors",
        )
        pool, split = require_types(pool, split, "the cells learned from")
        model = copy.deepcopy(self.model)  # the caller's keeps the classifier that it has
        with tempfile.TemporaryDirectory(prefix="scfm_") as folder:
            fitted = fit_classifier(*(model, pool, split, config, Path(folder)), look=self.look)
        assert fitted is not None, "an evaluation is one process"
        if config.method == "probe":
            probe = fitted.probe
            return _Scored(
                lambda rows: probe.scores(self.look(self.places[rows], None)), pool.labels
            )
        tuned = fitted.model
        return _Scored(lambda rows: pool_scores(tuned, pool, self.places[rows]), pool.labels)

    def pool_of(
        self,
        rows: Int[np.ndarray, " some"],
        labels: Shaped[np.ndarray, " some"],
        config: CelltypeConfig,
    ) -> LabelledPool:
        """All cells, of which those at ``rows`` have labels."""
        n_cells = sum(member.source.n_cells for member in self.members)
        types = np.full(n_cells, None, dtype=object)
        types[self.places[rows]] = labels
        depth = EmbeddingConfig.of(self.model, classifier_pooling(self.model, config.pooling))
        return LabelledPool(
            *(self.members, config.seed, types, depth.target_depth),
            thin_probability=config.thin_probability,
            thin_min_counts=config.thin_min_counts,
        )

    def look(self, cells: Int[np.ndarray, " cell"], epoch: int | None) -> Seen:
        """What the model as it came makes of cells of the pool; each view of them made once."""
        if epoch not in self.known:
            # thinning hangs on the seed and the cell, so one seed serves all folds
            rows = np.arange(len(self.places))
            pool = self.pool_of(rows, np.full(len(rows), "", dtype=object), self.config)
            pooling = classifier_pooling(self.model, self.config.pooling)
            find = look_with(self.model, pool, pooling, self.config.features)
            self.known[epoch] = find(self.places, epoch)
        return self.known[epoch].part(self.row_of[cells])

    @cached_property
    def row_of(self) -> Int[np.ndarray, " cell"]:
        """Row of the table of each cell of the pool."""
        rows = np.zeros(int(self.places.max()) + 1, dtype=np.int64)
        rows[self.places] = np.arange(len(self.places))
        return rows

    def _groups_of(
        self, pool: LabelledPool, rows: Int[np.ndarray, " some"]
    ) -> tuple[Int[np.ndarray, " cell"], Sequence[str]] | None:
        """Codes over the pool and names; None where fewer than two donors are named."""
        if self.groups is None:
            return None
        own = self.groups[rows].astype(str)
        names = sorted(set(own.tolist()) - {""})
        if len(names) < 2:
            return None
        place = {name: code for code, name in enumerate(names)}
        codes = np.full(pool.n_cells, -1, dtype=np.int64)
        codes[self.places[rows]] = [place.get(name, -1) for name in own]
        return codes, names


@dataclass(frozen=True)
class _Scored:
    scores: Callable[[Int[np.ndarray, " row"]], Float[np.ndarray, "row type"]]
    labels: tuple[str, ...]

    def predict(self, cells: Cells) -> TypeProbabilities:
        assert cells.rows is not None
        return as_probabilities(np.asarray(self.scores(cells.rows)), self.labels)
