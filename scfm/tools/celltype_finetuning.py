"""scfm.tl.finetune_celltype: a model that says cell types, judged on cells it never saw.

in   labelled cells, a model
out  RUN/model, a model folder (weights, labels, calibration, split, README.md with its scores);
     RUN/metrics.json (the verdict first), metrics.csv, config.yaml
"""

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from jaxtyping import Int, Shaped
from lightning.pytorch.utilities import rank_zero_warn
from threadpoolctl import threadpool_limits

from scfm.config import to_mapping, to_yaml
from scfm.data.cell_labels import NO_LABEL
from scfm.data.fingerprint import sha256
from scfm.data.split import group_codes
from scfm.data.write import atomic_path, make_folder
from scfm.errors import ConfigError, LabelError, ScfmWarning
from scfm.evaluate.celltype import Prediction, evaluate_transfer
from scfm.evaluate.labelled_cells import text_labels
from scfm.evaluate.log_counts import log1p_cp10k
from scfm.evaluate.results import Evaluation
from scfm.evaluate.type_baselines import BASELINES
from scfm.evaluate.type_methods import Cells, Reference
from scfm.model.base import CellModel, save_model
from scfm.tasks.calibration import Calibration
from scfm.tasks.celltype import (
    PROBE,
    CelltypeConfig,
    FittedClassifier,
    classifier_pooling,
    fit_classifier,
)
from scfm.tasks.celltype_data import CelltypeSplit, LabelledPool, require_types, split_labelled
from scfm.tasks.classification import as_probabilities, pool_scores
from scfm.tasks.embedding import EmbeddingConfig
from scfm.tasks.probability_calibration import LEAST_THRESHOLD, fit_probability_calibration
from scfm.tasks.type_probabilities import TypeProbabilities
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tokens.pool import PoolMember
from scfm.tools.celltype_result import CelltypeFinetuning
from scfm.tools.classifier_card import classifier_card, method_in_words
from scfm.tools.embedding import model_id, vocab_of
from scfm.tools.loading import as_model
from scfm.tools.ontology_labels import Mapped, label_terms
from scfm.train.processes import decided_by_first, rank
from scfm.train.settings import as_started
from scfm.version import __version__

if TYPE_CHECKING:
    from anndata import AnnData

FEWEST_CELLS = 2  # of a label: one cell cannot be learned from and held out
BESIDE = ("pca_logistic", "hvg_logistic", "majority")  # baselines that the card shows
BASELINE_CELLS = 20_000  # training cells the baselines learn from, and judged cells, at most
METRICS = "metrics.json"
# what a run that was stopped leaves behind
UNFINISHED = {"config.yaml", "metrics.csv", "checkpoints", "nonfinite.json", PROBE}


