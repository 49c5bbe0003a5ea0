"""The main job on bundled real cells: pretrain, embed, annotate, evaluate, report.

in   scfm/demo/cells: sorted PBMC (reference) and PBMC3k (query), raw counts
out  a folder with model/, reference.h5ad, query_annotated.h5ad, metrics.json, report.html

The model is pretrained on the reference's counts alone. It sees no label, and no cell of the query
before it is asked to embed it.
"""

import importlib.metadata
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float, Shaped

from scfm.data.fingerprint import sha256
from scfm.data.write import make_folder, write_h5ad
from scfm.errors import OutputError
from scfm.evaluate.baselines import baseline_predictions
from scfm.evaluate.celltype import (
    Prediction,
    common_labels,
    evaluate_transfer,
    read_label_mapping,
)
from scfm.evaluate.log_counts import CountTable
from scfm.evaluate.report import write_metrics, write_report
from scfm.evaluate.results import Evaluation
from scfm.model.base import CellModel
from scfm.tasks.embedding import EmbeddingConfig
from scfm.tasks.neighbours import NeighbourClassifier
from scfm.tasks.pretrain import pretrain
from scfm.tasks.pretrain_run import PretrainRun, load_run
from scfm.tasks.reference import Reference
from scfm.tokens.inputs import open_input
from scfm.tools.annotation_by_reference import ReferenceAnnotation, annotate_by_reference
from scfm.tools.embedding import embed_source, model_id, vocab_of
from scfm.tools.loading import load
from scfm.tools.reference import ReferenceConfig, reference_of
from scfm.train.loggers import read_metrics
from scfm.version import __version__

CELLS = Path(__file__).parent / "cells"
LABEL = "cell_type"
MARKER = "scfm_demo.txt"  # in the folder of an earlier demo, which may be replaced
SEED = 0
WRITTEN = (
    *("config.yaml", "data.json", "vocab.tsv", "metrics.csv", "checkpoints", "model"),
    *("reference.h5ad", "query_annotated.h5ad", "metrics.json", "report.html"),
)


@dataclass(frozen=True)
class DemoData:
    """Both sets in memory, as AnnData, and what their cells are called in common terms."""

    reference: ad.AnnData
    query: ad.AnnData  # all 2,700 cells
    is_judged: Bool[np.ndarray, " cell"]  # query cells whose label the reference has
    left_out: dict[str, int]

    @property
    def truth(self) -> Shaped[np.ndarray, " judged"]:
        return self.query.obs[LABEL].to_numpy(dtype=object)[self.is_judged]


def run_demo(
    out: Path, *, config: str = "scfm-tiny", overrides: tuple[str, ...] = (), say: Callable = print
) -> Evaluation:
    """Do the main job and write everything into ``out``; an earlier demo there is replaced.

    Raises OutputError where ``out`` holds something else, and what pretraining raises.
    """
    data = read_cells()
    clear_earlier_demo(out)
    write_h5ad(data.reference, out / "reference.h5ad")
    run = replace(load_run(config, overrides), data=(str(out / "reference.h5ad"),))
    say(f"Pretraining {config} on {data.reference.n_obs:,} sorted PBMC, {run.train.steps} steps")
    pretrain(run, out)
    model = load(out)

    say(f"Embedding and annotating {data.query.n_obs:,} cells of PBMC3k")
    how = ReferenceConfig(label_key=LABEL)
    reference = reference_of(out / "reference.h5ad", model, how, run.input)
    annotate_by_reference(data.query, model, reference, ReferenceAnnotation(), run.input)
    untrained = embed_untrained(model, run, data)

    say("Running the baselines on the same cells")
    evaluation = evaluate_transfer(
        data.truth,
        {
            "scfm": scfm_prediction(data, reference),
            "untrained": untrained_prediction(data, untrained),
            **baselines(data),
        },
        reference=described("Sorted PBMC", data.reference, data.reference.n_obs),
        query=described("PBMC3k", data.query, int(data.is_judged.sum())),
        seed=SEED,
    )
    say("Drawing the report")
    write_outputs(out, data, evaluation, model, run, untrained[1], reference.facts["genes"])
    return evaluation


