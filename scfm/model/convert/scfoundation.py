"""scFoundation's published weights -> a model folder.

in   models.ckpt: for each of its keys a config and a state_dict
out  config.json, model.safetensors, vocab.tsv, provenance.json, README.md

Every tensor of the file goes somewhere or is named in UNUSED; any other is refused by name.
"""

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from scfm.data.fingerprint import sha256
from scfm.data.write import check_new_folder
from scfm.errors import ConfigError, ModelError
from scfm.model.base import save_model
from scfm.model.config import ScfoundationConfig, ScfoundationSizes
from scfm.model.convert.card import LICENCE, SOURCES, model_card
from scfm.model.convert.published import read_checkpoint
from scfm.model.convert.scfoundation_layout import UNUSED, places
from scfm.model.convert.scfoundation_sizes import read_sizes, whole_number
from scfm.model.convert.weights import read_weights
from scfm.model.scfoundation import ScfoundationModel
from scfm.tokens.vocab import GeneVocab
from scfm.version import __version__

MODEL = "mae_autobin"  # the one architecture that was released
KINDS = {"encoder": "transformer", "decoder": "performer"}
MAX_GENES = 15_000  # mae_encoder_max_seq_len, where the file does not say
LARGEST_ALPHA = 1e30


def convert(source: str | Path, key: str | None, out: str | Path) -> Path:
    """Write the model under ``key`` ("cell", "rde" or "gene") of a published file into ``out``.

    Raises MissingFileError, UnreadableFileError (see `read_checkpoint`), ConfigError for a key the
    file has not, ModelError for a layout other than the published or weights that are not finite,
    OutputError where ``out`` exists or cannot be made.
    """
    source, out = Path(source), Path(out)
    check_new_folder(out)
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
    settings, kept = _settings(entry["config"], source), _plain(entry["config"], source)
    weights = read_weights(entry["state_dict"], f"{source}, key '{key}'", UNUSED)
    sizes = read_sizes(settings, weights, source)
    taken, alpha = _taken(weights, sizes, source), _alpha(settings, source)
    vocab = vocab or GeneVocab.scfoundation()
    config = ScfoundationConfig.of(
        sizes,
        n_tokens=len(vocab),
        vocab_hash=vocab.hash,
        max_genes=_max_genes(entry["config"], source),
    )
    with torch.device("meta"):  # shapes alone, until the file's weights have them
        model = ScfoundationModel(config, vocab)
    model.load_state_dict(_renamed(taken, model.state_dict(), alpha, source), assign=True)
    model.provenance = {
        "made_by": f"scfm {__version__} convert scfoundation",
        "converted_from": {"file": source.name, "sha256": sha256(source), "key": key},
        "config": kept,
        "licence": LICENCE,
        "sources": list(SOURCES),
    }
    return model.eval()


def _entry(found: Mapping[str, Any], key: str | None, source: Path) -> Mapping[str, Any]:
    lacks = {name: _lack(entry) for name, entry in found.items()}
    keys = [name for name in found if not lacks[name]]
    if key in found and lacks[key]:
        raise ModelError(
            f"{source}: its '{key}' {lacks[key]}; wanted a 'config' and a 'state_dict' of tensors. "
            "Download models.ckpt as its authors publish it."
        )
    if not keys:
        raise ModelError(
            f"{source} is no models.ckpt of scFoundation: wanted entries with 'config' and "
            f"'state_dict', found {_few(found)}. Download models.ckpt as its authors publish it."
        )
    if key not in keys:
        wanted = "no --key was given" if key is None else f"it has no '{key}'"
        named = ", ".join(map(str, keys))
        raise ConfigError(
            f"{source} holds several models, {named}, and {wanted}. Add --key {keys[0]} "
            "(cell: cell embeddings; rde: the same, trained for read depth; gene: gene embeddings)."
        )
    return found[key]


