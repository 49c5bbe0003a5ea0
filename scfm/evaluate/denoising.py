"""Denoising judged: real cells thinned, and who restores their unthinned profile best.

in   data, a model with a decoder
out  DenoisingResult: scores with intervals by share of counts kept, one plain sentence, a figure

Every method sees the thinned counts alone. The truth is log1p of counts per 10,000 of the unthinned
cell, over the model's genes that the data measures.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float, Int

from scfm.data.read import open_counts
from scfm.data.write import atomic_path, make_folder
from scfm.errors import ConfigError, InputError
from scfm.evaluate.denoisers import ThinnedCells, run_baselines
from scfm.evaluate.denoising_figure import draw
from scfm.evaluate.denoising_result import MODEL, DenoisingResult, ShareResult
from scfm.evaluate.log_counts import log1p_cp10k
from scfm.evaluate.profile_scores import score_profiles
from scfm.evaluate.thinned import LEAST_CELLS, SHARES, RealCells, sample_cells, thin
from scfm.model.base import CellModel
from scfm.tasks.decoding import check_decodes, decode_cells
from scfm.tokens.inputs import InputConfig, tokenizer_for
from scfm.tokens.pool import PoolMember
from scfm.tokens.tables import DatasetAlignment
from scfm.tokens.target_depth import TargetDepth, parse_target_depth

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True, kw_only=True)
class DenoisingConfig:
    """How the cells are thinned and judged."""

    shares: tuple[float, ...] = SHARES  # of the counts, kept
    target_depth: str | None = None  # None: 1 / share times the thinned cell's own depth
    n_cells: int = 500  # judged, at most
    n_context_cells: int = 5_000  # the baselines may use, at most; the judged among them
    n_genes: int = 2_000  # judged, at most
    min_detection: float = 0.05  # share of the judged unthinned cells that express a judged gene
    n_bootstrap: int = 500
    seed: int = 0
    batch_size: int = 8

    def __post_init__(self) -> None:
        if not self.shares or not all(0 < share < 1 for share in self.shares):
            raise ConfigError(f"shares are in (0, 1), got {list(self.shares)}. Try 0.1.")
        if not LEAST_CELLS <= self.n_cells <= self.n_context_cells:
            raise ConfigError(
                f"{self.n_cells:,} cells to judge, {self.n_context_cells:,} as context; wanted at "
                f"least {LEAST_CELLS}, and no more judged than there are."
            )
        if self.n_genes < 2 or self.n_bootstrap < 1 or self.batch_size < 1:
            raise ConfigError("n_genes is at least 2, n_bootstrap and batch_size at least 1.")
        if not 0 <= self.min_detection <= 1:
            raise ConfigError(f"min_detection is a share in [0, 1], got {self.min_detection}.")
        if self.target_depth is not None:
            parse_target_depth(self.target_depth)

    def depth(self, share: float) -> TargetDepth:
        """What the model is asked for. The share is known, the cell's true total is not."""
        return parse_target_depth(self.target_depth or f"f{1 / share:g}")


