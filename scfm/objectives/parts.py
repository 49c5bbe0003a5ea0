"""Squared errors of targets -> their mean by kind of target and by depth of the cell.

in   one squared error a target, what the target is, how deep its cell was sequenced
out  sums that may be added over batches and processes, and the means they make
"""

import torch
from jaxtyping import Bool, Float, Int

DEPTH_EDGES = (3.0, 3.5, 4.0)  # log10 of raw counts; a cell at an edge is in the bin above
PARTS = (
    *("expressed", "zero"),
    *("depth_below_3", "depth_3_to_3.5", "depth_3.5_to_4", "depth_above_4"),
)


def part_sums(
    squared_error: Float[torch.Tensor, " target"],
    is_expressed: Bool[torch.Tensor, " target"],
    cell_of: Int[torch.Tensor, " target"],
    library_size: Float[torch.Tensor, " cell"],
) -> Float[torch.Tensor, "2 part"]:
    """For each of ``PARTS`` the sum of its targets' squared errors, and how many they are.

    Float32 on the errors' device; nothing is read off it. Every target is in two parts: its kind
    and its cell's depth.
    """
    edges = torch.tensor(DEPTH_EDGES, device=library_size.device)
    depth = torch.bucketize(library_size.float().log10(), edges, right=True)[cell_of]
    depths = torch.arange(len(DEPTH_EDGES) + 1, device=depth.device)
    belongs = torch.cat([torch.stack([is_expressed, ~is_expressed]), depth == depths[:, None]])
    # not a product with 0 or 1: one error that is not finite would then be in all parts
    sums = torch.where(belongs, squared_error.float(), 0.0).sum(1)
    return torch.stack([sums, belongs.sum(1).float()])


def part_means(sums: Float[torch.Tensor, "2 part"]) -> dict[str, float]:
    """The mean squared error of each part that has a target."""
    totals, counts = sums.tolist()
    return {
        part: total / count
        for part, total, count in zip(PARTS, totals, counts, strict=True)
        if count
    }
