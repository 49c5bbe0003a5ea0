"""What a small scMulan learns of sorted blood cells: annotation by words, and generated cells.

One JSON line on stdout. The words are the sorting gate: ``subpop``, then ``celltype``. A random
fifth of the cells is held out before anything is fitted (one donor, so the split is optimistic);
PBMC3k is another experiment, its clusters mapped to the gates' common names. Beside the model, on
the same cells: the majority class and linear methods fitted on the same training cells. Nothing is
chosen by what is found.

    python benchmarks/scmulan_quality.py ../shared/data/rna --out quality [--steps 3000]
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from measure import report

from scfm.evaluate.baselines import baseline_predictions
from scfm.evaluate.celltype import (
    Prediction,
    common_labels,
    evaluate_transfer,
    read_label_mapping,
)
from scfm.evaluate.log_counts import CountTable
from scfm.evaluate.results import Evaluation
from scfm.tasks.pretrain import pretrain
from scfm.tasks.pretrain_run import load_run

COARSE, FINE = "subpop", "celltype"
HELD_OUT = 0.2
N_GENERATED = 200  # cells a type


def main() -> None:
    """Train, annotate, generate, and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", default="scmulan-tiny")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--model", type=Path, help="judge this one, trained before with --out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    training, held_out = split(asked.data / "zheng_facs_pbmc.h5ad", asked.out, asked.seed)
    started = time.perf_counter()
    model = asked.model or train(asked, training)
    seconds = time.perf_counter() - started
    found = {
        "steps": asked.steps,
        "training_seconds": None if asked.model else round(seconds, 1),
        "held_out": {column: judge(model, training, held_out, column) for column in (COARSE, FINE)},
        "pbmc3k": judge_pbmc3k(model, training, asked.data),
        "generated": judge_generated(model, held_out),
    }
    report({"benchmark": "scmulan quality", **found})


def split(path: Path, out: Path, seed: int) -> tuple[Path, Path]:
    """Training and held-out cells as files of their own."""
    cells = ad.read_h5ad(path)
    is_held_out = np.zeros(cells.n_obs, dtype=bool)
    order = np.random.default_rng(seed).permutation(cells.n_obs)
    is_held_out[order[: round(HELD_OUT * cells.n_obs)]] = True
    paths = out / "training.h5ad", out / "held_out.h5ad"
    for part, chosen in zip(paths, (~is_held_out, is_held_out), strict=True):
        cells[chosen].copy().write_h5ad(part)
    return paths


def train(asked: argparse.Namespace, training: Path) -> Path:
    settings = [
        f"train.steps={asked.steps}",
        f"tokens.columns=[{COARSE}, {FINE}]",
        f"tokens.types=[{COARSE}, {FINE}]",
        *asked.settings,
    ]
    run = replace(load_run(asked.config, settings), data=(str(training),), seed=asked.seed)
    return pretrain(run, asked.out / "run")


def judge(model: Path, training: Path, held_out: Path, column: str) -> dict[str, Any]:
    """Words for held-out cells of the same experiment, against methods fitted on the others."""
    known, asked = ad.read_h5ad(training), ad.read_h5ad(held_out)
    ours = Prediction("scMulan, by words", "model", annotated(model, asked)[column])
    theirs = baseline_predictions(
        table(known), known.obs[column].astype(str).to_numpy(), table(asked)
    )
    truth = asked.obs[column].astype(str).to_numpy()
    return scores(evaluate_transfer(truth, {"words": ours, **theirs}, reference={}, query={}))


def judge_pbmc3k(model: Path, training: Path, data: Path) -> dict[str, Any]:
    """Another experiment, both sides' labels in common terms; unlabelled cells left out."""
    mapping = read_label_mapping(data / "pbmc_label_mapping.csv")
    known, asked = ad.read_h5ad(training), ad.read_h5ad(data / "pbmc3k.h5ad")
    truth = common_labels(asked.obs["cell_type"].to_numpy(), mapping["pbmc3k"])
    asked = asked[truth.is_kept].copy()
    gates = {**mapping["zheng_facs_pbmc"], "unknown": "unknown"}
    words = [gates[word] for word in annotated(model, asked)[FINE]]
    ours = Prediction("scMulan, by words", "model", np.array(words, dtype=object))
    labels = common_labels(known.obs[FINE].to_numpy(), mapping["zheng_facs_pbmc"]).labels
    theirs = baseline_predictions(table(known), labels, table(asked))
    kept = truth.labels[truth.is_kept]
    return scores(evaluate_transfer(kept, {"words": ours, **theirs}, reference={}, query={}))


def annotated(model: Path, cells: ad.AnnData) -> dict[str, np.ndarray]:
    """The words said of each cell: never "unknown", so that every method answers for every cell."""
    import scfm

    found = scfm.tl.annotate(cells, model, min_confidence=0.0, copy=True)
    assert found is not None
    return {
        COARSE: found.obs["scfm_coarse_type"].astype(str).to_numpy(dtype=object),
        FINE: found.obs["scfm_cell_type"].astype(str).to_numpy(dtype=object),
    }


def table(cells: ad.AnnData) -> CountTable:
    counts: Any = cells.X
    return CountTable(counts.tocsr(), symbols(cells))


def symbols(cells: ad.AnnData) -> list[str]:
    column: Any = cells.var.get("symbol", cells.var_names)
    return [str(symbol) for symbol in column]


def scores(found: Evaluation) -> dict[str, Any]:
    """Macro-F1 with its interval and accuracy of each method, and the sentence about them."""
    methods = {
        method.key: {
            "macro_f1": [round(x, 3) for x in vars(method.macro_f1).values()],
            "accuracy": round(method.accuracy.value, 3),
        }
        for method in found.methods
    }
    return {"n_cells": len(found.truth), "methods": methods, "verdict": found.verdict}


def gene_means(cells: ad.AnnData) -> np.ndarray:
    values: Any = cells.X
    return np.asarray(values.mean(0)).ravel()


def judge_generated(model: Path, held_out: Path) -> dict[str, Any]:
    """Correlation of gene means, log1p(cp10k): of cells made as a type with each real type's."""
    import scanpy as sc

    import scfm

    real = ad.read_h5ad(held_out)
    sc.pp.normalize_total(real, target_sum=1e4)
    sc.pp.log1p(real)
    real.var.index = pd.Index(symbols(real))
    real.var_names_make_unique()
    types = sorted(set(real.obs[COARSE]))
    found = {}
    for word in types:
        made = scfm.tl.generate(model, {COARSE: word}, n_cells=N_GENERATED, seed=0)
        genes = [gene for gene in made.var_names if gene in set(real.var_names)]
        ours = gene_means(made[:, genes])
        means = {other: gene_means(real[real.obs[COARSE] == other][:, genes]) for other in types}
        r = {other: float(np.corrcoef(ours, mean)[0, 1]) for other, mean in means.items()}
        others = {other: value for other, value in r.items() if other != word}
        nearest = max(others, key=lambda other: others[other])
        found[word] = {
            "own": round(r[word], 4),
            "best_other": [nearest, round(others[nearest], 4)],
            # what two real samples of these types have in common with each other
            "real_with_best_other": round(float(np.corrcoef(means[word], means[nearest])[0, 1]), 4),
        }
    return found


if __name__ == "__main__":
    main()
