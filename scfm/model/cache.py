"""Keys and values of the words said so far, so that no word is ever gone through twice.

in   keys and values of a prompt, packed; of one word a cell
out  attention of one word a cell on all that its cell has said

A layer holds (cells, heads, room, d), a cell's words from place 0; what lies past its length is
never looked at. Cells of a group are of like length, so little of the room is empty.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from scfm.model.attention import Packing

GROWTH = 128  # places of room at once, at least


@dataclass
class LayerCache:
    """One layer's keys and values; empty until a prompt fills it."""

    room: int
    keys: Tensor = field(default_factory=lambda: torch.empty(0))
    values: Tensor = field(default_factory=lambda: torch.empty(0))

    def fill(
        self, k: Float[Tensor, "token head d"], v: Float[Tensor, "token head d"], cells: Packing
    ) -> None:
        """Take in a whole prompt of every cell."""
        self.keys, self.values = (self._spread(x, cells) for x in (k, v))

    def _spread(self, packed: Tensor, cells: Packing) -> Tensor:
        _, n_heads, d = packed.shape
        # zeros, not what memory happens to hold: a weight of 0 times NaN is NaN
        padded = packed.new_zeros(len(cells.lengths), self.room, n_heads, d)
        padded[cells.cell_of, cells.place] = packed
        return padded.transpose(1, 2)

    def append(
        self,
        k: Float[Tensor, "cell head d"],
        v: Float[Tensor, "cell head d"],
        lengths: Int[Tensor, " cell"],
    ) -> None:
        """One more word a cell, at the place after its last."""
        cell = torch.arange(len(lengths), device=lengths.device)
        self.keys[cell, :, lengths] = k.to(self.keys.dtype)
        self.values[cell, :, lengths] = v.to(self.values.dtype)

    def attend(
        self, q: Float[Tensor, "cell head d"], lengths: Int[Tensor, " cell"]
    ) -> Float[Tensor, "cell head d"]:
        """Each cell's query on the first ``lengths`` places of its own."""
        place = torch.arange(self.keys.shape[2], device=lengths.device)
        is_said = (place < lengths[:, None])[:, None, None]
        query = q.to(self.keys.dtype)[:, :, None]
        found = F.scaled_dot_product_attention(query, self.keys, self.values, attn_mask=is_said)
        return found.squeeze(2).to(q.dtype)

    def grow(self, room: int) -> None:
        """Room for more words."""
        more = room - self.room
        self.keys, self.values = (F.pad(x, (0, 0, 0, more)) for x in (self.keys, self.values))
        self.room = room

    def keep(self, cells: Int[Tensor, " kept"]) -> None:
        """Drop the other cells."""
        self.keys, self.values = self.keys[cells], self.values[cells]


class WordCache:
    """The cache of all layers for one group of cells.

    ``most`` is the length no cell will outgrow: room is made as it is needed, up to that.
    """

    def __init__(self, n_layers: int, prompts: Packing, most: int):
        self.most = most
        room = min(most, prompts.longest + GROWTH)
        self.layers = [LayerCache(room) for _ in range(n_layers)]
        self.longest = prompts.longest
        self.lengths = prompts.offsets.diff().long()

    def make_room(self) -> None:
        """For one more word of each cell."""
        self.longest += 1
        room = self.layers[0].room
        if self.longest > room:
            more = min(self.most, max(self.longest, room + max(GROWTH, room // 4)))
            for layer in self.layers:  # one by one: never two copies of more than one
                layer.grow(more)

    def keep(self, cells: Int[Tensor, " kept"]) -> None:
        """Drop the other cells."""
        self.lengths = self.lengths[cells]
        for layer in self.layers:
            layer.keep(cells)