def _lack(entry: Any) -> str:
    """What an entry of the file lacks to be a model; "" if nothing."""
    if not isinstance(entry, dict):
        return f"is a {type(entry).__name__}"
    for part in ("config", "state_dict"):
        if part not in entry:
            return f"lacks '{part}'"
        if not isinstance(entry[part], dict):
            return f"has a {type(entry[part]).__name__} as '{part}'"
    for name, weight in entry["state_dict"].items():
        if not isinstance(weight, Tensor):
            return f"holds a {type(weight).__name__} as weight '{name}'"
    return ""


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


def _max_genes(config: Mapping[str, Any], source: Path) -> int:
    path = "dataset_config.rnaseq.mae_encoder_max_seq_len"
    data: Any = config
    for part in path.split("."):
        if not isinstance(data, dict) or part not in data:
            return MAX_GENES
        data = data[part]
    return whole_number(config, path, source)


def _plain(config: Mapping[str, Any], source: Path) -> Mapping[str, Any]:
    """The file's config, which is kept as JSON. Raises ModelError for what JSON cannot hold."""
    try:
        json.dumps(config)
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{source}: its config holds more than names, texts and numbers ({error}). Download "
            "models.ckpt as its authors publish it."
        ) from error
    return config


def _alpha(settings: Mapping[str, Any], source: Path) -> float:
    alpha = settings.get("bin_alpha", 1.0)
    if type(alpha) not in (int, float) or not abs(alpha) < LARGEST_ALPHA:
        found = reprlib.repr(alpha) if isinstance(alpha, float) else f"a {type(alpha).__name__}"
        raise ModelError(
            f"{source}: config bin_alpha is {found}; wanted a finite number, 1.0 as published. "
            "Download models.ckpt again."
        )
    return float(alpha)


def _taken(
    weights: dict[str, Tensor], sizes: ScfoundationSizes, source: Path
) -> dict[str, dict[str, Tensor]]:
    """Our name -> the file's tensors for it. Raises ModelError for one too few or too many."""
    left = dict(weights)
    taken = {
        name: {one: _take(left, one, source) for one in theirs}
        for name, theirs in places(sizes).items()
    }
    if left:
        raise ModelError(
            f"{source} has weights that scFoundation as published has not: {_few(left)}. It is "
            "of another version or another model; nothing was written."
        )
    return taken


def _renamed(
    taken: Mapping[str, dict[str, Tensor]],
    ours: Mapping[str, Tensor],
    alpha: float,
    source: Path,
) -> dict[str, Tensor]:
    """The file's tensors under our names. Raises ModelError naming the key that does not fit."""
    renamed = {}
    for name, theirs in taken.items():
        try:
            joined = torch.cat(list(theirs.values()))
        except RuntimeError as error:
            raise ModelError(f"{source}: {', '.join(theirs)} do not fit together.") from error
        if joined.shape != ours[name].shape:
            raise ModelError(
                f"{source}: {', '.join(theirs)} is {tuple(joined.shape)}; its config, and the "
                f"{len(ours['position.weight']) - 3:,} genes, want {tuple(ours[name].shape)}."
            )
        renamed[name] = joined
    mix = "value.of.mix.weight"
    renamed[mix] = with_alpha(renamed[mix], alpha)
    return renamed


def _take(weights: dict[str, Tensor], name: str, source: Path) -> Tensor:
    if name not in weights:
        raise ModelError(
            f"{source} lacks the weight '{name}'. Download models.ckpt again; nothing was written."
        )
    return weights.pop(name)


def with_alpha(mix: Float[Tensor, "bin bin"], alpha: float) -> Float[Tensor, "bin bin"]:
    """``alpha v + W v`` as ``v + (W + (alpha - 1) 1) v``: ours has no alpha."""
    return mix + (alpha - 1.0) * torch.eye(len(mix))


def _few(names: Mapping[str, Any]) -> str:
    shown = ", ".join(sorted(map(str, names))[:3])
    return shown + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
