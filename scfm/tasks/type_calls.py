"""Scores of a model's type words -> the type of each cell, how sure, and the runner-up. NumPy only.

in   logits over the words of each type position, the first (coarse) of them already said
out  TypeCalls

A model says one type word or two, coarse then fine. The fine words' scores are those after the
coarse word with most of them; a cell whose coarse type is its finest has the end word's score
there, since a word is said once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped


@dataclass(frozen=True)
class TypeLogits:
    """What the model says at its type positions.

    Attributes
    ----------
    levels
        Scores of each position's words, (cells, words); -inf where a word cannot be said.
    coarse
        Which word was said first, where scores after it follow; None: the first of the highest.
    """

    levels: tuple[Float[np.ndarray, "cell _"], ...]
    coarse: Int[np.ndarray, " cell"] | None = None

    def __len__(self) -> int:
        return len(self.levels[0])

    def part(self, chosen: Shaped[np.ndarray, " chosen"]) -> "TypeLogits":
        """Some of the cells."""
        coarse = None if self.coarse is None else self.coarse[chosen]
        return TypeLogits(tuple(level[chosen] for level in self.levels), coarse)

    @classmethod
    def joined(cls, parts: Sequence["TypeLogits"]) -> "TypeLogits":
        """The cells of all parts, in their order."""
        levels = zip(*(part.levels for part in parts), strict=True)
        coarse = [part.coarse for part in parts if part.coarse is not None]
        return cls(
            tuple(np.concatenate(level) for level in levels),
            np.concatenate(coarse) if coarse else None,
        )


@dataclass(frozen=True)
class TypeCalls:
    """The types of some cells, all positions of words in their level's list.

    Attributes
    ----------
    coarse, fine
        Words said first and last; the same where a model says one.
    coarse_confidence
        Probability of the coarse word.
    confidence
        Probability of both words: the coarse one's times the fine one's after it.
    runner_up_level, runner_up
        The next best: another fine word after the same coarse one, or another coarse word,
        whichever is more probable. -1 where there is none.
    """

    coarse: Int[np.ndarray, " cell"]
    fine: Int[np.ndarray, " cell"]
    coarse_confidence: Float[np.ndarray, " cell"]
    confidence: Float[np.ndarray, " cell"]
    runner_up_level: Int[np.ndarray, " cell"]
    runner_up: Int[np.ndarray, " cell"]


def probabilities(
    logits: Float[np.ndarray, "cell word"], temperature: float = 1.0
) -> Float[np.ndarray, "cell word"]:
    """Softmax over the words of ``logits / temperature``, in float64; -inf has none."""
    scaled = logits.astype(np.float64) / temperature
    weight = np.exp(scaled - scaled.max(1, keepdims=True))
    return weight / weight.sum(1, keepdims=True)


def call_types(logits: TypeLogits, temperature: float = 1.0) -> TypeCalls:
    """The most probable word at each position in turn. Ties fall to the first word.

    ``temperature`` changes how sure a call is, never which word it is.
    """
    cells, sure = np.arange(len(logits)), np.ones(len(logits))
    best: list[np.ndarray] = []
    reached: list[np.ndarray] = []
    others: list[tuple[np.ndarray, np.ndarray]] = []  # the second word of each level, its share
    for number, level in enumerate(logits.levels):
        share = probabilities(level, temperature)
        first = level.argmax(1)
        if number == 0 and logits.coarse is not None:
            first = logits.coarse
        rest = share.copy()
        rest[cells, first] = 0.0
        second = rest.argmax(1)
        others.append((second, sure * rest[cells, second]))
        sure = sure * share[cells, first]
        best.append(first)
        reached.append(sure)
    chance = np.stack([c for _, c in others])
    # of equals the finer word: it names more
    level = len(others) - 1 - chance[::-1].argmax(0)
    runner_up = np.stack([w for w, _ in others])[level, cells]
    has_any = chance[level, cells] > 0
    return TypeCalls(
        coarse=best[0],
        fine=best[-1],
        coarse_confidence=reached[0],
        confidence=reached[-1],
        runner_up_level=np.where(has_any, level, -1),
        runner_up=np.where(has_any, runner_up, -1),
    )
