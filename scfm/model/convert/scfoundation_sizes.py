"""The shape of scFoundation's network, by the file's config and by its weights, which must agree.

in   the config, the state_dict
out  ScfoundationSizes

The file is not trusted: nothing is built by a number that its weights do not bear out, so no
config can ask for more memory than the file has weights for.
"""

import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from scfm.errors import ModelError
from scfm.model.config import ScfoundationSizes

DROPOUT = 0.1  # torch's default in an encoder layer; the released code sets none
LARGEST = 2**31
BINS, DECODER_IN = "model.token_emb.emb.weight", "model.decoder_embed.weight"
DECODER = "model.decoder.performer.net.layers."
FEATURES = f"{DECODER}0.0.fn.fast_attention.projection_matrix"
LAYERS = {
    "encoder.depth": re.compile(r"model\.encoder\.transformer_encoder\.(\d+)\."),
    "decoder.depth": re.compile(rf"{re.escape(DECODER)}(\d+)\."),
}
QUERY = f"{DECODER}0.0.fn.to_q.weight"
SAID = ("encoder.hidden_dim", "encoder.heads", "decoder.hidden_dim", "decoder.heads")
SAID = (*SAID, "encoder.depth", "decoder.depth", "decoder.dim_head", "bin_num")


def read_sizes(
    settings: Mapping[str, Any], weights: Mapping[str, Tensor], source: Path
) -> ScfoundationSizes:
    """The network's shape. Raises ModelError where config and weights differ, or lack a size."""
    said = {name: whole_number(settings, name, source) for name in SAID}
    borne_out = _by_weights(weights, source)
    compared = {
        **said,
        "decoder.heads x dim_head": said["decoder.heads"] * said["decoder.dim_head"],
    }
    for name, number in borne_out.items():
        if compared[name] != number:
            raise ModelError(
                f"{source}: its config says {name} is {compared[name]:,}, its weights say "
                f"{number:,}. They are not of one model. Download models.ckpt again."
            )
    try:
        return ScfoundationSizes(
            d_model=said["encoder.hidden_dim"],
            n_layers=said["encoder.depth"],
            n_heads=said["encoder.heads"],
            d_decoder=said["decoder.hidden_dim"],
            n_decoder_layers=said["decoder.depth"],
            n_decoder_heads=said["decoder.heads"],
            d_head=said["decoder.dim_head"],
            n_bins=said["bin_num"],
            n_features=len(weights[FEATURES]),
            dropout=DROPOUT,
        )
    except ValueError as error:
        raise ModelError(f"{source}: its config's sizes cannot be: {error}.") from error


def _by_weights(weights: Mapping[str, Tensor], source: Path) -> dict[str, int]:
    n_bins, d_model = _shape(weights, BINS, source)
    d_decoder, _ = _shape(weights, DECODER_IN, source)
    _, d_head = _shape(weights, FEATURES, source)
    inner, _ = _shape(weights, QUERY, source)
    depths = {
        name: len({found[1] for found in map(layer.match, map(str, weights)) if found})
        for name, layer in LAYERS.items()
    }
    return {
        **depths,
        "encoder.hidden_dim": d_model,
        "decoder.hidden_dim": d_decoder,
        "bin_num": n_bins,
        "decoder.dim_head": d_head,
        "decoder.heads x dim_head": inner,
    }


def _shape(weights: Mapping[str, Tensor], name: str, source: Path) -> tuple[int, int]:
    if name not in weights:
        raise ModelError(
            f"{source} lacks the weight '{name}'. Download models.ckpt again; nothing was written."
        )
    shape = tuple(weights[name].shape)
    if len(shape) != 2:
        raise ModelError(f"{source}: {name} is {shape}; wanted a matrix. Download it again.")
    return shape[0], shape[1]


def whole_number(settings: Mapping[str, Any], name: str, source: Path) -> int:
    """A number from 1 of the config; ``name`` is its path, "encoder.depth". Raises ModelError."""
    value: Any = settings
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if type(value) is not int:
        found = "absent" if value is None else reprlib.repr(value)
        raise ModelError(f"{source}: config {name} is {found}; wanted a whole number.")
    if not 1 <= value < LARGEST:
        found = "below 1" if value < 1 else "too large"
        raise ModelError(f"{source}: config {name} is {found}; wanted a number from 1.")
    return value
