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
from scfm.tasks.decoding import check_decodes
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
    check_decodes(model, "states")
    assert isinstance(model, ScfoundationModel)
    model.eval()
    depth = parse_target_depth(model.default_target_depth)
    total = np.zeros((model.n_genes, model.config.sizes.d_decoder))
    for first in range(0, len(cells), BATCH_CELLS):
        rows = member.source.rows(cells[first : first + BATCH_CELLS])
        shown = member.tokenizer.asked_for(member.tokenizer.shown(rows), depth)
        batch = shown.map(lambda x: torch.from_numpy(x).to(model.device))
        with torch.inference_mode():
            total += model.decode(batch, model(batch)).double().sum(0).cpu().numpy()
    mean = total / len(cells)
    if not np.isfinite(mean).all():
        raise ModelError("The model's gene embeddings are NaN or infinite. Take another model.")
    return mean
