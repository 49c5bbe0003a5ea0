"""Scores of cells of a pool: in the order asked for, and by the model's own types."""

import numpy as np
import pytest

from scfm.errors import ConfigError
from scfm.model.classifier import ClassifierSpec
from scfm.tasks.celltype_data import LabelledPool
from scfm.tasks.classification import FORWARD_CELLS, classify_cells, pool_scores
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tokens.target_depth import parse_target_depth
from tests.toys import toy_adata, toy_model


@pytest.fixture
def ready(rng):
    model, adata = toy_model(), toy_adata(rng, n_cells=FORWARD_CELLS + 20)
    member, _ = open_input(adata, model.vocab, InputConfig(), model.token_config)
    types = adata.obs["cell_type"].astype(str).to_numpy(dtype=object)
    return model, member, LabelledPool([member], 0, types, parse_target_depth("source"))


def test_pool_and_file_say_the_same(ready, rng):
    """The model knows three types, the pool two: the model's count."""
    model, member, pool = ready
    model.add_classifier(ClassifierSpec(labels=("A", "B", "C"), pooling="cell"))
    (of_file,) = classify_cells(model, member, batch_size=7)
    cells = rng.permutation(pool.n_cells)[: FORWARD_CELLS + 5]
    found = pool_scores(model, pool, cells)
    np.testing.assert_allclose(found, of_file.scores[cells], rtol=1e-4, atol=1e-5)
    assert found.shape[1] == 3


def test_a_model_without_a_classifier_says_how_to_get_one(ready):
    model, member, _ = ready
    with pytest.raises(ConfigError, match="scfm finetune celltype"):
        next(classify_cells(model, member))
