"""scfm.tl: what is done to an AnnData with a model, in scanpy's grammar.

Imported on first use: what only looks at files needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scfm.tools.annotation import annotate
    from scfm.tools.denoising import denoise
    from scfm.tools.drug_response import drug_features
    from scfm.tools.embedding import embed
    from scfm.tools.export_model import export_model
    from scfm.tools.gene_embeddings import gene_embedding

__all__ = [
    "annotate",
    "denoise",
    "drug_features",
    "embed",
    "export_model",
    "gene_embedding",
]

_LAZY = {
    "annotate": "scfm.tools.annotation",
    "denoise": "scfm.tools.denoising",
    "drug_features": "scfm.tools.drug_response",
    "embed": "scfm.tools.embedding",
    "export_model": "scfm.tools.export_model",
    "gene_embedding": "scfm.tools.gene_embeddings",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'scfm.tools' has no attribute '{name}'")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
