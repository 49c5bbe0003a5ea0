"""A model of TF binding trained and scored: the whole of ``scfm finetune tfbinding``.

in   a BindingRun: regions with labels, their DNA and accessibility
out  a run folder: config.yaml, metrics.csv, checkpoints/, model/, metrics.json
"""

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scfm.config import from_mapping, to_mapping, to_yaml
from scfm.data.fingerprint import sha256
from scfm.data.region_examples import RegionExamples, open_regions
from scfm.data.region_sampling import labelled_chroms, numbers, pairs, part_examples
from scfm.data.region_split import (
    PARTS,
    TEST,
    TRAINING,
    VALIDATION,
    RegionSplit,
    bare,
    split_regions,
    stretch_of,
)
from scfm.data.write import atomic_path, make_folder
from scfm.errors import ConfigError, ScfmWarning
from scfm.model.dna import BindingModel, with_cells
from scfm.model.dna_config import BindingConfig
from scfm.model.dna_folder import load_binding, save_binding
from scfm.tasks.pretrain_run import MACHINE_KEYS
from scfm.tasks.tfbinding import fit_binding, predict_logits, provenance_of
from scfm.tasks.tfbinding_adversary import AdversaryConfig, disturbed_logits
from scfm.tasks.tfbinding_run import (
    BindingData,
    BindingRun,
    SplitConfig,
    absolute,
    check,
    load_binding_run,
)
from scfm.tasks.tfbinding_scores import task_scores
from scfm.train.processes import decided_by_first, rank
from scfm.train.settings import as_started
from scfm.version import __version__

CONFIG, METRICS = "config.yaml", "metrics.json"
SPLIT_KEYS = ("training_chroms", "validation_chroms", "test_chroms", "held_out_groups")


def finetune_tfbinding(
    run: BindingRun,
    out: str | Path,
    *,
    resume: bool = False,
    say: Callable[[object], None] = lambda line: None,
) -> dict[str, Any]:
    """Train a binding model and score it; returns what metrics.json holds.

    ``resume`` goes on with the run in ``out`` as it was configured, from its newest checkpoint.

    Raises ConfigError where ``out`` already holds a run, or the split cannot be; InputError for
    unusable data; Interrupted, with a checkpoint written, when stopped by a signal.
    """
    out = Path(out)
    run = replace(run, train=as_started(run.train))
    check(run)
    if not resume and decided_by_first(lambda: (out / CONFIG).exists()):
        raise ConfigError(
            f"{out} already holds a run. Go on with it: scfm finetune tfbinding --out {out} "
            "--resume; or give another --out."
        )
    examples = open_examples(run.data, run.model.length)
    split = split_of(examples, run.split)
    model = _model(run, examples)
    if run.start:
        refuse_seen(examples, model, split)
    run = replace(run, model=model.config)
    make_folder(out)
    if rank() == 0:
        with atomic_path(out / CONFIG) as temporary:
            temporary.write_text(to_yaml(absolute(run)))
    say(_summary(model, examples, split))
    fitted = fit_binding(model, examples, split, run, out=out, resume=resume)
    if rank():
        return {}
    has_gpu = run.train.accelerator != "cpu" and torch.cuda.is_available()
    scores = part_scores(fitted.model, examples, split, device="cuda" if has_gpu else None)
    if run.adversary.kind != "none":
        scores["test_disturbed"] = disturbed_scores(fitted.model, examples, split, run.adversary)
    fitted.model.provenance = {
        "made_by": f"scfm {__version__} finetune tfbinding",
        "data": data_facts(run.data, examples),
        **provenance_of(fitted, split, _without_paths(run)),
    }
    save_binding(fitted.model, out / "model")
    found = {
        **scores,
        "best": {"stage": fitted.best[0], "step": fitted.best[1]},
        "n_training_examples": fitted.n_training,
        "n_bound_examples": fitted.n_bound,
        "model": fitted.model.provenance["weights_sha256"],
        "scfm_version": __version__,
    }
    with atomic_path(out / METRICS) as temporary:
        temporary.write_text(json.dumps(found, indent=2) + "\n")
    return found


