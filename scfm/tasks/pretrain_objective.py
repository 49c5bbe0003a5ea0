"""What a pretraining's loss is made of, and the names it is logged under.

in   the ``objective`` section of a run
out  weights of the loss's terms; the columns of metrics.csv
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, get_args, runtime_checkable

from scfm.batch import CellBatch
from scfm.model.base import CellModel
from scfm.objectives.parts import PARTS
from scfm.objectives.sentence import EndTarget, TypeTarget
from scfm.tasks.pretrain_losses import BatchLosses, guess_losses, said_losses


@runtime_checkable
class Objective(Protocol):
    """What a run's loss is made of."""

    @property
    def weights(self) -> Mapping[str, float]:
        """Of each term of the loss, by its name; first the main one."""
        ...

    def losses(self, model: CellModel, cells: CellBatch) -> BatchLosses:
        """Of one batch."""
        ...


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The default family's."""

    cell_weight: float = 1.0  # of the loss from the cell state, against the query decoder's

    def __post_init__(self) -> None:
        if not 0 <= self.cell_weight < float("inf"):
            raise ValueError(f"objective.cell_weight must be at least 0, got {self.cell_weight}")

    @property
    def weights(self) -> dict[str, float]:
        return {"query": 1.0, "cell": self.cell_weight}

    def losses(self, model: CellModel, cells: CellBatch) -> BatchLosses:
        return guess_losses(model, cells, self.weights, zero_weight=1.0)


@dataclass(frozen=True, kw_only=True)
class MaskedObjectiveConfig:
    """scFoundation's: the squared error of all selected genes.

    Its paper takes the mean over a batch's selected genes and says nothing of zeros. Here it is
    taken over a cell's and then over cells, as in the default family (`mean_squared_error`), and
    zeros weigh as much as expressed genes unless ``zero_weight`` says otherwise.
    """

    zero_weight: float = 1.0  # of a selected gene without a count, against an expressed one's

    def __post_init__(self) -> None:
        if not 0 <= self.zero_weight < float("inf"):
            raise ValueError(f"objective.zero_weight must be at least 0, got {self.zero_weight}")

    @property
    def weights(self) -> dict[str, float]:
        return {"decoder": 1.0}

    def losses(self, model: CellModel, cells: CellBatch) -> BatchLosses:
        return guess_losses(model, cells, self.weights, self.zero_weight)


@dataclass(frozen=True, kw_only=True)
class SentenceObjectiveConfig:
    """scMulan's: which words are still to be said, and with which values.

    Attributes
    ----------
    value_weight
        Of the values' squared error, in bins, beside the words' loss; 200 as released.
    end_target
        Where the end word is wanted: at the "last" place alone, or "always", like any word not yet
        said. Always wanted, it competes with every gene from the first word on, and generated
        cells end early, as the published model's do.
    type_target
        What an annotation wants at each place: the "set" of type words not yet said, or just the
        "next" one.
    metadata_weight
        Of a word of obs, and of the end word, in the words' loss beside a gene's. They are a few
        among thousands, so at 1, as released, they are a small part of the loss and learned late.
    """

    value_weight: float = 200.0
    end_target: EndTarget = "last"
    type_target: TypeTarget = "set"
    metadata_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("value_weight", "metadata_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"objective.{name} must be at least 0, got {getattr(self, name)}")
        for name, known in (("end_target", EndTarget), ("type_target", TypeTarget)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(
                    f"objective.{name} is '{getattr(self, name)}'; known are "
                    f"{', '.join(get_args(known))}"
                )

    @property
    def weights(self) -> dict[str, float]:
        return {"words": 1.0, "values": self.value_weight}

    def losses(self, model: CellModel, cells: CellBatch) -> BatchLosses:
        return said_losses(
            model,
            cells,
            self.weights,
            end_target=self.end_target,
            type_target=self.type_target,
            metadata_weight=self.metadata_weight,
        )


def losses_of(objective: Objective) -> list[str]:
    """The loss and, where it has several, its parts by way of guessing."""
    ways = [f"loss_{way}" for way in objective.weights]
    return ["loss", *(ways if len(ways) > 1 else [])]


def metrics_of(objective: Objective) -> list[str]:
    """The columns of metrics.csv; docs/training_numbers.md defines each."""
    losses = [*losses_of(objective), *(f"loss_{part}" for part in PARTS)]
    return [
        *losses,
        *("lr", "gradient_norm", "spike", "skipped"),
        *("cells_per_s", "tokens_per_s", "mfu", "data_wait", "memory_peak"),
        *(f"val_{name}" for name in losses),
    ]
