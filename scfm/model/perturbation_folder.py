"""A perturbation head's folder, laid out as a model's.

in   a head, or a folder holding config.json, model.safetensors, vocab.tsv, provenance.json
out  the folder, or the head

Loading reads JSON, TSV and safetensors only: nothing from the folder can run.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from scfm.data.fingerprint import sha256
from scfm.data.write import atomic_folder, set_usual_mode
from scfm.errors import ModelError
from scfm.model.folder import CONFIG, PROVENANCE, VOCAB, WEIGHTS, read_provenance
from scfm.model.perturbation import PerturbationHead, PerturbationSizes
from scfm.tokens.vocab import GeneVocab

MODEL_TYPE = "scfm-perturbation"
FILES = (CONFIG, WEIGHTS, VOCAB, PROVENANCE)


def save_perturbation(head: PerturbationHead, folder: str | Path) -> None:
    """Write the head into a folder that appears whole or not at all."""
    tensors = {name: value.contiguous().cpu() for name, value in head.state_dict().items()}
    broken = [name for name, value in tensors.items() if not value.isfinite().all()]
    if broken:
        raise ModelError(
            f"The head has NaN or infinite weights ({', '.join(broken[:3])}): training diverged. "
            "Nothing was exported. Start again with a lower --lr."
        )
    with atomic_folder(folder, marker=PROVENANCE) as temporary:
        config = {
            "model_type": MODEL_TYPE,
            "sizes": asdict(head.sizes),
            "n_genes": len(head.genes),
            "d_embedding": head.embeddings.shape[1],
            "vocab_hash": head.vocab.hash,
        }
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        save_file(tensors, temporary / WEIGHTS)
        set_usual_mode(temporary / WEIGHTS)
        head.vocab.save(temporary / VOCAB)
        hashes = {
            "weights_sha256": sha256(temporary / WEIGHTS),
            "config_sha256": sha256(temporary / CONFIG),
        }
        head.provenance = {**head.provenance, **hashes}
        (temporary / PROVENANCE).write_text(json.dumps(head.provenance, indent=2) + "\n")


def load_perturbation(source: str | Path) -> PerturbationHead:
    """Load the folder that ``scfm finetune perturbation`` wrote, or a run folder holding it.

    Raises ModelError where a file is missing, altered, or of another kind of model.
    """
    folder = _found(Path(source))
    provenance, config = read_provenance(folder), _read_config(folder)
    vocab = GeneVocab.load(folder / VOCAB)
    if vocab.hash != config["vocab_hash"]:
        raise ModelError(
            f"{folder / VOCAB} is not the vocabulary this head was trained with (hash "
            f"{vocab.hash[:12]}, wanted {config['vocab_hash'][:12]}). Restore the original."
        )
    try:
        head = PerturbationHead(
            PerturbationSizes(**config["sizes"]),
            vocab,
            n_genes=config["n_genes"],
            d_embedding=config["d_embedding"],
        )
        head.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"The perturbation head in {folder} cannot be loaded: {error}") from error
    head.provenance = provenance
    return head.eval()


def as_head(head: PerturbationHead | str | Path) -> PerturbationHead:
    """Heads pass, paths are loaded."""
    return head if isinstance(head, PerturbationHead) else load_perturbation(head)


def _found(folder: Path) -> Path:
    if not (folder / CONFIG).exists() and (folder / "head").is_dir():
        folder = folder / "head"
    missing = [name for name in FILES if not (folder / name).exists()]
    if missing:
        raise ModelError(
            f"There is no perturbation head at {folder}: it lacks {', '.join(missing)}. Make one "
            "with 'scfm finetune perturbation', or copy the whole folder again."
        )
    return folder


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{folder / CONFIG} is not readable JSON: {error}.") from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if found != MODEL_TYPE:
        raise ModelError(
            f"{folder} holds a model of type {found!r}; wanted a perturbation head "
            f"({MODEL_TYPE!r}), as 'scfm finetune perturbation' writes it."
        )
    return config
