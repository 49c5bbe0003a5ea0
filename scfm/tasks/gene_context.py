"""A model's context embedding of every gene, as the mean over some cells.

in   a model with a decoder over all genes, an opened input, which of its cells
out  (n_vocabulary_genes, d_decoder): memory does not grow with the cells
"""

import numpy as np
import torch
from jaxtyping import Float, Int

from scfm.errors import ModelError
from scfm.model.base import CellModel
from scfm.model.scfoundation import ScfoundationModel
from scfm.tokens.pool import PoolMember
from scfm.tokens.target_depth import parse_target_depth

BATCH_CELLS = 4  # 40 MB of decoder states a cell of the 100m size


def mean_context(
    model: CellModel, member: PoolMember, cells: Int[np.ndarray, " cell"]
) -> Float[np.ndarray, "vocabulary d"]:
    """The mean over ``cells`` of the decoder's state of every gene, at the model's usual depth.

    Every gene of the vocabulary has one, measured in this data or not. Raises ModelError for a
    model whose decoder does not run over all genes.
    """
    decoding = with_decoder(model).eval()
    depth = parse_target_depth(decoding.default_target_depth)
    total = 0.0
    for first in range(0, len(cells), BATCH_CELLS):
        rows = member.source.rows(cells[first : first + BATCH_CELLS])
        shown = member.tokenizer.shown(rows)
        shown = member.tokenizer.shown(rows, target_depth=depth.of(shown.source_depth))
        batch = shown.map(lambda x: torch.from_numpy(x).to(decoding.device))
        with torch.inference_mode():
            states = decoding.decode(batch, decoding(batch)).double().sum(0)
        total = total + states.cpu().numpy()
    mean = np.asarray(total) / len(cells)
    if not np.isfinite(mean).all():
        raise ModelError("The model's gene embeddings are NaN or infinite. Take another model.")
    return mean


def with_decoder(model: CellModel) -> ScfoundationModel:
    """Models with context embeddings pass."""
    if not isinstance(model, ScfoundationModel):
        raise ModelError(
            f"A model of the family '{model.config.model_type}' has no context embeddings of "
            "genes: its decoder is asked for single genes and does not run over all. Take one of "
            "the family 'scfoundation' (scfm pretrain --config scfoundation-3m, or scfm convert)."
        )
    return model