def evaluate_denoising(
    data: "str | Path | AnnData",
    model: CellModel,
    *,
    label_key: str | None = None,
    config: DenoisingConfig | None = None,
    input_config: InputConfig | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> DenoisingResult:
    """Thin real cells, restore them by every method, and score all on the same cells and genes.

    Parameters
    ----------
    label_key
        obs column of cell types, for the mean profile of a type. Labels that were made from the
        unthinned counts know more than the other methods are given. None: clusters of the thinned
        cells.

    Cells of which nothing is left are not judged at that share; how many is said. Memory is bounded
    by the context cells (sparse) and judged cells x judged genes.
    """
    config = config or DenoisingConfig()
    check_decodes(model, "expression")
    assert model.vocab is not None, "models are loaded or built with a vocabulary"
    cells = sample_cells(
        *(data, model.vocab, model.token_config),
        label_key=label_key,
        n_judged=config.n_cells,
        n_context=config.n_context_cells,
        seed=config.seed,
        config=input_config or InputConfig(),
    )
    genes = judged_genes(cells, config)
    total, results = len(cells.judged) * len(config.shares), []
    for number, share in enumerate(config.shares):
        before = number * len(cells.judged)

        def progress(done: int, before: int = before) -> None:
            on_progress(before + done, total)

        results.append(_judge_share(model, cells, genes, share, config, progress))
    return DenoisingResult(
        data=_describe(cells, genes, label_key),
        settings={**asdict(config), "model": dict(model.provenance)},
        shares=tuple(results),
    )


def judged_genes(cells: RealCells, config: DenoisingConfig) -> Int[np.ndarray, " gene"]:
    """Columns to judge: drawn among those that enough of the judged, unthinned cells express."""
    detected = np.asarray((cells.counts[cells.judged] > 0).mean(0)).ravel()
    eligible = np.flatnonzero((detected >= config.min_detection) & (detected > 0))
    if len(eligible) < 2:
        raise InputError(
            f"{cells.name}: {len(eligible)} genes are expressed in at least "
            f"{config.min_detection:.0%} of the cells; wanted at least 2. Take other cells."
        )
    rng = np.random.default_rng([config.seed, 1])
    return np.sort(rng.choice(eligible, min(config.n_genes, len(eligible)), replace=False))


def _judge_share(
    model: CellModel,
    cells: RealCells,
    genes: Int[np.ndarray, " gene"],
    share: float,
    config: DenoisingConfig,
    progress: Callable[[int], None],
) -> ShareResult:
    thinned = thin(cells.counts, share, np.random.default_rng([config.seed, 2, round(share * 1e9)]))
    is_left = np.asarray(thinned.sum(1)).ravel() > 0
    judged = cells.judged[is_left[cells.judged]]
    if len(judged) < LEAST_CELLS:
        raise InputError(
            f"{cells.name}: of {share:.3g} of the counts, {len(judged)} of {len(cells.judged):,} "
            f"cells have any left; wanted at least {LEAST_CELLS}. Give a larger share."
        )
    given = ThinnedCells(
        counts=thinned[is_left],
        judged=np.searchsorted(np.flatnonzero(is_left), judged),
        genes=genes,
        labels=None if cells.labels is None else cells.labels[is_left],
        seed=config.seed,
    )
    depth = config.depth(share)
    restored = _by_model(model, thinned[judged], cells.genes, genes, depth, config, progress)
    predictions = {MODEL: restored, **run_baselines(given)}
    draws = score_profiles(
        log1p_cp10k(cells.counts[judged], genes).toarray(),
        predictions,
        n_bootstrap=config.n_bootstrap,
        seed=config.seed,
    )
    return ShareResult(
        share=share,
        n_cells=len(judged),
        n_empty=len(cells.judged) - len(judged),
        median_counts=float(np.median(np.asarray(thinned[judged].sum(1)))),
        target_depth=str(depth),
        scores={
            method: {name: score.interval() for name, score in found.items()}
            for method, found in draws.items()
        },
        versus={
            method: {name: draws[MODEL][name].minus(score) for name, score in found.items()}
            for method, found in draws.items()
            if method != MODEL
        },
    )


def _by_model(
    model: CellModel,
    counts: sp.csr_matrix,
    positions: Int[np.ndarray, " measured"],
    genes: Int[np.ndarray, " gene"],
    depth: TargetDepth,
    config: DenoisingConfig,
    progress: Callable[[int], None],
) -> Float[np.ndarray, "cell gene"]:
    """The model's profiles of the judged genes, negative predictions set to 0."""
    member = _opened(model, counts, positions)
    restored = np.empty((member.source.n_cells, len(genes)), dtype=np.float32)
    for some in decode_cells(
        *(model, member, "expression"),
        genes=positions[genes],
        target_depth=depth,
        batch_size=config.batch_size,
    ):
        restored[some.cell_index] = np.maximum(some.values, 0)
        progress(int(some.cell_index[-1]) + 1)
    return restored


def _opened(
    model: CellModel, counts: sp.csr_matrix, positions: Int[np.ndarray, " measured"]
) -> PoolMember:
    """Thinned cells for the model. Their columns are its genes: no name is looked up again."""
    import anndata as ad

    assert model.vocab is not None
    symbols = pd.Index([model.vocab.symbols[position] for position in positions])
    thinned = ad.AnnData(counts.astype(np.float32), var=pd.DataFrame(index=symbols))
    has_column = np.ones(len(positions), dtype=bool)
    alignment = DatasetAlignment(positions.astype(np.int32), positions, has_column)
    tokenizer = tokenizer_for(model.vocab, alignment, model.token_config)
    return PoolMember(open_counts(thinned), tokenizer)


def _describe(
    cells: RealCells, genes: Int[np.ndarray, " gene"], label_key: str | None
) -> dict[str, Any]:
    """What was judged, for the record."""
    total = np.asarray(cells.counts[cells.judged].sum(1)).ravel()
    return {
        "name": cells.name,
        "cells": cells.n_available,
        "context_cells": cells.n_cells,
        "judged_cells": len(cells.judged),
        "median_counts": float(np.median(total)),
        "measured_genes": len(cells.genes),
        "judged_genes": len(genes),
        "label_key": label_key,
        "labels": list(cells.label_names),
        "genes": cells.report.to_dict(),
    }


def write_denoising(result: DenoisingResult, out: str | Path) -> None:
    """metrics.json and denoising.png into a folder."""
    folder = make_folder(out)
    with atomic_path(folder / "metrics.json") as path:
        path.write_text(json.dumps(result.to_dict(), indent=2, allow_nan=False) + "\n")
    with atomic_path(folder / "denoising.png") as path:
        draw(result).savefig(path, dpi=150)
