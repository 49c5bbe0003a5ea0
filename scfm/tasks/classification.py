"""A fine-tuned model's scores of cell types: of a file as a stream, or of some cells of a pool.

in   a model with a classifier and an opened input, or cells of a LabelledPool
out  scores (n_cells, n_types) and what is told beside them; TypeProbabilities
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scfm.batch import CellBatch
from scfm.data.counts import CountRows
from scfm.errors import ConfigError, ModelError
from scfm.model.base import CellModel
from scfm.tasks.celltype_data import LabelledPool
from scfm.tasks.doubts import Doubts
from scfm.tasks.embedding import CHUNK_CELLS, MOST_TOKENS, EmbeddingConfig, batches
from scfm.tasks.type_calls import probabilities
from scfm.tasks.type_probabilities import TypeProbabilities
from scfm.tokens.pool import PoolMember

FORWARD_CELLS = 64  # of a pool, a forward pass


class ClassifiedCells(NamedTuple):
    """Some cells: scores of the types, the vector they are read from, depth, and genes shown."""

    cell_index: Int[np.ndarray, " cell"]
    scores: Float[np.ndarray, "cell type"]
    embedding: Float[np.ndarray, "cell d"]
    depth: Float[np.ndarray, " cell"]
    n_genes: Int[np.ndarray, " cell"]


def classifier_embedding(model: CellModel) -> EmbeddingConfig:
    """The vector that the classifier reads, and the depth asked for. ConfigError without one."""
    if model.classifier is None:
        raise ConfigError(
            "This model has no classifier. Fine-tune it: scfm finetune celltype CELLS --label "
            "COLUMN --model MODEL --out RUN."
        )
    return EmbeddingConfig.of(model, model.classifier.spec.pooling)


def classify_cells(
    model: CellModel, member: PoolMember, *, batch_size: int = 64
) -> Iterator[ClassifiedCells]:
    """Score all cells of a source, in file order; memory does not grow with the file.

    A cell's scores do not depend on ``batch_size`` beyond rounding. Warns once of each kind of
    doubtful cell. Raises ConfigError for a model without a classifier, ModelError for one whose
    scores are not finite.
    """
    how = classifier_embedding(model)
    doubts = Doubts(model, member, how.target_depth)
    model.eval()
    for rows in member.source.chunks(CHUNK_CELLS):
        doubts.see_rows(rows)
        found = [
            _classify_rows(model, member, rows.part(first, last), how)
            for first, last in batches(rows, batch_size, MOST_TOKENS[model.device.type == "cpu"])
        ]
        cells = ClassifiedCells(rows.cell_index, *map(np.concatenate, zip(*found, strict=True)))
        require_finite(cells.scores)
        doubts.see(cells.cell_index, cells.depth, cells.n_genes)
        yield cells
    doubts.say()


def _classify_rows(
    model: CellModel, member: PoolMember, rows: CountRows, how: EmbeddingConfig
) -> tuple[np.ndarray, ...]:
    tokenizer = member.tokenizer
    cells = tokenizer.asked_for(tokenizer.shown(rows), how.target_depth)
    with torch.inference_mode():
        batch = cells.map(lambda x: torch.from_numpy(x).to(model.device))
        states = model(batch)
        scores, embedding = model.classify(batch, states), model.pool(states, how.pooling)
    n_genes = np.diff(cells.offsets) - tokenizer.n_specials
    return _array(scores), _array(embedding), cells.source_depth, n_genes


def pool_scores(
    model: CellModel,
    pool: LabelledPool,
    cells: Int[np.ndarray, " cell"],
    epoch: int | None = None,
) -> Float[np.ndarray, "cell type"]:
    """The classifier's scores of some cells of a pool, in the order given.

    They are shown as they are, or as in a training epoch.
    """
    model.eval()
    assert model.classifier is not None, "a model without a classifier says no types"
    found = np.empty((len(cells), len(model.classifier.spec.labels)), dtype=np.float32)
    for some, batch in shown_cells(pool, cells, epoch):
        with torch.inference_mode():
            shown = batch.map(lambda x: torch.from_numpy(x).to(model.device))
            found[some] = _array(model.classify(shown, model(shown)))
    require_finite(found)
    return found


def shown_cells(
    pool: LabelledPool, cells: Int[np.ndarray, " cell"], epoch: int | None = None
) -> Iterator[tuple[Int[np.ndarray, " some"], CellBatch]]:
    """Some cells of a pool a few at a time, and their places in ``cells``.

    By row number, since files are fastest in their own order.
    """
    order = np.argsort(cells, kind="stable")
    for first in range(0, len(cells), FORWARD_CELLS):
        places = order[first : first + FORWARD_CELLS]
        some = cells[places]
        if epoch is None:
            yield places, pool.shown(some)
        else:
            yield places, pool.training(some, np.full(len(some), epoch))


def as_probabilities(
    scores: Float[np.ndarray, "cell type"], labels: tuple[str, ...]
) -> TypeProbabilities:
    """Softmax of the scores; nothing is called an outlier."""
    return TypeProbabilities(labels, probabilities(scores), np.zeros(len(scores), dtype=bool))


def require_finite(scores: Float[np.ndarray, "cell type"]) -> None:
    """Raise ModelError for scores that are not numbers."""
    if not np.isfinite(scores).all():
        raise ModelError("The model's scores are NaN or infinite. Take another model.")


def _array(found: Tensor) -> np.ndarray:
    return found.float().cpu().numpy()
