"""Generated cells judged: beside real cells, beside what needs no model, type by type.

in   raw counts of real cells with their types; generated cells with the types they were asked for
out  GenerationResult: scores with intervals, one plain sentence; metrics.json and report.html

The truth is a random half of the real cells of a type. The other half is the ceiling: what real
cells score against real cells. Baselines learn from that half, or from a file of their own, such as
the cells the model was trained on. All have as many cells as the generated ones, the same genes.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits

from scfm.errors import ConfigError
from scfm.evaluate.generation_baselines import binned, n_rows, negative_binomial, noisy
from scfm.evaluate.generation_data import LEAST_CELLS, MatchedCells, match_cells
from scfm.evaluate.generation_result import GENERATED, GenerationResult
from scfm.evaluate.generation_scores import (
    SCORES,
    Truth,
    TypeCells,
    median_distance,
    over_types,
    resamples,
    score_type,
)
from scfm.evaluate.log_counts import log1p_cp10k
from scfm.evaluate.profile_scores import pearson_rows
from scfm.tokens.inputs import InputConfig

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How many cells and genes are judged."""

    n_cells: int = 200  # of a type and kind, at most
    n_fit: int = 2_000  # of a type, at most, that baselines may learn from
    n_genes: int = 2_000  # judged, at most, drawn at random among those both sides have
    n_bins: int = 10  # of "bins alone", where the generated cells do not say
    n_bootstrap: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.n_cells, self.n_fit) < LEAST_CELLS:
            raise ConfigError(
                f"n_cells is {self.n_cells}, n_fit {self.n_fit}; wanted at least {LEAST_CELLS}."
            )
        if self.n_genes < 2 or self.n_bins < 1 or self.n_bootstrap < 1:
            raise ConfigError("n_genes is at least 2, n_bins and n_bootstrap at least 1.")


