"""scVI and a vote of neighbours as a method of an evaluation, where scvi-tools is installed.

in   raw counts of all cells of the evaluation's table, on the genes shared
out  a Method: scVI is trained anew on the cells learned from; judged cells pass its encoder only

Source: Lopez et al. 2018, doi:10.1038/s41592-018-0229-2, as scvi-tools has it, at its defaults.
"""

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int

from scfm.errors import ConfigError
from scfm.evaluate.type_baselines import neighbours_in
from scfm.evaluate.type_methods import Cells, Fitted, Reference
from scfm.tasks.probability_calibration import ProbabilityCalibration


@dataclass(frozen=True)
class ScviNeighbours:
    """15 neighbours in scVI's latent space, by cosine; unknown by angle.

    Attributes
    ----------
    counts
        Raw counts, a row a cell of the evaluation's table.
    max_epochs
        None: scvi-tools' own choice by the number of cells.

    No batch is named: a donor that is held out has no place among those scVI was trained with.
    """

    counts: sp.csr_matrix = field(repr=False)
    max_epochs: int | None = None
    key: str = "scvi"
    name: str = "scVI + 15 neighbours"
    note: str = "2,000 most variable genes; scvi-tools at its defaults, trained anew in every fold"
    kind: Literal["model", "untrained", "baseline"] = "baseline"
    own_calibration: ProbabilityCalibration | None = None

    def __post_init__(self) -> None:
        require_scvi()

    def fit(self, reference: Reference) -> Fitted:
        latent = _Latent.fitted(self, reference)
        return neighbours_in(latent.of, reference)


def require_scvi() -> None:
    """ConfigError where scvi-tools is not there."""
    if importlib.util.find_spec("scvi") is None:
        raise ConfigError(
            "scVI is judged by scvi-tools, which is not installed. Install it: "
            "pip install 'scfm[scvi]', or leave out --scvi."
        )


@dataclass(frozen=True)
class _Latent:
    """A trained scVI, and the columns it reads."""

    model: Any
    counts: sp.csr_matrix
    columns: Int[np.ndarray, " gene"]

    @classmethod
    def fitted(cls, method: ScviNeighbours, reference: Reference) -> "_Latent":
        from scvi import settings  # pyright: ignore[reportMissingImports]
        from scvi.model import SCVI  # pyright: ignore[reportMissingImports]

        assert reference.cells.rows is not None, "scVI reads the raw counts of the cells"
        with _quiet():
            settings.seed = reference.seed
            cells = _adata(method.counts, reference.cells.rows, reference.variable)
            SCVI.setup_anndata(cells)
            model = SCVI(cells)
            model.train(max_epochs=method.max_epochs, enable_progress_bar=False, logger=False)
        return cls(model, method.counts, reference.variable)

    def of(self, cells: Cells) -> Float[np.ndarray, "cell latent"]:
        """The means of the cells' latent variables."""
        assert cells.rows is not None, "scVI reads the raw counts of the cells"
        with _quiet():
            asked = _adata(self.counts, cells.rows, self.columns)
            return np.asarray(self.model.get_latent_representation(asked))


def _adata(
    counts: sp.csr_matrix, rows: Int[np.ndarray, " cell"], columns: Int[np.ndarray, " gene"]
) -> Any:
    from anndata import AnnData

    return AnnData(sp.csr_matrix(counts[rows][:, columns], dtype=np.float32))


@contextmanager
def _quiet() -> Iterator[None]:
    """scvi-tools and Lightning speak to their own users: of workers, of progress."""
    names = ("scvi", "lightning.pytorch", "pytorch_lightning")
    before = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
