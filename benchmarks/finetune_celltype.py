"""A model fine-tuned on sorted blood cells says the types of PBMC3k, beside linear methods.

One JSON line on stdout. Learned from: the sorted cells, their gates in common terms; 15 % of them
drawn at random (there is one donor) stop the training, choose the probe's penalty and set the
calibration. Judged: the 2,592 mapped cells of PBMC3k, which choose nothing. The linear methods
learn from all sorted cells. Intervals and differences are over cells.

    python benchmarks/finetune_celltype.py ../shared/data/rna --model RUN --cache FOLDER

What the frozen model makes of the cells is kept in the cache, so that methods may be run apart.
"""

import argparse
import copy
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from measure import report
from threadpoolctl import threadpool_limits

import scfm
from scfm.evaluate.celltype import Prediction, evaluate_transfer, read_label_mapping
from scfm.evaluate.celltype_inputs import CelltypeData, OpenedCells, open_cells
from scfm.evaluate.type_baselines import BASELINES
from scfm.evaluate.type_methods import Cells, Reference
from scfm.evaluate.type_models import untrained
from scfm.metrics import expected_calibration_error
from scfm.model.base import CellModel
from scfm.tasks.celltype import CelltypeConfig, classifier_pooling, fit_classifier
from scfm.tasks.celltype_data import LabelledPool, require_types, split_labelled
from scfm.tasks.celltype_features import Look, Seen, look_with
from scfm.tasks.celltype_probe import PENALTIES
from scfm.tasks.classification import as_probabilities, pool_scores
from scfm.tasks.embedding import EmbeddingConfig
from scfm.tasks.probability_calibration import ProbabilityCalibration
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tools.celltype_finetuning import calibrated
from scfm.train.datamodule import VALIDATION_EPOCH
from scfm.train.settings import TrainConfig

BESIDE = ("majority", "pca_knn", "pca_logistic", "hvg_logistic", "raw_logistic")
AGAINST = "pca_logistic"
PROBES = ("embedding", "genes", "both")  # what the classifier reads
TUNED = ("partial", "lora", "full")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with the two h5ad files and the mapping")
    parser.add_argument("--model", required=True, help="pretrained on the sorted cells' counts")
    parser.add_argument("--untrained", action="store_true", help="with its first, random weights")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--probes", nargs="*", default=list(PROBES), choices=PROBES)
    parser.add_argument("--methods", nargs="*", default=list(TUNED), choices=TUNED)
    parser.add_argument("--penalties", nargs="*", type=float, default=PENALTIES)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--views", nargs="*", help="only look: training_0, query, ...")
    asked = parser.parse_args()
    names = asked.data / "zheng_facs_pbmc.h5ad", asked.data / "pbmc3k.h5ad"
    opened = open_cells(
        CelltypeData(
            query=names[1],
            label_key="cell_type",
            reference=names[0],
            reference_label_key="celltype",
            mapping=read_label_mapping(asked.data / "pbmc_label_mapping.csv"),
        ),
        InputConfig(),
    )
    model = scfm.load(asked.model, device="cpu").eval()
    model = untrained(model, 0) if asked.untrained else model
    cache = asked.cache / ("untrained" if asked.untrained else "trained")
    cache.mkdir(parents=True, exist_ok=True)
    bench = Bench(model, opened, names, asked, cache)
    if asked.views:
        for view in asked.views:
            bench.seen(view)
        return
    for features in asked.probes:
        bench.judge("probe", features)
    for method in asked.methods:
        bench.judge(method, "both")
    found = bench.scores(baselines(opened))
    report({"what": "fine-tuning, sorted PBMC -> PBMC3k", "untrained": asked.untrained, **found})


