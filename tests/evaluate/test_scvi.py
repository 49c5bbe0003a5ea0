"""scVI as a method of an evaluation: real where scvi-tools is installed, else refused."""

import importlib.util

import numpy as np
import pytest
import scipy.sparse as sp

from scfm.errors import ConfigError
from scfm.evaluate.log_counts import log1p_cp10k
from scfm.evaluate.type_methods import Cells, Reference
from scfm.evaluate.type_scvi import ScviNeighbours

HAS_SCVI = importlib.util.find_spec("scvi") is not None


@pytest.mark.skipif(HAS_SCVI, reason="scvi-tools is installed")
def test_where_it_is_missing_the_remedy_is_named():
    with pytest.raises(ConfigError, match=r"pip install 'scfm\[scvi\]'"):
        ScviNeighbours(sp.csr_matrix((1, 1)))


@pytest.mark.skipif(not HAS_SCVI, reason="scvi-tools is an extra")
@pytest.mark.filterwarnings("ignore")
def test_types_are_told_apart_and_judged_cells_change_nothing(rng):
    types = np.repeat(["a", "b"], 60)
    profile = {"a": rng.gamma(0.5, 4, 200), "b": rng.gamma(0.5, 4, 200)}
    counts = sp.csr_matrix(rng.poisson(np.stack([profile[t] for t in types])).astype(np.float32))
    cells = Cells(log1p_cp10k(counts, np.arange(200)), rows=np.arange(120))
    learned, judged = np.arange(0, 120, 2), np.arange(1, 120, 2)
    fitted = ScviNeighbours(counts, max_epochs=40).fit(Reference(cells, types, 0).part(learned))
    found = fitted.predict(cells.part(judged))
    assert np.mean(found.label == types[judged]) > 0.9
    half = fitted.predict(cells.part(judged[:10]))
    np.testing.assert_allclose(half.probabilities, found.probabilities[:10], atol=1e-6)
