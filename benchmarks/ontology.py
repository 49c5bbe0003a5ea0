"""What backing off in the Cell Ontology buys: sorted blood cells as reference, PBMC3k as query.

One JSON line on stdout. Both sets keep their own, finest labels, mapped to terms (that of "CD34+"
is given by hand). Every method learns from the reference and is calibrated on it, by three folds;
a query cell then gets the term of its most probable class, with and without the calibrated
"unknown", or backs off at each of several thresholds. The threshold scfm ships with was set
beforehand. Scores are of all 2,638 labelled query cells, intervals over cells (one donor).

    python benchmarks/ontology.py ../shared/data/rna [--model MODEL]
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from measure import report
from threadpoolctl import threadpool_limits

import scfm
from scfm.data.cell_ontology import CellOntology
from scfm.evaluate.celltype_protocol import on_classes
from scfm.evaluate.hierarchy import hierarchy_scores
from scfm.evaluate.labelled_cells import LabelledCells, on_shared_genes, read_labelled
from scfm.evaluate.log_counts import log1p_cp10k
from scfm.evaluate.splits import hold_out_cells
from scfm.evaluate.type_baselines import BASELINES
from scfm.evaluate.type_methods import Cells, Embedded, Method, Reference
from scfm.evaluate.type_models import ByNeighbours, embed_all
from scfm.tasks.back_off import THRESHOLD, back_off
from scfm.tasks.probability_calibration import fit_probability_calibration
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tools.ontology_labels import label_terms

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
METHODS = ("pca_knn", "pca_logistic", "hvg_logistic")
BY_HAND = {"CD34+": "hematopoietic precursor cell", "CD19+ B": "B cell"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with the two h5ad files")
    parser.add_argument("--model", help="judge a model's neighbours, too")
    asked = parser.parse_args()
    reference, query = asked.data / "zheng_facs_pbmc.h5ad", asked.data / "pbmc3k.h5ad"
    learned, judged = read_labelled(reference, "celltype"), read_labelled(query, "cell_type")
    terms = label_terms(learned.obs, "celltype", reference.name, BY_HAND).terms
    known = label_terms(judged.obs, "cell_type", query.name).terms
    judged = judged.part(np.isin(judged.labels.astype(str), list(known)), "no label")
    cells = [*on_genes(learned, judged)]
    methods: list[Method] = [m for m in BASELINES if m.key in METHODS]
    if asked.model:
        methods.append(ByNeighbours("model", "scfm by reference", "", "model"))
        sides = zip(cells, (reference, query), (learned, judged), strict=True)
        cells = [with_embedding(c, asked.model, path, side.rows) for c, path, side in sides]
    truth = np.array([known[label] for label in judged.labels], dtype=object)
    found = {
        method.key: judge(method, Reference(cells[0], learned.labels), cells[1], terms, truth)
        for method in methods
    }
    report({"what": "back-off, Zheng FACS -> PBMC3k", "cells": len(truth), "methods": found})


def on_genes(learned: LabelledCells, judged: LabelledCells) -> tuple[Cells, Cells]:
    ours, theirs = on_shared_genes(learned, judged)
    return (
        Cells(log1p_cp10k(learned.counts, ours)),
        Cells(log1p_cp10k(judged.counts, theirs)),
    )


def with_embedding(cells: Cells, name: str, path: Path, rows: np.ndarray) -> Cells:
    model = scfm.load(name)
    assert model.vocab is not None, "models are loaded with a vocabulary"
    member, _ = open_input(path, model.vocab, InputConfig(), model.token_config)
    seen: Embedded = embed_all(model, member)
    return replace(cells, embedded={"model": seen.part(rows)})


def judge(
    method: Method, reference: Reference, query: Cells, terms: dict[str, str], truth: np.ndarray
) -> dict[str, Any]:
    """One method's scores in every way of answering."""
    ontology = CellOntology.load()
    with threadpool_limits(1):
        calibration = calibrated(method, reference)
        found = calibration.apply(method.fit(reference).predict(query))
    finest = np.array([terms[label] for label in found.label], dtype=object)
    is_named = found.labels(calibration.threshold) != "unknown"
    answers = {
        "most probable": finest,
        "or unknown": np.where(is_named, finest, "").astype(object),
        **{f"back-off {t}": back_off(found, terms, ontology, t).term for t in THRESHOLDS},
    }
    scores = {how: hierarchy_scores(truth, answer, ontology) for how, answer in answers.items()}
    for how, score in scores.items():
        mark = "  <- shipped" if how == f"back-off {THRESHOLD}" else ""
        print(f"{method.name}, {how}: {score}{mark}")
    return {how: score.to_dict() for how, score in scores.items()}


def calibrated(method: Method, reference: Reference) -> Any:
    """The temperature and threshold, from reference cells that had no vote on themselves."""
    parts: list[Any] = []
    labels: Sequence[Any] = []
    for fold in hold_out_cells(reference.labels, n_folds=3, seed=0).folds:
        fitted = method.fit(reference.part(fold.train))
        parts.append(fitted.predict(reference.cells.part(fold.test)))
        labels = [*labels, *reference.labels[fold.test]]
    return fit_probability_calibration(on_classes(parts), np.array(labels, dtype=object))


if __name__ == "__main__":
    main()