def finetune_celltype(
    data: "AnnData | str | Path",
    model: CellModel | str | Path,
    out: str | Path,
    *,
    label_key: str,
    holdout: str | None = None,
    batch_key: str | None = None,
    mapping: Mapped = None,
    config: CelltypeConfig | None = None,
    reading: InputConfig | None = None,
    say: Callable[[object], None] = lambda line: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> CelltypeFinetuning | None:
    """Teach a model the cell types of labelled cells.

    Parameters
    ----------
    data
        Labelled cells with raw counts.
    model
        Changed by training, where it is one in memory.
    out
        Run folder, new or empty.
    label_key
        obs column of the types. Cells without one take no part, nor those of a type that has but
        one cell.
    holdout
        obs column whose values (donors) are held out whole. Without it cells are held out at
        random, which is optimistic; a warning says so.
    batch_key
        obs column of batches, for ``config.integrate``.
    mapping
        What labels mean in the Cell Ontology, as `scfm.tl.map_labels` takes it.
    config
        Method and settings.

    Returns
    -------
    What was found; of several processes the others than the first get None.

    Raises
    ------
    LabelError
        No such column, fewer than two types, donors all on one side.
    ConfigError
        Settings that do not go together, or ``out`` holds a run.
    """
    config, out = config or CelltypeConfig(), Path(out)
    config = replace(config, train=as_started(config.train))
    _check(config, batch_key)
    model = as_model(model)
    base = {"weights_sha256": model_id(model), "made_by": model.provenance.get("made_by", "")}
    opened = open_labelled(data, model, label_key, holdout, batch_key, config, reading)
    _begin(out, config)
    if opened.split.is_optimistic:
        _warn(
            "Cells are held out at random, so scores are optimistic about new donors. Name the "
            "donors: holdout (--holdout donor_id)."
        )
    terms = label_terms(opened.member.source.obs, label_key, opened.name, mapping).terms
    baselines = _baselines(opened) if rank() == 0 else {}
    say(f"Fine-tuning by {method_in_words(config)} on {len(opened.split.training):,} cells")
    fitted = fit_classifier(
        *(model, opened.pool, opened.split, config, out),
        label_key=label_key,
        terms=terms,
        on_progress=on_progress,
    )
    if fitted is None:
        return None
    evaluation = _judged(fitted, opened, baselines, config)
    calibration = calibrated(fitted.model, opened.pool, opened.split)
    found = CelltypeFinetuning(
        out / "model", config.method, calibration, opened.split, fitted, evaluation
    )
    return _write(found, opened, config, out, base, data)


def _check(config: CelltypeConfig, batch_key: str | None) -> None:
    if config.integrate != "none" and batch_key is None:
        raise ConfigError(
            f"integrate is '{config.integrate}', and no batches are named. Name their obs column: "
            "batch_key (--batch-key)."
        )
    if config.integrate == "none" and batch_key is not None:
        raise ConfigError(
            f"batch_key is '{batch_key}', and integrate is 'none', so batches have no meaning. Ask "
            "for it: --integrate contrastive; to hold donors out: --holdout."
        )


def _begin(out: Path, config: CelltypeConfig) -> None:
    """A run folder, new, empty or left by a run that did not end; and what the run is."""

    def begin() -> None:
        found = {path.name for path in out.iterdir()} if out.is_dir() else set()
        if found - UNFINISHED:
            raise ConfigError(f"{out} already holds files. Give another --out.")
        for name in found:
            path = out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        make_folder(out)
        with atomic_path(out / "config.yaml") as temporary:
            temporary.write_text(to_yaml(config))

    decided_by_first(begin)


@dataclass(frozen=True)
class OpenedLabelled:
    """Labelled cells, opened for a model and split."""

    name: str
    label_key: str
    member: PoolMember
    pool: LabelledPool
    split: CelltypeSplit
    left_out: Mapping[str, int]


def open_labelled(
    data: "AnnData | str | Path",
    model: CellModel,
    label_key: str,
    holdout: str | None,
    batch_key: str | None,
    config: CelltypeConfig,
    reading: InputConfig | None,
) -> OpenedLabelled:
    """Open, label and split. Raises LabelError for columns that will not do."""
    pooling = classifier_pooling(model, config.pooling)
    how = EmbeddingConfig.of(model, pooling)
    member, _ = open_input(data, vocab_of(model), reading or InputConfig(), model.token_config)
    obs, name = member.source.obs, Path(member.source.name).name
    labels, left_out = learnable_labels(obs, label_key, name)
    batches = group_codes(obs, batch_key, name) if batch_key else None
    if batches is not None and len(batches[1]) < 2:
        raise LabelError(
            f"obs['{batch_key}'] of {name} holds only {batches[1]}; wanted two batches or more, or "
            "there is nothing to integrate. Name another column with --batch-key."
        )
    pool = LabelledPool(
        *([member], config.seed, labels, how.target_depth),
        batches=None if batches is None else batches[0].astype(np.int64),
        thin_probability=config.thin_probability,
        thin_min_counts=config.thin_min_counts,
    )
    split = split_labelled(
        pool.types,
        judged_share=config.judged_share,
        validation_share=config.validation_share,
        seed=config.seed,
        groups=group_codes(obs, holdout, name) if holdout else None,
        by=holdout,
    )
    pool, split = require_types(pool, split, name)
    return OpenedLabelled(name, label_key, member, pool, split, left_out)


def learnable_labels(
    obs: Any, label_key: str, name: str
) -> tuple[Shaped[np.ndarray, " cell"], dict[str, int]]:
    """A label or None for each cell, and how many have none that can be learned, by reason.

    Raises LabelError for an absent column, measurements, or fewer than two types; warns of types
    that are left out.
    """
    if label_key not in obs:
        known = ", ".join(map(str, obs.columns)) or "none"
        raise LabelError(
            f"{name} has no obs column '{label_key}'. There is: {known}. Name the column of types "
            "with --label."
        )
    labels = text_labels(obs[label_key], label_key, name)
    is_none = np.array([t is None or t.strip().casefold() in NO_LABEL for t in labels])
    labels = labels.copy()
    labels[is_none] = None
    names, n_cells = np.unique(labels[~is_none].astype(str), return_counts=True)
    rare = names[n_cells < FEWEST_CELLS]
    left_out = {"no label": int(is_none.sum())} if is_none.any() else {}
    if len(rare):
        shown = ", ".join(map(repr, rare[:5].tolist())) + (" ..." if len(rare) > 5 else "")
        _warn(
            f"{name}: of {shown} in obs['{label_key}'] there is one cell each, which cannot be "
            "learned from and held out; left out. Merge them into wider types to keep them."
        )
        left_out["the only cell of its type"] = len(rare)
        labels[np.isin(labels.astype(str), rare)] = None
    left = [str(label) for label in names if label not in set(rare)]
    if len(left) < 2:
        only = f"only '{left[0]}'" if left else "no type"
        raise LabelError(
            f"{name}: {only} is left in obs['{label_key}'] with at least {FEWEST_CELLS} cells; "
            "wanted two types or more, or there is nothing to tell apart. Name another column "
            "with --label."
        )
    return labels, left_out


def _warn(message: str) -> None:
    rank_zero_warn(message, category=ScfmWarning, stacklevel=4)


def calibrated(model: CellModel, pool: LabelledPool, split: CelltypeSplit) -> Calibration:
    """Temperature and threshold (at least 0.5) from the validation cells."""
    found = as_probabilities(pool_scores(model, pool, split.validation), pool.labels)
    fit = fit_probability_calibration(found, pool.texts[split.validation])
    threshold = max(fit.threshold, LEAST_THRESHOLD)
    return Calibration(temperature=fit.temperature, threshold=threshold, facts=fit.facts)


def _judged(
    fitted: FittedClassifier,
    opened: OpenedLabelled,
    baselines: Mapping[str, Prediction],
    config: CelltypeConfig,
) -> Evaluation | None:
    pool, split = opened.pool, opened.split
    if not len(split.judged):
        return None
    scores = pool_scores(fitted.model, pool, split.judged)
    found = as_probabilities(scores, pool.labels)
    answers = {
        "finetuned": Prediction(f"scfm, {method_in_words(config)}", "model", found.label),
    }
    if config.method != "probe":
        probe: TypeProbabilities = as_probabilities(fitted.probe_scores, pool.labels)
        answers["probe"] = Prediction("scfm, linear probe", "model", probe.label)
    names = {"name": opened.name, "labels": list(pool.labels)}
    kept = _most(split.judged, config.seed) if len(split.judged) > BASELINE_CELLS else None
    rows = slice(None) if kept is None else np.searchsorted(split.judged, kept)
    answers = {k: a._replace(predicted=a.predicted[rows]) for k, a in answers.items()}
    return evaluate_transfer(
        pool.texts[split.judged][rows],
        {**answers, **baselines},
        reference={**names, "n_cells": len(split.training)},
        query={**names, "n_cells": len(split.judged)},
        seed=config.seed,
    )


def _baselines(opened: OpenedLabelled) -> dict[str, Prediction]:
    """What linear methods say of the judged cells, from the same training cells."""
    pool, split = opened.pool, opened.split
    if not len(split.judged):
        return {}
    training, judged = (_most(cells, pool.seed) for cells in (split.training, split.judged))
    reference = Reference(Cells(_log_counts(opened.member, training)), pool.texts[training])
    asked = Cells(_log_counts(opened.member, judged))
    found = {}
    with threadpool_limits(1), warnings.catch_warnings():
        for method in BASELINES:
            if method.key in BESIDE:
                said = method.fit(reference).predict(asked).label
                found[method.key] = Prediction(method.name, "baseline", said, method.note)
    return found


def _most(cells: Int[np.ndarray, " cell"], seed: int) -> Int[np.ndarray, " some"]:
    """Not more cells than the baselines get."""
    if len(cells) <= BASELINE_CELLS:
        return cells
    rng = np.random.default_rng([seed, 0xBA5E])
    return np.sort(rng.choice(cells, BASELINE_CELLS, replace=False))


def _log_counts(member: PoolMember, cells: Int[np.ndarray, " cell"]) -> sp.csr_matrix:
    rows, n_columns = member.source.rows(cells), len(member.source.var)
    counts = sp.csr_matrix((rows.counts, rows.indices, rows.indptr), (rows.n_cells, n_columns))
    return log1p_cp10k(counts, np.arange(n_columns))


def _write(
    found: CelltypeFinetuning,
    opened: OpenedLabelled,
    config: CelltypeConfig,
    out: Path,
    base: Mapping[str, Any],
    data: Any,
) -> CelltypeFinetuning:
    """The model folder, and metrics.json."""
    made = {
        "base": dict(base),
        "verdict": found.verdict,
        "data": {
            "name": opened.name,
            "sha256": sha256(Path(data)) if _is_file(data) else "",
            "label_key": opened.label_key,
            "left_out": dict(opened.left_out),
        },
        "split": found.split.to_dict(),
        "settings": to_mapping(config),
        "best_step": found.fitted.best_step,
        "inverse_penalty": found.fitted.probe.inverse_penalty,
    }
    model = found.fitted.model
    model.provenance = {
        **model.provenance,
        "made_by": f"scfm {__version__} finetune celltype",
        "finetuned": made,
    }
    card = classifier_card(model, found)
    save_model(model, out / "model", card=card)
    calibration = replace(found.calibration, weights_sha256=model_id(model))
    calibration.save(out / "model")
    model.calibration = calibration.to_dict()
    found = replace(found, calibration=calibration)
    with atomic_path(out / METRICS) as temporary:
        temporary.write_text(json.dumps(found.to_dict(), indent=2) + "\n")
    (out / PROBE).unlink(missing_ok=True)
    return found


def _is_file(data: Any) -> bool:
    return isinstance(data, str | Path) and Path(data).is_file()