def embed_untrained(
    model: CellModel, run: PretrainRun, data: DemoData
) -> tuple[Float[np.ndarray, "reference d"], Float[np.ndarray, "query d"]]:
    """Both sets through the network as it was before its first step."""
    torch.manual_seed(run.seed)
    vocab = vocab_of(model)
    fresh = run.new_model(vocab).eval()
    found = [
        embed_source(fresh, member, EmbeddingConfig.of(fresh), 64).embedding
        for member, _ in (
            open_input(cells, vocab, run.input, fresh.token_config)
            for cells in (data.reference, data.query)
        )
    ]
    return found[0], found[1]


def clear_earlier_demo(out: Path) -> None:
    """A folder with the marker in it and none of an earlier demo's files."""
    if out.is_dir() and any(out.iterdir()):
        if not (out / MARKER).exists():
            raise OutputError(
                f"{out} holds files that are not an earlier demo's. Choose another folder: --out"
            )
        for name in WRITTEN:  # what else lies there is the user's
            path = out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    make_folder(out)
    (out / MARKER).write_text("Made by scfm demo, which may replace this folder.\n")


def read_cells() -> DemoData:
    """Read both sets and put their labels in common terms, in ``obs["cell_type"]``."""
    mapping = read_label_mapping(CELLS / "pbmc_label_mapping.csv")
    reference = ad.read_h5ad(CELLS / "zheng_facs_pbmc.h5ad")
    query = ad.read_h5ad(CELLS / "pbmc3k.h5ad")
    of_reference = common_labels(
        reference.obs["celltype"].to_numpy(), mapping["zheng_facs_pbmc"], name="sorted PBMC"
    )
    of_query = common_labels(query.obs["cell_type"].to_numpy(), mapping["pbmc3k"], name="PBMC3k")
    reference.obs[LABEL] = of_reference.labels.astype(str)
    query.obs[LABEL] = np.where(of_query.is_kept, of_query.labels, "not in reference").astype(str)
    return DemoData(reference, query, of_query.is_kept, dict(of_query.left_out))


def scfm_prediction(data: DemoData, reference: Reference) -> Prediction:
    """What ``annotate`` says, with "unknown" resolved to the label with most votes."""
    embedding = np.asarray(data.query.obsm["X_scfm"])
    label = reference.answer(embedding, log_depth(data.query)).probabilities.label
    is_unknown = (data.query.obs["scfm_cell_type"] == "unknown").to_numpy()
    here, elsewhere = is_unknown[data.is_judged], is_unknown[~data.is_judged]
    note = (
        "Nearest neighbours in the cell embedding. The scores do not use 'unknown'; it was said of "
        f"{here.mean():.1%} of these cells, and of {elsewhere.mean():.1%} of the "
        f"{len(elsewhere)} cells that the reference has no type for."
    )
    return Prediction("scfm", "model", label[data.is_judged], note)


def untrained_prediction(data: DemoData, embedded: tuple[np.ndarray, np.ndarray]) -> Prediction:
    """The same network with its first, random weights: what the architecture alone gives."""
    reference, query = embedded
    voters = NeighbourClassifier.fit(
        reference, data.reference.obs[LABEL].to_numpy(), depth=log_depth(data.reference)
    )
    note = "The same architecture with random weights, before any training."
    found = voters.predict(query[data.is_judged], log_depth(data.query)[data.is_judged])
    return Prediction("scfm, untrained", "untrained", found.label, note)


def baselines(data: DemoData) -> dict[str, Prediction]:
    """The usual linear methods on the same cells, by gene symbol."""
    query = data.query[data.is_judged]
    return baseline_predictions(
        CountTable(
            sp.csr_matrix(data.reference.X), data.reference.var["symbol"].astype(str).tolist()
        ),
        data.reference.obs[LABEL].to_numpy(dtype=object),
        CountTable(sp.csr_matrix(query.X), query.var_names.astype(str).tolist()),
        seed=SEED,
    )


def log_depth(adata: ad.AnnData) -> Float[np.ndarray, " cell"]:
    """log10 of each cell's total count, the S of its tokens."""
    return np.log10(np.asarray(sp.csr_matrix(adata.X).sum(axis=1), dtype=np.float64).ravel())


