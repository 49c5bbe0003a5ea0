"""A model's context embedding of every gene, as the mean over some cells.

in   a model with a decoder over all genes, an opened input, which of its cells
out  (n_vocabulary_genes, d_decoder): memory does not grow with the cells
"""

import numpy as np
import torch
from jaxtyping import Float, Int

from scfm.errors import ModelError
from scfm.tokens.pool import PoolMember
from scfm.tokens.target_depth import parse_target_depth

BATCH_CELLS = 4  # 40 MB of decoder states a cell of the 100m model
