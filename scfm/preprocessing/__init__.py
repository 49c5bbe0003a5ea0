"""scfm.pp: what is done to an AnnData before a model sees it, in scanpy's grammar.

Imported on first use: none of it needs torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scfm.preprocessing.gene_symbols import unify_genes

__all__ = ["unify_genes"]

_LAZY = {"unify_genes": "scfm.preprocessing.gene_symbols"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'scfm.preprocessing' has no attribute '{name}'")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
