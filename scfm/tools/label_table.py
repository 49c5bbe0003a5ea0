"""Labels and their numbers of cells as lines for a person, the most frequent first."""

from collections.abc import Mapping


def label_lines(cells: Mapping[str, int], n_cells: int) -> list[str]:
    """A line a label: its name, its cells, their share of ``n_cells``."""
    width = max(map(len, cells), default=0)
    by_number = sorted(cells.items(), key=lambda item: (-item[1], item[0]))
    return [f"  {label:<{width}}  {n:>8,}  {n / n_cells:>6.1%}" for label, n in by_number]
