"""scFoundation's published weights -> a model folder.

in   models.ckpt: for each of its keys a config and a state_dict
out  config.json, model.safetensors, vocab.tsv, provenance.json, README.md

Every tensor of the file goes somewhere or is named in UNUSED; any other is refused by name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from scfm.data.fingerprint import sha256
from scfm.errors import ConfigError, ModelError, OutputError
from scfm.model.base import save_model
from scfm.model.config import ScfoundationConfig, ScfoundationSizes
from scfm.model.convert.card import LICENCE, SOURCES, model_card
from scfm.model.convert.published import read_checkpoint
from scfm.model.convert.scfoundation_layout import UNUSED, places
from scfm.model.scfoundation import ScfoundationModel
from scfm.tokens.vocab import GeneVocab
from scfm.version import __version__

MODEL = "mae_autobin"  # the one architecture that was released
KINDS = {"encoder": "transformer", "decoder": "performer"}
DROPOUT = 0.1  # torch's default in an encoder layer; the released code sets none
MAX_GENES = 15_000  # mae_encoder_max_seq_len, where the file does not say


def convert(source: str | Path, key: str | None, out: str | Path) -> Path:
    """Write the model under ``key`` ("cell", "rde" or "gene") of a published file into ``out``.

    Raises MissingFileError, UnreadableFileError (see `read_checkpoint`), ConfigError for a key the
    file has not, ModelError for a layout other than the published, OutputError where ``out``
    exists.
    """
    source, out = Path(source), Path(out)
    if out.exists():
        raise OutputError(f"{out} exists already. Name a new folder: --out NAME.")
    model = load_published(source, key)
    save_model(model, out, card=model_card(model.provenance))
    return out


def load_published(
    source: Path, key: str | None, vocab: GeneVocab | None = None
) -> ScfoundationModel:
    """The model under ``key`` of a published file, with its provenance.

    ``vocab`` is the released gene list unless given (files of another one exist in tests alone).
    """
    entry = _entry(read_checkpoint(source), key, source)
    settings = _settings(entry["config"], source)
    weights = {name: w.float() for name, w in entry["state_dict"].items() if name not in UNUSED}
    sizes = read_sizes(settings, weights, source)
    vocab = vocab or GeneVocab.scfoundation()
    config = ScfoundationConfig.of(
        sizes, n_tokens=len(vocab), vocab_hash=vocab.hash, max_genes=_max_genes(entry["config"])
    )
    with torch.random.fork_rng(devices=[]):  # weights are drawn, to be replaced
        model = ScfoundationModel(config, vocab)
    model.load_state_dict(_renamed(weights, model.state_dict(), settings, sizes, source))
    model.provenance = {
        "made_by": f"scfm {__version__} convert scfoundation",
        "converted_from": {"file": source.name, "sha256": sha256(source), "key": key},
        "config": entry["config"],
        "licence": LICENCE,
        "sources": list(SOURCES),
    }
    return model.eval()


def _entry(found: Mapping[str, Any], key: str | None, source: Path) -> Mapping[str, Any]:
    keys = [name for name, entry in found.items() if _is_entry(entry)]
    if not keys:
        raise ModelError(
            f"{source} is no models.ckpt of scFoundation: wanted entries with 'config' and "
            f"'state_dict', found {_few(found)}. Download models.ckpt as its authors publish it."
        )
    if key not in keys:
        wanted = "no --key was given" if key is None else f"it has no '{key}'"
        raise ConfigError(
            f"{source} holds several models, {', '.join(keys)}, and {wanted}. Add --key {keys[0]} "
            "(cell: cell embeddings; rde: the same, trained for read depth; gene: gene embeddings)."
        )
    return found[key]


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("config"), dict)
        and isinstance(entry.get("state_dict"), dict)
        and all(isinstance(w, Tensor) for w in entry["state_dict"].values())
    )


def _settings(config: Mapping[str, Any], source: Path) -> Mapping[str, Any]:
    """The part of the file's config that says what the network is."""
    name = config.get("model")
    if name != MODEL:
        raise ModelError(f"{source}: config 'model' is {name!r}; wanted '{MODEL}'.")
    try:
        settings = config["model_config"][MODEL]
        kinds = {part: settings[part].get("module_type") for part in KINDS}
        norms = {part: settings[part].get("norm_first", False) for part in KINDS}
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{source}: its config lacks model_config.{MODEL}: {error}. Download models.ckpt again."
        ) from error
    for part, kind in KINDS.items():
        if (kinds[part], norms[part]) != (kind, False):
            raise ModelError(
                f"{source}: config {part}.module_type and norm_first are "
                f"{(kinds[part], norms[part])}; wanted ('{kind}', False)."
            )
    return settings


def read_sizes(
    settings: Mapping[str, Any], weights: Mapping[str, Tensor], source: Path
) -> ScfoundationSizes:
    """The network's shape by the file's config, and by its weights where that says nothing."""
    encoder, decoder = settings["encoder"], settings["decoder"]
    name = "model.decoder.performer.net.layers.0.0.fn.fast_attention.projection_matrix"
    try:
        return ScfoundationSizes(
            d_model=encoder["hidden_dim"],
            n_layers=encoder["depth"],
            n_heads=encoder["heads"],
            d_decoder=decoder["hidden_dim"],
            n_decoder_layers=decoder["depth"],
            n_decoder_heads=decoder["heads"],
            d_head=decoder["dim_head"],
            n_bins=settings["bin_num"],
            n_features=len(weights[name]),
            dropout=DROPOUT,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{source}: its config or weights lack a size: {error}.") from error


def _max_genes(config: Mapping[str, Any]) -> int:
    data = config.get("dataset_config", {}).get("rnaseq", {})
    return int(data.get("mae_encoder_max_seq_len", MAX_GENES))


def _renamed(
    weights: dict[str, Tensor],
    ours: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    sizes: ScfoundationSizes,
    source: Path,
) -> dict[str, Tensor]:
    """The file's tensors under our names. Raises ModelError naming the key that does not fit."""
    renamed = {}
    for name, theirs in places(sizes).items():
        parts = [_take(weights, one, source) for one in theirs]
        try:
            joined = torch.cat(parts)
        except RuntimeError as error:
            raise ModelError(f"{source}: {', '.join(theirs)} do not fit together.") from error
        if joined.shape != ours[name].shape:
            raise ModelError(
                f"{source}: {', '.join(theirs)} is {tuple(joined.shape)}; its config, and the "
                f"{len(ours['position.weight']) - 3:,} genes, want {tuple(ours[name].shape)}."
            )
        renamed[name] = joined
    if weights:
        raise ModelError(
            f"{source} has weights that scFoundation as published has not: {_few(weights)}. It is "
            "of another version or another model; nothing was written."
        )
    mix = "value.of.mix.weight"
    renamed[mix] = with_alpha(renamed[mix], float(settings.get("bin_alpha", 1.0)))
    return renamed


def _take(weights: dict[str, Tensor], name: str, source: Path) -> Tensor:
    if name not in weights:
        raise ModelError(
            f"{source} lacks the weight '{name}', or has it twice as few as its config says. "
            "Download models.ckpt again."
        )
    return weights.pop(name)


def with_alpha(mix: Float[Tensor, "bin bin"], alpha: float) -> Float[Tensor, "bin bin"]:
    """``alpha v + W v`` as ``v + (W + (alpha - 1) 1) v``: ours has no alpha."""
    return mix + (alpha - 1.0) * torch.eye(len(mix))


def _few(names: Mapping[str, Any]) -> str:
    shown = ", ".join(sorted(map(str, names))[:3])
    return shown + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
