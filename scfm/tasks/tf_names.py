"""TFs a user names -> tasks of a model: "TF" alone, or "TF:cell" of one cell type.

in   names, a model's tasks
out  positions, or a refusal with the nearest names
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from scfm.data.gene_choice import nearest_names
from scfm.errors import ConfigError

SHOWN = 10


def tf_of(task: str) -> str:
    """The TF of "TF:cell", or the task itself."""
    return task.partition(":")[0]


def cell_of(task: str) -> str:
    """The cell type of "TF:cell"; "" without one."""
    return task.partition(":")[2]


def find_tfs(names: Sequence[str], tasks: Sequence[str]) -> Int[np.ndarray, " task"]:
    """Positions of the tasks named; a TF alone stands for all its cell types'.

    Letter case does not count. Raises ConfigError for a TF the model does not know.
    """
    if isinstance(names, str):
        names = [names]
    found: list[int] = []
    for name in names:
        wanted = name.upper()
        here = [i for i, task in enumerate(tasks) if wanted in (task.upper(), tf_of(task).upper())]
        if not here:
            raise ConfigError(_unknown(name, tasks))
        found += [i for i in here if i not in found]
    return np.array(found, dtype=np.int64)


def blocks_of(tasks: Sequence[str]) -> list[Int[np.ndarray, "_"]]:
    """Tasks of each cell type together, as scFAN's models each have their own."""
    cells = [cell_of(task) for task in tasks]
    return [
        np.array([i for i, other in enumerate(cells) if other == cell], dtype=np.int64)
        for cell in dict.fromkeys(cells)
    ]


def _unknown(name: str, tasks: Sequence[str]) -> str:
    tfs = list(dict.fromkeys([*tasks, *map(tf_of, tasks)]))
    near = nearest_names(name, tfs)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    shown = ", ".join(tasks[:SHOWN]) + (f" and {len(tasks) - SHOWN} more" * (len(tasks) > SHOWN))
    return f"The model does not know the TF {name!r}. {hint}It knows: {shown}."
