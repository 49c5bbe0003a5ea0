"""Windows changed as evolution might have, sequence and accessibility in step.

in   RegionBatch, a torch.Generator
out  RegionBatch of the same shape

Every change of place (deletion, insertion, shift, inversion, reverse complement) is one map from
new to old positions, applied to the bases and to the accessibility alike; where it turns around,
bases become their complements. Mutations and noise change bases alone. Labels stay.

Source: EvoAug, Lee et al. 2023, doi:10.1186/s13059-023-02941-w. Other than there: accessibility
goes along instead of being turned into bases; an insertion keeps the length, by cutting both ends;
random numbers come from one generator.
"""

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scfm.batch import RegionBatch

NAMES = ("deletion", "insertion", "shift", "inversion", "reverse_complement", "mutation", "noise")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Which changes, how large, how many at a time; defaults are EvoAug's, none of them on.

    Attributes
    ----------
    deletion, insertion, shift, inversion
        Bases at most; 0: never.
    reverse_complement
        Probability, on its own and beside the others: both strands are equally likely to be read.
    mutation
        Share of the bases that change.
    noise
        Standard deviation of what is added to the bases' one-hot code.
    at_once
        Changes of a window at most, reverse complement not counted.
    is_exact
        Whether each window gets just so many, rather than from 1 to as many.
    """

    deletion: int = 0
    insertion: int = 0
    shift: int = 0
    inversion: int = 0
    mutation: float = 0.0
    noise: float = 0.0
    reverse_complement: float = 0.5
    at_once: int = 2
    is_exact: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 0:
                raise ValueError(f"augment.{field.name} must be at least 0")
        for name in ("mutation", "reverse_complement"):
            if getattr(self, name) > 1:
                raise ValueError(f"augment.{name} must be at most 1, got {getattr(self, name)}")
        if self.at_once < 1:
            raise ValueError(f"augment.at_once must be at least 1, got {self.at_once}")

    @property
    def chosen(self) -> tuple[str, ...]:
        """Changes that are drawn from, in the order in which they are applied."""
        return tuple(n for n in NAMES if n != "reverse_complement" and getattr(self, n))

    @property
    def plain(self) -> "AugmentConfig":
        """What stays on in the second stage: either strand, as in prediction."""
        return AugmentConfig(reverse_complement=self.reverse_complement)


class Places(NamedTuple):
    """Where each new position comes from.

    Attributes
    ----------
    source
        The old position; of an inserted base, the one beside it, whose accessibility it takes.
    is_new
        Whether the base is inserted, and so any.
    is_turned
        Whether it is read from the other strand.
    """

    source: Int[Tensor, "window base"]
    is_new: Bool[Tensor, "window base"]
    is_turned: Bool[Tensor, "window base"]

    def then(self, after: "Places") -> "Places":
        """This change, and ``after`` on what it gives."""
        return Places(
            self.source.gather(1, after.source),
            self.is_new.gather(1, after.source) | after.is_new,
            self.is_turned.gather(1, after.source) ^ after.is_turned,
        )

    def where(self, chosen: Bool[Tensor, " window"], other: "Places") -> "Places":
        """This for the chosen windows, the other for the rest."""
        kept = [torch.where(chosen[:, None], a, b) for a, b in zip(self, other, strict=True)]
        return Places(*kept)


def generator(seed: int, *place: int) -> torch.Generator:
    """Random numbers of a place in a run (step, micro-batch, process): a pure function of them."""
    (word,) = np.random.SeedSequence([seed, *place]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(word))


def augment(batch: RegionBatch, config: AugmentConfig, random: torch.Generator) -> RegionBatch:
    """Each window changed by a few of the changes, drawn anew."""
    n, _, length = batch.sequence.shape
    chosen = _draw_choice(n, config, random)
    places = unchanged(n, length)
    for column, name in enumerate(config.chosen):
        if name in _MAPS:
            change = _MAPS[name](n, length, int(getattr(config, name)), random)
            places = places.then(change).where(chosen[:, column], places)
    if config.reverse_complement:
        is_other = torch.rand(n, generator=random) < config.reverse_complement
        places = places.then(turned(n, length)).where(is_other, places)
    moved = apply(batch, places, random)
    sequence = moved.sequence
    for column, name in enumerate(config.chosen):
        if name not in _MAPS:
            changed = _VALUES[name](sequence, getattr(config, name), random)
            is_chosen = chosen[:, column].to(sequence.device)
            sequence = torch.where(is_chosen[:, None, None], changed, sequence)
    return replace(moved, sequence=sequence)


def apply(batch: RegionBatch, places: Places, random: torch.Generator) -> RegionBatch:
    """The windows with every position taken from where ``places`` says."""
    n, _, length = batch.sequence.shape
    drawn = torch.randint(4, (n, length), generator=random)
    device = batch.sequence.device
    source, is_new, is_turned = (x.to(device)[:, None] for x in places)
    sequence = batch.sequence.gather(2, source.expand(-1, 4, -1))
    sequence = torch.where(is_turned, sequence.flip(1), sequence)
    new = torch.nn.functional.one_hot(drawn.to(device), 4).transpose(1, 2).to(sequence.dtype)
    sequence = torch.where(is_new, new, sequence)
    n_tracks = batch.signal.shape[1]
    signal = batch.signal.gather(2, source.expand(-1, n_tracks, -1))
    return replace(batch, sequence=sequence, signal=signal)


def unchanged(n: int, length: int) -> Places:
    """Every base where it was."""
    return _kept(torch.arange(length).expand(n, -1))


def turned(n: int, length: int) -> Places:
    """The whole window from the other strand."""
    source = torch.arange(length).flip(0).expand(n, -1)
    nowhere = torch.zeros(n, length, dtype=torch.bool)
    return Places(source, nowhere, ~nowhere)


def deleted(n: int, length: int, most: int, random: torch.Generator) -> Places:
    """Up to ``most`` bases fewer at a place; as many new ones at the two ends."""
    size, at = _draw_segment(n, length, most, random)
    place = torch.arange(length) - size // 2
    place = torch.where(place >= at, place + size, place)
    return _with_ends(place, length)


def inserted(n: int, length: int, most: int, random: torch.Generator) -> Places:
    """Up to ``most`` new bases at a place; as many fewer at the two ends."""
    size, at = _draw_segment(n, length, most, random)
    place = torch.arange(length) + size // 2
    is_new = (place >= at) & (place < at + size)
    source = torch.where(place >= at + size, place - size, torch.where(is_new, at, place))
    return Places(source, is_new, torch.zeros_like(is_new))


def shifted(n: int, length: int, most: int, random: torch.Generator) -> Places:
    """By up to ``most`` bases either way; what leaves at one end enters at the other."""
    most = min(most, length)
    by = torch.randint(-most, most + 1, (n, 1), generator=random)
    return _kept((torch.arange(length) - by) % length)


def inverted(n: int, length: int, most: int, random: torch.Generator) -> Places:
    """A segment of up to ``most`` bases from the other strand."""
    size, at = _draw_segment(n, length, most, random)
    place = torch.arange(length).expand(n, -1)
    is_turned = (place >= at) & (place < at + size)
    source = torch.where(is_turned, 2 * at + size - 1 - place, place)
    return Places(source, torch.zeros_like(is_turned), is_turned)


def mutated(
    sequence: Float[Tensor, "window 4 base"], share: float, random: torch.Generator
) -> Float[Tensor, "window 4 base"]:
    """``share`` of the bases become another one. As EvoAug: a third more are drawn anew, of which
    a quarter come out as they were. N stays N."""
    n, _, length = sequence.shape
    n_sites = min(length, round(share / 0.75 * length))
    is_site = torch.zeros(n, length, dtype=torch.bool)
    sites = torch.rand(n, length, generator=random).topk(n_sites, dim=1).indices
    is_site.scatter_(1, sites, True)
    drawn = torch.randint(4, (n, length), generator=random)
    new = torch.nn.functional.one_hot(drawn, 4).transpose(1, 2)
    is_site = is_site[:, None].to(sequence.device) & (sequence.sum(1, keepdim=True) > 0)
    return torch.where(is_site, new.to(sequence), sequence)


def with_noise(
    sequence: Float[Tensor, "window 4 base"], deviation: float, random: torch.Generator
) -> Float[Tensor, "window 4 base"]:
    """Gaussian noise added to the code of the bases."""
    noise = torch.randn(sequence.shape, generator=random)
    return sequence + deviation * noise.to(sequence)


_MAPS = {"deletion": deleted, "insertion": inserted, "shift": shifted, "inversion": inverted}
_VALUES = {"mutation": mutated, "noise": with_noise}


def _draw_choice(
    n: int, config: AugmentConfig, random: torch.Generator
) -> Bool[Tensor, "window change"]:
    """Which changes each window gets: a random set, of a fixed or a random size."""
    n_changes = len(config.chosen)
    most = min(config.at_once, n_changes)
    if not most:
        return torch.zeros(n, n_changes, dtype=torch.bool)
    rank = torch.rand(n, n_changes, generator=random).argsort(1).argsort(1)
    size = torch.full((n, 1), most)
    if not config.is_exact:
        size = torch.randint(1, most + 1, (n, 1), generator=random)
    return rank < size


def _draw_segment(
    n: int, length: int, most: int, random: torch.Generator
) -> tuple[Int[Tensor, "window 1"], Int[Tensor, "window 1"]]:
    """A size of at most ``most`` and a place where a segment of it fits."""
    size = torch.randint(0, min(most, length - 1) + 1, (n, 1), generator=random)
    at = (torch.rand(n, 1, generator=random) * (length - size + 1)).long()
    return size, at.minimum(length - size)


def _kept(source: Int[Tensor, "window base"]) -> Places:
    nowhere = torch.zeros(source.shape, dtype=torch.bool)
    return Places(source, nowhere, nowhere)


def _with_ends(place: Int[Tensor, "window base"], length: int) -> Places:
    """Places beyond either end are new bases; their accessibility is that of the end."""
    is_new = (place < 0) | (place >= length)
    return Places(place.clamp(0, length - 1), is_new, torch.zeros_like(is_new))
