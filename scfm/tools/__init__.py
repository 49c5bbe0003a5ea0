"""scfm.tl: what is done to an AnnData with a model, in scanpy's grammar."""

from scfm.tools.annotation import annotate
from scfm.tools.embedding import embed

__all__ = ["annotate", "embed"]