def described(name: str, adata: ad.AnnData, n_judged: int) -> dict[str, Any]:
    """A data set in the report's terms."""
    return {
        "name": name,
        "n_cells": adata.n_obs,
        "n_cells_scored": n_judged,
        "n_genes": adata.n_vars,
        "label_key": LABEL,
    }


def umap_of(embedding: Float[np.ndarray, "cell d"]) -> Float[np.ndarray, "cell 2"]:
    """scanpy's UMAP at its defaults, seeded."""
    import scanpy as sc

    cells = ad.AnnData(obs={"cell": np.arange(len(embedding)).astype(str)})
    cells.obsm["X"] = embedding
    sc.pp.neighbors(cells, use_rep="X", metric="cosine", random_state=SEED)
    sc.tl.umap(cells, random_state=SEED)
    return np.asarray(cells.obsm["X_umap"], dtype=np.float64)


def training_record(out: Path, run: PretrainRun, model: CellModel) -> dict[str, Any]:
    """metrics.csv as columns, and what the run was."""
    rows = read_metrics(out / "metrics.csv")
    held_out = [float(row["val_loss"]) if row["val_loss"] else None for row in rows]
    return {
        "step": [int(row["step"]) for row in rows if row["loss"]],
        "loss": [float(row["loss"]) for row in rows if row["loss"]],
        "validation_loss": [v for v, row in zip(held_out, rows, strict=True) if row["loss"]],
        "seconds": model.provenance["seconds_of_last_session"],
        "cells": run.train.steps * run.loader.batch_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "settings": {
            "width": run.model.d_model,
            "layers": run.model.n_layers,
            "heads": run.model.n_heads,
            "batch": f"{run.loader.batch_size} cells",
            "steps": run.train.steps,
            "peak learning rate": run.optim.lr,
            "most genes of a cell": run.tokens.max_genes,
            "hidden share of expressed genes": run.tokens.target_share,
        },
    }


def write_outputs(
    out: Path,
    data: DemoData,
    evaluation: Evaluation,
    model: CellModel,
    run: PretrainRun,
    untrained: Float[np.ndarray, "cell d"],
    genes: dict[str, Any],
) -> None:
    """The annotated query, metrics.json and report.html."""
    reports = {
        "Reference: sorted PBMC": genes,
        "Query: PBMC3k": data.query.uns["scfm"]["X_scfm"]["genes"],
    }
    maps = {
        "scfm": umap_of(np.asarray(data.query.obsm["X_scfm"])[data.is_judged]),
        "untrained": umap_of(untrained[data.is_judged]),
    }
    training = training_record(out, run, model)
    write_h5ad(data.query, out / "query_annotated.h5ad")
    extra = {
        "training": {k: training[k] for k in ("seconds", "cells", "parameters", "settings")},
        "final_loss": training["loss"][-1],
        "genes": reports,
        "left_out": data.left_out,
        "provenance": provenance(model),
    }
    write_metrics(out / "metrics.json", evaluation, extra)
    write_report(
        out / "report.html",
        evaluation,
        embeddings=maps,
        training=training,
        gene_reports=reports,
        provenance=provenance(model),
        title="scfm demo: sorted PBMC label PBMC3k",
        limits=LIMITS,
    )


LIMITS = (
    "The model is the smallest preset, trained for a few minutes on fewer than 4,000 cells. It "
    "shows that the whole path works; it is no foundation model, and says nothing about one.",
    "Each sorted type of the reference is a sequencing library of its own, of its own depth, so "
    "type and library cannot be told apart there. What share of any error that causes is unknown.",
    "PBMC3k's labels come from clustering and marker genes, not from sorting, so part of every "
    "method's error may be theirs.",
    "Both sets are blood cells from one technology (10x v1).",
)


def provenance(model: CellModel) -> dict[str, Any]:
    """What made these numbers."""
    packages = ("torch", "lightning", "transformers", "anndata", "scanpy", "scikit-learn")
    return {
        "scfm": __version__,
        "model weights sha256": model_id(model),
        "seed": SEED,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "bundled cells sha256": {path.name: sha256(path) for path in sorted(CELLS.glob("*.h5ad"))},
    }
