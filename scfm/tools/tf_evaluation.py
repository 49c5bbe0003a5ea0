"""What scfm evaluate tfbinding needs from files: regions, the model's split, networks, cells.

in   paths and names
out  BindingEvaluation, BindingCalibration, what made them
"""

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float

from scfm.data.counts import CellSource
from scfm.data.fingerprint import sha256
from scfm.data.genome_regions import GenomeRegions
from scfm.data.lsi import lsi
from scfm.data.matched_peaks import N_BACKGROUNDS, matched_peaks
from scfm.data.nucleotides import gc_share
from scfm.data.region_examples import RegionExamples, SequenceRegions
from scfm.data.region_file import open_region_file
from scfm.data.region_split import RegionSplit
from scfm.errors import ConfigError, InputError, LabelError
from scfm.evaluate.motif_deviations import chromvar_deviations
from scfm.evaluate.motif_hits import Motifs, best_hits, hit_threshold, read_motifs
from scfm.evaluate.provenance import PACKAGES
from scfm.evaluate.tf_cells import standardised, unit_rows
from scfm.evaluate.tfbinding import (
    SCFAN,
    BindingEvaluationConfig,
    JudgedCells,
    Progress,
    evaluate_tfbinding,
)
from scfm.evaluate.tfbinding_baselines import window_codes
from scfm.evaluate.tfbinding_result import BindingEvaluation
from scfm.model.dna import BindingModel
from scfm.model.dna_config import BindingConfig
from scfm.tasks.tf_calibration import BindingCalibration
from scfm.tasks.tf_names import tf_of
from scfm.tasks.tfbinding import fit_binding
from scfm.tasks.tfbinding_run import BindingTraining, SplitConfig
from scfm.tools.tf_activities import (
    ActivityConfig,
    ActivityData,
    activities,
    count_chunks,
    peak_totals,
)
from scfm.tools.tf_prediction import as_binding, binding_id, open_for
from scfm.tools.tfbinding_training import SPLIT_KEYS, refuse_seen, split_of
from scfm.version import __version__

TOLD_TYPES = (
    "The groups whose accessibility the model reads are the very types that clusters of cells are "
    "held against: activities were told them, LSI was not."
)


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """Where regions, labels and cells are: the arguments of ``scfm evaluate tfbinding``."""

    path: Any  # a file, or an AnnData in memory
    fasta: str | Path | None = None
    tracks: Mapping[str, Any] = field(default_factory=dict)
    group_key: str | None = None
    cell_key: str | None = None
    chip_key: str | None = None
    chip_of: Mapping[str, str] = field(default_factory=dict)
    label_key: str | None = None
    layer: str | None = None
    binarised: bool = False


def evaluate_binding(
    data: EvaluationData,
    model: BindingModel | str | Path,
    *,
    split: Mapping[str, tuple[str, ...]] | None = None,
    motifs: str | Path | None = None,
    scfan: BindingModel | str | Path | None = None,
    scfan_steps: int = 0,
    config: BindingEvaluationConfig | None = None,
    device: str = "auto",
    on_progress: Progress = lambda what, done, total: None,
) -> tuple[BindingEvaluation, BindingCalibration, dict[str, Any]]:
    """Open everything, judge, and say what made it.

    ``split`` holds what differs from the split the model was trained with: chromosomes of
    training, validation and test, groups held out.

    Raises ConfigError for a split that is not known or cannot be, and what reading and judging
    raise.
    """
    config = config or BindingEvaluationConfig()
    network = as_binding(model, device)
    examples = open_for(
        network,
        data.path,
        fasta=data.fasta,
        tracks=data.tracks,
        group_key=data.group_key,
        cell_key=data.cell_key,
        chip_key=data.chip_key,
        chip_of=data.chip_of,
        layer=data.layer,
        binarised=data.binarised,
    )
    chosen = judged_split(examples, network, split or {})
    others = {}
    if scfan is not None:
        others[SCFAN] = as_binding(scfan, device)
    elif scfan_steps:
        others[SCFAN] = trained_scfan(examples, chosen, scfan_steps, config.seed, device)
    cells = None
    if data.label_key:
        cells = judged_cells(data, network, config, examples, motifs)
    found, calibration = evaluate_tfbinding(
        *(examples, network, chosen),
        others=others,
        motifs=motifs,
        cells=cells,
        config=config,
        facts={"name": _name(data.path)},
        on_progress=on_progress,
    )
    if cells is not None and data.label_key == data.group_key and examples.groups:
        found = replace(found, notes=[*found.notes, TOLD_TYPES])
    networks = {"scfm": network, **others}
    return found, calibration, _provenance(data, networks, motifs)