def evaluate_generation(
    real: "str | Path | AnnData",
    generated: "str | Path | AnnData",
    *,
    label_key: str,
    generated_key: str | None = None,
    fit: "str | Path | AnnData | None" = None,
    config: GenerationConfig | None = None,
    input_config: InputConfig | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> GenerationResult:
    """Score generated cells and what they must beat on the same real cells.

    Parameters
    ----------
    real
        Raw counts the model was not trained on.
    generated
        As ``scfm generate`` writes them; or any counts or log1p values in X, and a type in obs.
    label_key, generated_key
        obs column of the types, and of the types asked for; None: of the same name.
    fit
        Labelled raw counts for the baselines; None: the half of ``real`` that is not the truth.

    Memory is bounded by the cells drawn: some hundreds a type (sparse), one type dense at a time.
    """
    config = config or GenerationConfig()
    cells = match_cells(
        *(real, generated),
        label_key=label_key,
        generated_key=generated_key or label_key,
        fit=fit,
        n_cells=config.n_cells,
        n_fit=config.n_fit,
        seed=config.seed,
        config=input_config or InputConfig(),
    )
    with threadpool_limits(1):  # as in scfm.evaluate.celltype_protocol
        return _judge(cells, config, label_key, fit is not None, on_progress)


def made_cells(
    cells: MatchedCells, label: str, n_bins: int, rng: np.random.Generator
) -> dict[str, sp.csr_matrix]:
    """Cells of one type by every method, as many as were generated."""
    n, fit = n_rows(cells.generated[label]), cells.fit[label]
    return {
        GENERATED: cells.generated[label],
        "noisy": noisy(fit, n, rng),
        "negative_binomial": negative_binomial(fit, n, rng),
        "binned": binned(cells.other[label], n_bins),
        "real": cells.other[label],
    }


def _judge(
    cells: MatchedCells,
    config: GenerationConfig,
    label_key: str,
    fit_given: bool,
    on_progress: Callable[[int, int], None],
) -> GenerationResult:
    rng = np.random.default_rng([config.seed, 1])
    n_all = len(cells.genes)
    genes = np.sort(rng.choice(n_all, min(config.n_genes, n_all), replace=False))
    n_bins = int(cells.settings.get("n_bins", config.n_bins))
    truths = {label: _truth(cells, label, genes, config, rng) for label in cells.types}
    per_type: dict[str, dict[str, dict[str, Any]]] = {}
    described: dict[str, dict[str, dict[str, float]]] = {}
    means = {}
    for number, label in enumerate(cells.types):
        per_type[label], described[label] = {}, {"held_out": _described(truths[label].cells, n_all)}
        others = {other: truths[other] for other in cells.types if other != label}
        for method, made in made_cells(cells, label, n_bins, rng).items():
            some = _type_cells(made, genes)
            per_type[label][method] = score_type(
                *(some, truths[label], others),
                n_genes=n_all,
                n_bootstrap=config.n_bootstrap,
                rng=rng,
            )
            described[label][method] = _described(some, n_all)
            if method == GENERATED:
                means[label] = some.profiles.mean(0)
        on_progress(number + 1, len(cells.types))
    draws = {
        method: over_types([per_type[label][method] for label in cells.types])
        for method in per_type[cells.types[0]]
    }
    return GenerationResult(
        data=_data(cells, genes, label_key, fit_given, truths),
        settings={**asdict(config), "n_bins": n_bins},
        generator=dict(cells.settings),
        scores={m: {k: s.interval() for k, s in found.items()} for m, found in draws.items()},
        versus={
            m: {k: draws[GENERATED][k].minus(s) for k, s in found.items()}
            for m, found in draws.items()
            if m != GENERATED
        },
        per_type={
            label: {m: {k: float(found[k][0]) for k in SCORES} for m, found in by.items()}
            for label, by in per_type.items()
        },
        described=described,
        own_and_other=_own_and_other(means, truths),
        means={label: (truths[label].means[0], means[label]) for label in cells.types},
    )


def _type_cells(cells: sp.csr_matrix, genes: Int[np.ndarray, " gene"]) -> TypeCells:
    return TypeCells(log1p_cp10k(cells, genes).toarray(), np.diff(cells.indptr).astype(np.int64))


def _truth(
    cells: MatchedCells,
    label: str,
    genes: Int[np.ndarray, " gene"],
    config: GenerationConfig,
    rng: np.random.Generator,
) -> Truth:
    held_out = _type_cells(cells.held_out[label], genes)
    other = _type_cells(cells.other[label], genes)
    bandwidth = median_distance(np.concatenate([held_out.profiles, other.profiles]))
    weights = resamples(len(held_out.profiles), config.n_bootstrap, rng)
    return Truth(held_out, weights, bandwidth)


def _described(cells: TypeCells, n_genes: int) -> dict[str, float]:
    """What no method is ranked by alone: how many genes its cells express."""
    return {
        "genes": float(np.median(cells.n_expressed)),
        "zero_share": float(1 - cells.n_expressed.mean() / n_genes),
    }


def _own_and_other(
    means: Mapping[str, Float[np.ndarray, " gene"]], truths: Mapping[str, Truth]
) -> dict[str, dict[str, float]]:
    """Pearson's r of the means of each generated type with those of every real type."""
    return {
        label: {
            other: float(np.nan_to_num(pearson_rows(truth.means[:1], mean[None])[0]))
            for other, truth in truths.items()
        }
        for label, mean in means.items()
    }


def _data(
    cells: MatchedCells,
    genes: Int[np.ndarray, " gene"],
    label_key: str,
    fit_given: bool,
    truths: Mapping[str, Truth],
) -> dict[str, Any]:
    return {
        "real": cells.name,
        "generated": cells.generated_name,
        "label_key": label_key,
        "cells_per_type": {label: len(t.cells.profiles) for label, t in truths.items()},
        "fit_cells_per_type": {label: n_rows(fit) for label, fit in cells.fit.items()},
        "baselines_learn_from": "a file of their own" if fit_given else "the other half",
        "generated_cells_without_expression": cells.n_empty,
        "left_out": dict(cells.left_out),
        "shared_genes": len(cells.genes),
        "judged_genes": len(genes),
        "genes": cells.report.to_dict(),
    }
