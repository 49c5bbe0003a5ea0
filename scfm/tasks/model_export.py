"""A checkpoint of a run -> a model folder.

in   a run folder and one of its checkpoints, of any strategy
out  float32 weights, config, vocabulary and provenance
"""

import json
from pathlib import Path
from typing import Any

import torch

from scfm.config import to_mapping
from scfm.errors import ModelError
from scfm.model.base import save_model
from scfm.tasks.pretrain_run import PretrainRun, with_paths
from scfm.tokens.vocab import GeneVocab
from scfm.train.checkpoint_files import read_manifest
from scfm.train.consolidate import whole_weights
from scfm.version import __version__


def export_checkpoint(
    checkpoint: Path, run: PretrainRun, out: Path, target: Path, **more: Any
) -> Path:
    """Write the model that the checkpoint holds into ``target``; ``out`` is the run's folder.

    ``more`` goes into its provenance. Raises ModelError where weights and run do not fit, or the
    weights are not finite; OutputError.
    """
    vocab = GeneVocab.load(out / "vocab.tsv")
    with torch.random.fork_rng(devices=[]):  # weights are drawn, to be replaced
        model = run.new_model(vocab)
    weights = {name.removeprefix("model."): w for name, w in whole_weights(checkpoint).items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelError(f"{checkpoint} does not fit {out / 'config.yaml'}: {error}") from error
    model.provenance = _provenance(run, out, read_manifest(checkpoint).step) | more
    save_model(model, target)
    return target


def _provenance(run: PretrainRun, out: Path, step: int) -> dict[str, Any]:
    data = json.loads((out / "data.json").read_text())
    return {
        "made_by": f"scfm {__version__} pretrain",
        "steps": step,
        # File names alone: where they lay is nobody's business.
        "run": to_mapping(with_paths(run, lambda path: Path(path).name)),
        "data": {
            "files": [[Path(path).name, digest] for path, digest in data["files"]],
            "stores": [[Path(s["path"]).name, s["manifest_sha256"]] for s in data["stores"]],
            "n_cells": data["n_cells"],
            "n_held_out": data["n_held_out"],
        },
        "share_in_vocabulary": _share_in_vocabulary(data["genes"]),
        "torch": torch.__version__,
    }


def _share_in_vocabulary(reports: dict[str, dict[str, Any]]) -> float | None:
    """Mean over data sets of the share of their counts that fall on the model's genes."""
    shares = [r["counts_covered"] for r in reports.values() if "counts_covered" in r]
    return sum(shares) / len(shares) if shares else None