class Bench:
    """One model, fine-tuned in every way."""

    def __init__(self, model: CellModel, opened: OpenedCells, names: Any, asked: Any, cache: Path):
        self.model, self.opened, self.cache = model, opened, cache
        self.steps, self.penalties = asked.steps, tuple(asked.penalties)
        self.pools = [self._pool(name, n) for n, name in enumerate(names)]
        split = split_labelled(self.pools[0].types, judged_share=0, validation_share=0.15, seed=0)
        self.learned, self.split = require_types(self.pools[0], split, "sorted PBMC")
        self.truth = opened.sets[1].labels
        self.query = opened.sets[1].rows
        self.answers: dict[str, Prediction] = {}
        self.facts: dict[str, Any] = {}

    def _pool(self, name: Path, number: int) -> LabelledPool:
        model, cells = self.model, self.opened.sets[number]
        assert model.vocab is not None, "models are loaded with a vocabulary"
        member, _ = open_input(name, model.vocab, InputConfig(), model.token_config)
        types = np.full(member.source.n_cells, None, dtype=object)
        types[cells.rows] = cells.labels
        depth = EmbeddingConfig.of(model, classifier_pooling(model, None)).target_depth
        settings = CelltypeConfig()
        return LabelledPool(
            *([member], 0, types, depth),
            thin_probability=settings.thin_probability,
            thin_min_counts=settings.thin_min_counts,
        )

    def judge(self, method: Any, features: Any) -> None:
        """Fine-tune and answer for the query."""
        train = TrainConfig(steps=self.steps, validate_every=20, accelerator="cpu")
        config = CelltypeConfig(
            **{"method": method, "features": features, "train": train, "patience": 3},
            **{"judged_share": 0, "penalties": self.penalties},
        )
        model, started = copy.deepcopy(self.model), time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            fitted = fit_classifier(
                *(model, self.learned, self.split, config, Path(folder)),
                look=self.look(features),
            )
        assert fitted is not None
        seconds, key = time.perf_counter() - started, f"{method}_{features}"
        if method == "probe":
            scores = fitted.probe.scores(only(self.seen("query"), features))
        else:
            scores = pool_scores(fitted.model, self.pools[1], self.query)
        kept = calibrated(fitted.model, self.learned, self.split)
        tempering = ProbabilityCalibration(temperature=kept.temperature)
        found = tempering.apply(as_probabilities(scores, self.learned.labels))
        self.answers[key] = Prediction(key, "model", found.label)
        is_right = np.asarray(found.label == self.truth, dtype=bool)
        self.facts[key] = {
            "calibration_error": round(expected_calibration_error(is_right, found.confidence), 4),
            "temperature": round(kept.temperature, 3),
            "inverse_penalty": fitted.probe.inverse_penalty,
            "loss_by_inverse_penalty": {c: round(v, 4) for c, v in fitted.probe.losses.items()},
            "validation_curve": [[step, round(loss, 4)] for step, loss in fitted.curve],
            "best_step": fitted.best_step,
            "seconds": round(seconds, 1),
        }
        print(key, self.facts[key], flush=True)

    def look(self, features: str) -> Look:
        """The frozen model's view of cells, made once for all ways."""

        def part(cells: Any, epoch: int | None) -> Seen:
            is_training = len(cells) == len(self.split.training)
            return only(self.seen(f"training_{epoch}" if is_training else "validation"), features)

        return part

    def seen(self, view: str) -> Seen:
        """Some cells as the frozen model sees them: from the cache, or into it."""
        vectors, values = self.cache / f"{view}.npy", self.cache / f"{view}.npz"
        if not values.exists():
            side, _, epoch = view.partition("_")
            pool = self.pools[side == "query"]
            cells = self.query if side == "query" else getattr(self.split, side)
            shown = VALIDATION_EPOCH if side == "validation" else int(epoch) if epoch else None
            pooling = classifier_pooling(self.model, None)
            found = look_with(self.model, pool, pooling, "both")(cells, shown)
            np.save(vectors, found.vectors)
            sp.save_npz(values, found.values)
        return Seen(np.load(vectors), sp.csr_matrix(sp.load_npz(values)))

    def scores(self, beside: dict[str, Prediction]) -> dict[str, Any]:
        """Macro-F1 of all, and of each way of fine-tuning minus PCA with logistic regression."""
        found, others = {}, {}
        for key, answer in self.answers.items():
            judged = evaluate_transfer(
                self.truth, {key: answer, **beside}, reference={}, query={}, seed=0
            )
            gap, own = judged.versus[AGAINST], judged.method(key)
            found[key] = {
                **spread(own),
                f"minus_{AGAINST}": [round(x, 4) for x in (gap.value, gap.low, gap.high)],
                **self.facts[key],
            }
            others = {m.key: spread(m) for m in judged.methods if m.kind == "baseline"}
        sizes = {"trained_on": len(self.split.training), "validated_on": len(self.split.validation)}
        return {"cells": len(self.truth), **sizes, "fine_tuned": found, "beside": others}


def only(seen: Seen, features: str) -> Seen:
    """The part that a classifier of this kind reads."""
    vectors = seen.vectors[:, :0] if features == "genes" else seen.vectors
    return Seen(vectors, seen.values[:, :0] if features == "embedding" else seen.values)


def spread(method: Any) -> dict[str, Any]:
    macro, balanced = method.macro_f1, method.balanced_accuracy
    return {
        "macro_f1": [round(x, 4) for x in (macro.value, macro.low, macro.high)],
        "balanced_accuracy": round(balanced.value, 4),
    }


def baselines(opened: OpenedCells) -> dict[str, Prediction]:
    n = opened.sets[0].n_cells
    reference = Reference(Cells(opened.log_counts[:n]), opened.labels[:n])
    query, found = Cells(opened.log_counts[n:]), {}
    with threadpool_limits(1):
        for method in BASELINES:
            if method.key in BESIDE:
                said = method.fit(reference).predict(query).label
                found[method.key] = Prediction(method.name, "baseline", said)
    return found


if __name__ == "__main__":
    main()
