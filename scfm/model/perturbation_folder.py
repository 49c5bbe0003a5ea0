"""A perturbation head's folder, laid out as a model's.

in   a head, or a folder holding config.json, model.safetensors, vocab.tsv, provenance.json
out  the folder, or the head
"""

from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from scfm.errors import ModelError
from scfm.model.folder import CONFIG, PROVENANCE, VOCAB, WEIGHTS, read_provenance
from scfm.model.head_folder import HeadKind
from scfm.model.perturbation import PerturbationHead, PerturbationSizes
from scfm.tokens.vocab import GeneVocab

FILES = (CONFIG, WEIGHTS, VOCAB, PROVENANCE)
PERTURBATION = HeadKind(
    model_type="scfm-perturbation",
    name="perturbation head",
    command="scfm finetune perturbation",
    lower_rate="--lr",
    place="head",
    files=FILES,
)


def save_perturbation(head: PerturbationHead, folder: str | Path) -> None:
    """Write the head into a folder that appears whole or not at all."""
    config = {
        "sizes": asdict(head.sizes),
        "n_genes": len(head.genes),
        "d_embedding": head.embeddings.shape[1],
        "vocab_hash": head.vocab.hash,
    }
    head.provenance = PERTURBATION.save(
        head, folder, config, head.provenance, more=lambda at: head.vocab.save(at / VOCAB)
    )


def load_perturbation(source: str | Path) -> PerturbationHead:
    """Load the folder that ``scfm finetune perturbation`` wrote, or a run folder holding it.

    Raises ModelError where a file is missing, altered, or of another kind of model.
    """
    folder = PERTURBATION.find(source)
    provenance, config = read_provenance(folder), PERTURBATION.read_config(folder)
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
