"""What a folder is to `scfm prepare`: a store, a conversion that is not finished, or neither.

in   a path
out  a sentence that says so and how to go on; None where the folder is neither
"""

from pathlib import Path

from scfm.data.manifest import MANIFEST

WORK = ".prepare"  # of an unfinished conversion, in the store's folder


def said_of_store(path: str | Path) -> str | None:
    """Why a store is no file of cells to make a store of."""
    if not (Path(path) / MANIFEST).is_file():
        return None
    return (
        f"is a store already. Train on it as it is: scfm pretrain --data {path} --out RUN. To put "
        f"its cells into another store, first make a file of them: scfm prepare --export "
        f"CELLS.h5ad {path}"
    )


def said_of_unfinished(path: str | Path) -> str | None:
    """Why a folder that a conversion was interrupted in cannot be used yet."""
    folder = Path(path)
    if not (folder / WORK).is_dir() or (folder / MANIFEST).exists():
        return None
    return (
        "is no store yet: its conversion is unfinished. To go on with it, repeat the command it "
        f"was begun with: scfm prepare IN... --out {path}. To begin anew, add --restart."
    )