def read_binding_run(out: str | Path, overrides: tuple[str, ...] = ()) -> BindingRun:
    """The settings that a run was started with, on the machine that ``overrides`` name.

    Raises ConfigError where there is no run, and for an override that changes what is computed.
    """
    path = Path(out) / CONFIG
    if not path.exists():
        raise ConfigError(f"{out} is no run folder: it has no {CONFIG}. Check --out.")
    changed = [key for key in (o.partition("=")[0] for o in overrides) if key not in MACHINE_KEYS]
    if changed:
        raise ConfigError(
            f"--resume goes on with the run as it was configured; {', '.join(changed)} would "
            "change it. Leave that out, or start another run with another --out."
        )
    return load_binding_run(str(path), overrides)


def open_examples(data: BindingData, length: int | None = None) -> RegionExamples:
    """The examples that the ``data`` section names; ``length`` is that of a genome's windows."""
    if not data.path:
        raise ConfigError("No regions to train on. Name their file: scfm finetune tfbinding DATA")
    given = {name: value for name, value in vars(data).items() if value and name != "path"}
    if data.fasta:
        given.setdefault("length", length)
    return open_regions(data.path, **given)


def split_of(examples: RegionExamples, config: SplitConfig) -> RegionSplit:
    """The split of the ``split`` section, over chromosomes that have labels.

    Others are left out with a ScfmWarning, unless they are named for training.
    """
    labelled = labelled_chroms(examples)
    present = {str(name) for name in np.unique(examples.chrom)}
    without = sorted(present - set(labelled))
    is_used = np.isin(examples.chrom, list(config.training_chroms or labelled))
    names = [*config.validation_chroms, *config.test_chroms]
    split = split_regions(
        examples.chrom,
        validation=config.validation_chroms,
        test=config.test_chroms,
        training=config.training_chroms or _others(examples, is_used, names),
        groups=examples.groups,
        held_out_groups=config.held_out_groups,
    )
    for part, chroms in zip(PARTS, split.chroms, strict=True):
        places = [(name, stretch_of(name)) for name in chroms]
        lost = [name for name, s in places if (s[0] if s else name) not in labelled]
        if lost:
            raise ConfigError(
                f"No TF is bound in any window of {', '.join(lost)}, named for {part}: its labels "
                f"are not in the file. There are some on {', '.join(labelled) or 'none'}."
            )
    if without:
        warnings.warn(
            f"No TF is bound in any window of {', '.join(without)}: without labels, these "
            "chromosomes are left out.",
            ScfmWarning,
            stacklevel=2,
        )
    return split


def refuse_seen(examples: RegionExamples, model: BindingModel, chosen: RegionSplit) -> None:
    """Refuse to judge a model on what it was trained with (ConfigError), as far as it says."""
    facts, kept = (model.provenance.get(key, {}) for key in ("data", "split"))
    own = RegionSplit(**{key: tuple(map(bare, kept.get(key, ()))) for key in SPLIT_KEYS[:3]})
    chrom = np.array([bare(str(name)) for name in examples.chrom])
    trained_in = own.part_of(chrom, examples.start, examples.end)
    part = chosen.part_of(examples.chrom, examples.start, examples.end)
    for told, option, forbidden in (
        (TEST, "--test-chroms", (TRAINING, VALIDATION)),
        (VALIDATION, "--validation-chroms", (TRAINING,)),
    ):
        seen = (part == told) & np.isin(trained_in, forbidden)
        if seen.any():
            names = ", ".join(np.unique(np.asarray(examples.chrom)[seen]).tolist())
            raise ConfigError(
                f"{option}: the model has seen {seen.sum():,} of these regions ({names}) while it "
                f"was trained. It was not trained on {_listed(kept, 'test_chroms')}, and stopped "
                f"by {_listed(kept, 'validation_chroms')}: leave the option out, or train another."
            )
    seen_groups = set(facts.get("groups", ())) - set(kept.get("held_out_groups", ()))
    wrong = [name for name in chosen.held_out_groups if name in seen_groups]
    if wrong:
        raise ConfigError(
            f"--held-out-groups: the model was trained on {', '.join(wrong)}. It was not on "
            f"{_listed(kept, 'held_out_groups')}."
        )


