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
from scfm.tasks.classification import as_probabilities, of_pool, pool_scores
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
        # a probe changes the classifier alone
        model = self.model if config.method == "probe" else copy.deepcopy(self.model)
        with tempfile.TemporaryDirectory(prefix="scfm_") as folder:
            fitted = fit_classifier(
                *(model, pool, split, config, Path(folder)), features=self.features
            )
        assert fitted is not None, "an evaluation is one process"
        if config.method == "probe":
            probe, labels, features = fitted.probe, pool.labels, self.features
            return _Scored(lambda cells: probe.scores(features[self.places[cells]]), labels)
        tuned = fitted.model
        return _Scored(lambda cells: pool_scores(tuned, pool, self.places[cells]), pool.labels)

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

    @cached_property
    def features(self) -> Float[np.ndarray, "cell feature"]:
        """Of every cell of the table by the model as it came, at the cell's number in the pool."""
        config, model = self.config, self.model
        rows = np.arange(len(self.places))
        pool = self.pool_of(rows, np.full(len(rows), "", dtype=object), config)
        pooling = classifier_pooling(model, config.pooling)
        found = of_pool(
            *(model, pool, self.places),
            lambda cells: model.cell_features(cells, model(cells), pooling, config.features),
        )
        answer = np.zeros((pool.n_cells, found.shape[1]), dtype=np.float32)
        answer[self.places] = found
        return answer

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
