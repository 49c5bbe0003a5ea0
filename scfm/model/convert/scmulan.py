"""scMulan's published weights -> a model folder.

in   ckpt_scMulan.pt: model (a state_dict) and model_args
out  config.json, model.safetensors, vocab.tsv, provenance.json, README.md

Every tensor of the file goes somewhere; any other is refused by name. The file is not trusted:
nothing is built by a number that its weights do not bear out.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scfm.data.fingerprint import sha256
from scfm.data.write import check_new_folder
from scfm.errors import MissingFileError, ModelError
from scfm.model.base import save_model
from scfm.model.config import ScmulanConfig, ScmulanSizes
from scfm.model.convert.published import read_checkpoint
from scfm.model.convert.scfoundation_sizes import whole_number
from scfm.model.convert.scmulan_card import LICENCE, SOURCES, model_card
from scfm.model.convert.weights import read_weights
from scfm.model.scmulan import ScmulanModel
from scfm.tokens.vocab import GeneVocab
from scfm.tokens.words import END, TASK_WORDS
from scfm.version import __version__

MAX_GENES = 1550  # data_block_size of the release
TYPES = ("cell_type", "cell_type")  # coarse, then fine: the release does not tell them apart
LAYER = re.compile(r"transformer\.h\.(\d+)\.")
AGAIN = "Download ckpt_scMulan.pt as its authors publish it."
BLOCK = {
    "attention_norm": "ln_1",
    "qkv": "attn.c_attn",
    "out": "attn.c_proj",
    "feedforward_norm": "ln_2",
    "expand": "mlp.c_fc",
    "contract": "mlp.c_proj",
}


def convert(source: str | Path, out: str | Path, vocab: str | Path | None = None) -> Path:
    """Write the model of a published file into ``out``.

    ``vocab`` is a JSON file with "tokens", "genes" and "cell_types" in the order of their ids; the
    released 2,222 tokens unless given.

    Raises MissingFileError, UnreadableFileError (see `read_checkpoint`), ModelError for a layout
    other than the published, weights that are not finite or a vocabulary that does not belong to
    them, OutputError where ``out`` exists or cannot be made.
    """
    source, out = Path(source), Path(out)
    check_new_folder(out)
    model = load_published(source, None if vocab is None else read_vocab(Path(vocab)))
    save_model(model, out, card=model_card(model.provenance))
    return out


def load_published(source: Path, vocab: GeneVocab | None = None) -> ScmulanModel:
    """The model of a published file, with its provenance."""
    state, settings = _entries(read_checkpoint(source), source)
    weights = read_weights(state, str(source))
    sizes = _sizes(settings, weights, source)
    vocab = vocab or GeneVocab.scmulan()
    _check_vocab(vocab, weights["transformer.wte.weight"], source)
    config = ScmulanConfig.of(
        sizes,
        n_tokens=len(vocab),
        vocab_hash=vocab.hash,
        max_genes=whole_number({"block_size": MAX_GENES, **settings}, "block_size", source),
    )
    config.types = list(TYPES)
    with torch.device("meta"):  # shapes alone, until the file's weights have them
        model = ScmulanModel(config, vocab)
    model.load_state_dict(_renamed(weights, model.state_dict(), sizes, source), assign=True)
    model.provenance = {
        "made_by": f"scfm {__version__} convert scmulan",
        "converted_from": {"file": source.name, "sha256": sha256(source)},
        "config": settings,
        "licence": LICENCE,
        "sources": list(SOURCES),
    }
    return model.eval()


def places(sizes: ScmulanSizes) -> dict[str, str]:
    """Every tensor of our model, and which of the file's it is."""
    layers = {"decoder.norm": "transformer.ln_f"}
    for number in range(sizes.n_layers):
        layers |= {
            f"decoder.blocks.{number}.{ours}": f"transformer.h.{number}.{theirs}"
            for ours, theirs in BLOCK.items()
        }
    parts = ("weight", "bias") if sizes.bias else ("weight",)
    return {
        "word.weight": "transformer.wte.weight",
        "value.weight": "transformer.wee.weight",
        "word_head.weight": "lm_head.weight",
        "value_head.weight": "epx_head.weight",
        **{f"{o}.{part}": f"{t}.{part}" for o, t in layers.items() for part in parts},
    }