def _listed(kept: Mapping[str, Any], key: str) -> str:
    return ", ".join(kept.get(key, ())) or "any other"


def _others(examples: RegionExamples, is_used: np.ndarray, names: list[str]) -> tuple[str, ...]:
    """Chromosomes in use that are not named, with or without "chr"."""
    named = {bare(name) for name in names}
    used = sorted({str(name) for name in np.unique(examples.chrom[is_used])})
    return tuple(name for name in used if bare(name) not in named)


def _model(run: BindingRun, examples: RegionExamples) -> BindingModel:
    d_cell = _cell_width(examples)
    if run.start:
        model = load_binding(run.start)
        if d_cell and not model.config.d_cell:
            return with_cells(model, d_cell)
        return model
    shape = {"length": examples.length, "n_tracks": len(examples.tracks), "d_cell": d_cell}
    config = from_mapping(
        BindingConfig, to_mapping(run.model) | shape, where="The data and section model"
    )
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        return BindingModel(config, examples.tasks)


def _cell_width(examples: RegionExamples) -> int:
    """Width of the cell embedding; 0 where the examples have none."""
    one = np.zeros(1, np.int64)
    cell = examples.batch(one, one if examples.groups else one - 1).cell
    return 0 if cell is None else cell.shape[1]


def part_scores(
    model: BindingModel,
    examples: RegionExamples,
    split: RegionSplit,
    *,
    device: str | None = None,
) -> dict[str, Any]:
    """Scores on validation and test chromosomes; in held-out groups too, where there are any."""
    parts = split.part_of(examples.chrom, examples.start, examples.end)
    held_out = split.is_held_out(examples.groups) if examples.groups else None
    asked = [("validation", VALIDATION, False), ("test", TEST, False)]
    if split.held_out_groups:
        asked.append(("test_in_held_out_groups", TEST, True))
    found = {}
    for name, part, in_held_out in asked:
        is_group = None if held_out is None else held_out == in_held_out
        region, group = pairs(examples, numbers(examples, parts == part, is_group))
        logits = predict_logits(model, examples, region, group, device=device)
        found[name] = task_scores(logits, examples.labels(region, group), model.tasks).to_dict()
        found[name]["n_windows"] = len(region)
    return found


def disturbed_scores(
    model: BindingModel, examples: RegionExamples, split: RegionSplit, config: AdversaryConfig
) -> dict[str, Any]:
    """Scores on the test chromosomes as the training disturbed its windows, all of them."""
    region, group = pairs(examples, part_examples(examples, split, TEST))
    logits = disturbed_logits(model, examples, region, group, config)
    found = task_scores(logits, examples.labels(region, group), model.tasks).to_dict()
    return found | {"n_windows": len(region)}


def data_facts(data: BindingData, examples: RegionExamples) -> dict[str, Any]:
    """What the data is, without a path of this machine."""
    return {
        "name": Path(data.path).name,
        "sha256": sha256(Path(data.path)),
        "fasta": Path(data.fasta).name if data.fasta else None,
        "tracks": list(examples.tracks),
        "groups": list(examples.groups),
        "n_regions": examples.n_regions,
    }


def _without_paths(run: BindingRun) -> BindingRun:
    data = run.data
    return replace(
        run,
        start=Path(run.start).name if run.start else None,
        data=replace(
            data,
            path=Path(data.path).name,
            fasta=Path(data.fasta).name if data.fasta else None,
            tracks={name: Path(path).name for name, path in data.tracks.items()},
        ),
    )


def _summary(model: BindingModel, examples: RegionExamples, split: RegionSplit) -> str:
    n = sum(p.numel() for p in model.parameters())
    return (
        f"{model.config.family}: {n:,} parameters, {len(model.tasks)} tasks, "
        f"{examples.n_regions:,} regions of {examples.length:,} bp, {len(examples.tracks)} tracks, "
        f"{len(examples.groups)} groups; validation {', '.join(split.validation_chroms)}, test "
        f"{', '.join(split.test_chroms)}"
    )
