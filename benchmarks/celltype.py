"""Cell typing judged: donors held out against cells at random, and sorted blood cells -> PBMC3k.

One JSON line on stdout, from the functions behind ``scfm evaluate celltype``. Two questions:

donors     40 donors of a PBMC panel (1,000 genes), five folds of eight donors held out whole, and
           the same cells split at random: what a random split flatters every method by
transfer   sorted PBMC as reference, PBMC3k as query, labels in common terms: macro-F1, expected
           calibration error after fitting on the reference alone, AUROC of "unknown" for each
           type left out of the reference

    python benchmarks/celltype.py ../shared/data/rna --model demo --out reports
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from measure import report

import scfm
from scfm.evaluate.celltype import read_label_mapping
from scfm.evaluate.celltype_evaluation import evaluate_celltype
from scfm.evaluate.celltype_inputs import CelltypeData
from scfm.evaluate.celltype_protocol import ProtocolConfig
from scfm.evaluate.celltype_report import write_celltype
from scfm.evaluate.celltype_result import CelltypeResult
from scfm.evaluate.provenance import provenance_of


def main() -> None:
    """Evaluate, write the reports, and print one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with the h5ad files")
    parser.add_argument("--model", required=True, help="folder of a model or a run")
    parser.add_argument("--out", type=Path, required=True, help="folder for the reports")
    parser.add_argument("--only", choices=("donors", "transfer"))
    asked = parser.parse_args()
    found: dict[str, Any] = {}
    if asked.only != "transfer":
        panel = CelltypeData(
            query=asked.data / "onek1k_1000genes.h5ad",
            label_key="cell_type",
            split_by="donor",
            donor_key="donor",
        )
        found["donors held out"] = judge(asked, "donors", panel)
        found["cells at random"] = judge(asked, "random", replace(panel, split_by=None))
    if asked.only != "donors":
        transfer = CelltypeData(
            query=asked.data / "pbmc3k.h5ad",
            label_key="cell_type",
            reference=asked.data / "zheng_facs_pbmc.h5ad",
            reference_label_key="celltype",
            mapping=read_label_mapping(asked.data / "pbmc_label_mapping.csv"),
        )
        found["sorted PBMC -> PBMC3k"] = judge(asked, "transfer", transfer)
    report({"benchmark": "cell typing", **found})


def judge(asked: argparse.Namespace, name: str, data: CelltypeData) -> dict[str, Any]:
    """One evaluation, its report written, its scores."""
    models = {asked.model: scfm.load(asked.model)}
    found = evaluate_celltype(data, models, config=ProtocolConfig())
    made = provenance_of(models, [p for p in (data.reference, data.query) if p is not None])
    write_celltype(found, asked.out / name, title=f"Cell typing: {name}", provenance=made)
    print(found.table(), flush=True)
    return scores(found)


def scores(found: CelltypeResult) -> dict[str, Any]:
    """Macro-F1 and its interval, accuracy, calibration error, AUROC of "unknown" of each method."""
    return {
        "cells": len(found.evaluation.truth),
        "verdict": found.verdict,
        "methods": {
            method.key: {
                "macro_f1": [round(x, 3) for x in vars(method.macro_f1).values()],
                "accuracy": round(method.accuracy.value, 3),
                "ece": round(found.calibration[method.key].error.value, 3),
                "unknown": {
                    label: round(score.value, 3)
                    for label, score in found.unknown.get(method.key, {}).items()
                },
            }
            for method in found.evaluation.methods
        },
    }


if __name__ == "__main__":
    main()