def read_vocab(path: Path) -> GeneVocab:
    """A vocabulary from JSON. Raises MissingFileError, ModelError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError(f"There is no file {path}. Name another --vocab, or none.") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is no JSON file ({error}).") from error
    for name in ("tokens", "genes", "cell_types"):
        texts = found.get(name) if isinstance(found, dict) else None
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ModelError(f"{path} lacks '{name}', a list of texts: it is no vocabulary.")
    tokens, genes, types = (found[name] for name in ("tokens", "genes", "cell_types"))
    published = GeneVocab.scmulan()
    if tokens == list(published.tokens):
        return published
    after = tokens[1 + len(genes) :]
    if tokens[:1] != [END] or tokens[1 : 1 + len(genes)] != genes or not set(types) <= set(after):
        raise ModelError(
            f"{path}: wanted tokens that begin with {END}, then the genes in their order, then the "
            "words, cell types among them."
        )
    if lacking := sorted(set(TASK_WORDS.values()) - set(after)):
        raise ModelError(f"{path} lacks the task words {', '.join(lacking)}.")
    return GeneVocab(
        symbols=tuple(genes),
        ensembl_ids=("",) * len(genes),
        specials_before=(END,),
        specials_after=tuple(after),
        kinds=tuple("cell_type" if word in set(types) else "special" for word in after),
    )


def _entries(
    found: Mapping[str, Any], source: Path
) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """The weights and the settings. Raises ModelError for a file of another kind."""
    state, settings = found.get("model"), found.get("model_args")
    if not isinstance(state, dict) or not isinstance(settings, dict):
        named = ", ".join(sorted(map(str, found))[:4]) or "nothing"
        raise ModelError(
            f"{source} is no checkpoint of scMulan: wanted 'model' and 'model_args', found "
            f"{named}. {AGAIN}"
        )
    for name, weight in state.items():
        if not isinstance(weight, Tensor):
            raise ModelError(f"{source}: '{name}' is a {type(weight).__name__}. {AGAIN}")
    try:
        json.dumps(settings)
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{source}: its model_args hold more than names and numbers ({error}). {AGAIN}"
        ) from error
    if settings.get("ele") != 1:
        raise ModelError(
            f"{source}: model_args 'ele' is {settings.get('ele')!r}; wanted 1, values by a table "
            "of bins, as released."
        )
    return state, settings


def _sizes(
    settings: Mapping[str, Any], weights: Mapping[str, Tensor], source: Path
) -> ScmulanSizes:
    """The network's shape, where settings and weights agree on it."""
    names = ("vocab_size", "n_embd", "n_layer", "n_head", "expression_level")
    said = {name: whole_number(settings, name, source) for name in names}
    for name in ("transformer.wte.weight", "transformer.wee.weight"):
        if name not in weights or weights[name].ndim != 2:
            raise ModelError(f"{source} lacks the weight '{name}', a matrix. {AGAIN}")
    words, values = weights["transformer.wte.weight"], weights["transformer.wee.weight"]
    borne_out = {
        "vocab_size": words.shape[0],
        "n_embd": words.shape[1],
        "n_layer": len({found[1] for found in map(LAYER.match, weights) if found}),
        "expression_level": values.shape[0] - 1,
    }
    for name, number in borne_out.items():
        if said[name] != number:
            raise ModelError(
                f"{source}: its model_args say {name} is {said[name]:,}, its weights say "
                f"{number:,}. They are not of one model. {AGAIN}"
            )
    dropout = settings.get("dropout", 0.0)
    try:
        return ScmulanSizes(
            d_model=said["n_embd"],
            n_layers=said["n_layer"],
            n_heads=said["n_head"],
            n_bins=said["expression_level"],
            bias="transformer.ln_f.bias" in weights,
            dropout=float(dropout) if type(dropout) in (int, float) else -1.0,
        )
    except ValueError as error:
        raise ModelError(f"{source}: its model_args cannot be: {error}.") from error


def _check_vocab(vocab: GeneVocab, words: Tensor, source: Path) -> None:
    if len(vocab) != len(words):
        raise ModelError(
            f"{source} has weights for {len(words):,} words, the vocabulary has {len(vocab):,}: it "
            "does not belong to them. Add --vocab with the JSON file they were trained with."
        )


def _renamed(
    weights: Mapping[str, Tensor],
    ours: Mapping[str, Tensor],
    sizes: ScmulanSizes,
    source: Path,
) -> dict[str, Tensor]:
    """The file's tensors under our names. Raises ModelError naming the key that does not fit."""
    named = places(sizes)
    if unknown := sorted(set(weights) - set(named.values())):
        raise ModelError(
            f"{source} has weights that scMulan as published has not: {', '.join(unknown[:3])}. It "
            "is of another version or another model; nothing was written."
        )
    renamed = {}
    for name, theirs in named.items():
        if theirs not in weights:
            raise ModelError(f"{source} lacks the weight '{theirs}'. {AGAIN} Nothing was written.")
        if weights[theirs].shape != ours[name].shape:
            raise ModelError(
                f"{source}: {theirs} is {tuple(weights[theirs].shape)}; its model_args want "
                f"{tuple(ours[name].shape)}."
            )
        renamed[name] = weights[theirs]
    return renamed
