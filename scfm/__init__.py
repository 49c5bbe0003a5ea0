"""scfm: foundation models of single-cell gene expression.

``scfm.load`` a model; ``scfm.tl.embed`` and ``scfm.tl.annotate`` use it on AnnData; ``scfm.pp``
prepares one, ``scfm.pl`` draws. Everything is imported on first use: ``import scfm`` loads neither
torch nor scanpy.
"""

import importlib
from typing import TYPE_CHECKING, Any

from scfm.version import __version__

if TYPE_CHECKING:
    import scfm.plotting as pl
    import scfm.preprocessing as pp
    import scfm.tools as tl
    from scfm.tools.loading import load

__all__ = ["__version__", "load", "pl", "pp", "tl"]

_LAZY = {
    "load": ("scfm.tools.loading", "load"),
    "pl": ("scfm.plotting", None),
    "pp": ("scfm.preprocessing", None),
    "tl": ("scfm.tools", None),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'scfm' has no attribute '{name}'")
    module_name, attribute = _LAZY[name]
    module = importlib.import_module(module_name)
    return getattr(module, attribute) if attribute else module


def __dir__() -> list[str]:
    return sorted(__all__)