def judged_split(
    examples: RegionExamples, model: BindingModel, asked: Mapping[str, tuple[str, ...]]
) -> RegionSplit:
    """The split the model was trained with, but for what is asked otherwise.

    Raises ConfigError where the model does not say, the regions lack a chromosome or a group, and
    where it was trained on what it would be judged on.
    """
    kept: Mapping[str, Any] = model.provenance.get("split", {})
    known = {key: tuple(kept.get(key, ())) for key in SPLIT_KEYS} | dict(asked)
    missing = [key for key in SPLIT_KEYS[1:3] if not known[key]]
    if missing:
        raise ConfigError(
            "The model does not say which chromosomes it was not trained on. Name them: "
            f"{', '.join('--' + key.replace('_', '-') for key in missing)}."
        )
    if "training_chroms" not in asked and {"validation_chroms", "test_chroms"} & set(asked):
        known["training_chroms"] = ()  # all that are left
    if "held_out_groups" not in asked:
        there = set(examples.groups)
        known["held_out_groups"] = tuple(g for g in known["held_out_groups"] if g in there)
    chosen = split_of(examples, SplitConfig(**known))
    refuse_seen(examples, model, chosen)
    return chosen


def trained_scfan(
    examples: RegionExamples, split: RegionSplit, steps: int, seed: int, device: str
) -> BindingModel:
    """The published network, trained on this data as far as ``steps`` go."""
    shape = BindingConfig(
        family="scfan",
        length=examples.length,
        n_tracks=len(examples.tracks),
        both_strands=False,
        conv_l2=5e-7,
        dense_l1=1e-8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = BindingModel(shape, examples.tasks)
    plain = BindingTraining(seed=seed)
    every = max(1, min(steps // 10, plain.train.validate_every))
    training = replace(
        plain,
        train=replace(plain.train, steps=steps, validate_every=every),
        optim=replace(plain.optim, lr=1e-3, warmup_steps=0),
    )
    return as_binding(fit_binding(network, examples, split, training).model, device)


def judged_cells(
    data: EvaluationData,
    model: BindingModel,
    config: BindingEvaluationConfig,
    examples: RegionExamples,
    motifs: str | Path | None,
) -> JudgedCells:
    """Activities by both methods, motif deviations and LSI of all cells.

    Raises LabelError, InputError.
    """
    file = open_region_file(data.path)
    assert data.label_key is not None
    if data.label_key not in file.obs:
        columns = ", ".join(map(str, file.obs.columns)) or "none"
        raise LabelError(f"{file.name} has no obs column '{data.label_key}'. There is: {columns}.")
    if file.n_cells < 3:
        raise InputError(f"{file.name} has {file.n_cells} cells; wanted at least 3 to cluster.")
    types = file.obs[data.label_key].astype(object)
    places = ActivityData(
        data.group_key, data.fasta, data.tracks, data.cell_key, data.layer, data.binarised
    )
    found = {}
    for method, name, note in (
        ("deviation", "TF activity", "background-corrected, by the model's binding"),
        ("top2", "TF activity, top two", "scFAN's score of the model's binding"),
    ):
        how = ActivityConfig(method=method, seed=config.seed, batch_size=config.batch_size)
        values = activities(data.path, model, how, places).values
        found[f"activity_{method}"] = (name, note, standardised(values))
    note = "latent semantic indexing of the peaks themselves, no DNA"
    with file.open_counts(layer=data.layer) as source:
        found["lsi"] = ("LSI", note, unit_rows(lsi(source, seed=config.seed)))
        if motifs is not None:
            tfs = list(dict.fromkeys(map(tf_of, model.tasks)))
            known = read_motifs(motifs, tfs)
            if known.names:
                z = motif_deviations(examples, source, known, config.seed)
                note = "chromVAR's, of peaks with the motif of one of the model's TFs; no model"
                found["motif_deviations"] = ("Motif deviations", note, standardised(z))
    return JudgedCells(np.asarray(types.where(types.notna(), "").astype(str)), found)


def motif_deviations(
    examples: RegionExamples, source: CellSource, motifs: Motifs, seed: int
) -> Float[np.ndarray, "cell tf"]:
    """z of chromVAR's deviations, of the peaks whose DNA is known."""
    assert isinstance(examples, GenomeRegions | SequenceRegions), type(examples)
    row, n_peaks = examples.source_row, len(source.var)
    codes = window_codes(examples)
    hits = best_hits(motifs, codes)
    annotation = sp.lil_matrix((n_peaks, len(hits)))
    for column, (tf, best) in enumerate(hits.items()):
        annotation[row[best >= hit_threshold(motifs.log_odds[tf])], column] = 1
    totals = peak_totals(source)
    background = np.broadcast_to(np.arange(n_peaks), (N_BACKGROUNDS, n_peaks)).copy()
    background[:, row] = row[matched_peaks(totals[row], gc_share(codes), seed=seed)]
    has_motif = sp.csr_matrix(annotation)
    return chromvar_deviations(lambda: count_chunks(source), has_motif, background).z


def _name(data: Any) -> str:
    return Path(data).name if isinstance(data, str | Path) else "AnnData"


def _provenance(
    data: EvaluationData, networks: Mapping[str, BindingModel], motifs: str | Path | None
) -> dict[str, Any]:
    given = (data.path, data.fasta, motifs)
    files = [Path(f) for f in given if isinstance(f, str | Path)]
    return {
        "scfm": __version__,
        "weights sha256": {
            name: binding_id(model) or "trained here" for name, model in networks.items()
        },
        "files sha256": {file.name: sha256(file) for file in files},
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }
