"""scfm evaluate celltype: files and models in, a judged comparison out.

in   labelled cells (one set that is split, or a reference and a query), models
out  CelltypeResult: every method on the same cells and folds

All methods see the same cells; model-free ones the genes that both sets share, models the genes
of their own vocabulary in each file.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from scfm.errors import ScfmWarning
from scfm.evaluate.celltype_inputs import (
    CelltypeData,
    OpenedCells,
    described,
    notes_on,
    open_cells,
    plan_of,
)
from scfm.evaluate.celltype_protocol import MethodRun, ProtocolConfig, TypingData, run_methods
from scfm.evaluate.celltype_result import CelltypeResult
from scfm.evaluate.celltype_scoring import score_runs
from scfm.evaluate.contamination import (
    Contamination,
    find_contamination,
    learned_labels_of,
    pretraining_data,
)
from scfm.evaluate.splits import SplitPlan
from scfm.evaluate.type_baselines import BASELINES
from scfm.evaluate.type_finetuned import FineTuned
from scfm.evaluate.type_methods import Cells, Embedded, Method
from scfm.evaluate.type_models import (
    UNTRAINED_NOTE,
    ByNeighbours,
    Given,
    classified,
    embed_all,
    knows_words,
    untrained,
    words_of,
)
from scfm.evaluate.type_scvi import ScviNeighbours, require_scvi
from scfm.metrics import macro_f1
from scfm.model.base import CellModel
from scfm.tasks.calibration import Calibration
from scfm.tasks.celltype import CelltypeConfig
from scfm.tasks.probability_calibration import ProbabilityCalibration
from scfm.tasks.type_probabilities import TypeProbabilities
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tokens.pool import PoolMember

ZERO_SHOT_NOTE = "zero-shot: no weight learned a label"
TUNED_NOTE = "fine-tuned elsewhere: see its README.md for the cells it learned from"
WORDS = "words"  # the data set under which a mapping puts what a model says in common terms
Progress = Callable[[str, int, int], None]
Said = Callable[..., TypeProbabilities]
Labelling = Mapping[str, str]


@dataclass
class _ModelMethods:
    """What the models say of all cells, and the methods that look it up."""

    embedded: dict[str, Embedded] = field(default_factory=dict)
    given: dict[str, TypeProbabilities] = field(default_factory=dict)
    methods: list[Method] = field(default_factory=list)


@dataclass(frozen=True)
class _Asking:
    """How models are asked about the cells."""

    opened: OpenedCells
    reading: InputConfig
    pooling: str | None
    batch_size: int
    on_progress: Progress

    def members(self, model: CellModel) -> list[PoolMember]:
        """Each set, opened for the model. A named layer is the query's."""
        assert model.vocab is not None, "models are loaded or built with a vocabulary"
        last = len(self.opened.sources) - 1
        return [
            open_input(
                source,
                model.vocab,
                self.reading if number == last else replace(self.reading, layer=None),
                model.token_config,
            )[0]
            for number, source in enumerate(self.opened.sources)
        ]

    def embedded(self, model: CellModel, what: str) -> Embedded:
        """The labelled cells of all sets, in the table's order."""
        parts = [
            embed_all(
                *(model, member),
                pooling=self.pooling,
                batch_size=self.batch_size,
                on_progress=partial(self.on_progress, what),
            ).part(cells.rows)
            for cells, member in zip(self.opened.sets, self.members(model), strict=True)
        ]
        return Embedded(
            np.concatenate([part.vectors for part in parts]),
            np.concatenate([part.depth for part in parts]),
        )

    def told(self, say: Said, model: CellModel, mapping: Labelling, what: str) -> TypeProbabilities:
        """What the model says of the same cells by words, or by its classifier."""
        parts = [
            say(
                *(model, member, mapping),
                batch_size=self.batch_size,
                on_progress=partial(self.on_progress, what),
            ).part(cells.rows)
            for cells, member in zip(self.opened.sets, self.members(model), strict=True)
        ]
        return TypeProbabilities.joined(parts)


def evaluate_celltype(
    data: CelltypeData,
    models: Mapping[str, CellModel],
    *,
    config: ProtocolConfig | None = None,
    reading: InputConfig | None = None,
    pooling: str | None = None,
    batch_size: int = 64,
    baselines: Sequence[Method] = BASELINES,
    more: Sequence[Method] = (),
    finetune: Sequence[CelltypeConfig] = (),
    scvi: bool = False,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> CelltypeResult:
    """Judge models beside the baselines on the same cells.

    Parameters
    ----------
    models
        By name or folder; a folder's record of pretraining is searched for the judged cells.
    more
        Further methods, such as one of your own (`scfm.evaluate.type_methods.Method`).
    finetune
        Ways to fine-tune every model on the cells learned from, anew in every fold.
    scvi
        Also judge neighbours in scVI's latent space (extra "scvi"), trained anew in every fold.
    on_progress
        Called with what is done ("embed ...", "evaluate"), how much of it, and how much there is.

    Raises LabelError, GeneCoverageError and ConfigError for data that cannot be judged on.
    """
    if scvi:
        require_scvi()
    config, reading = config or ProtocolConfig(), reading or InputConfig()
    opened = open_cells(data, reading)
    plan = plan_of(data, opened, config, config.seeds[0])
    if plan.is_optimistic:
        warnings.warn(
            "The split is random over cells, so scores are optimistic about new donors. Name the "
            "donors: split_by (--split-by donor_id).",
            category=ScfmWarning,
            stacklevel=2,
        )
    judged_source = opened.sources[-1]
    seen = [
        sentence
        for name, model in models.items()
        if (sentence := learned_labels_of(model, judged_source, _short(name, models)))
    ]
    for sentence in seen:
        warnings.warn(sentence, category=ScfmWarning, stacklevel=2)
    asking = _Asking(opened, reading, pooling, batch_size, on_progress)
    asked = ask_models(models, asking, data, config.seeds[0])
    rows = np.arange(len(opened.labels))
    cells = Cells(opened.log_counts, asked.embedded, asked.given, rows)
    typing = TypingData(cells, opened.labels, opened.groups)
    tuned = [_finetuned(*pair, models, asking) for pair in product(models, finetune)]
    more = [*more, ScviNeighbours(opened.counts)] if scvi else more
    methods = [*asked.methods, *tuned, *more, *baselines]
    runs = run_methods(
        *(typing, plan, methods, config),
        seed=config.seeds[0],
        on_progress=partial(on_progress, "evaluate"),
    )
    judged = plan.judged
    found = score_runs(
        *(runs, opened.labels[judged]),
        None if opened.groups is None else opened.groups[judged],
        *(plan, config),
        reference=described(opened, 0, data),
        query=described(opened, -1, data),
        over=data.donor_key or data.split_by or "cells",
        per_seed=_per_seed(runs, plan, typing, data, opened, methods, config),
        contamination=contamination_of(models, opened, reading),
        notes=[*seen, *notes_on(opened)],
    )
    verdict = " ".join([found.evaluation.verdict, *seen])
    return replace(found, evaluation=replace(found.evaluation, verdict=verdict))


def ask_models(
    models: Mapping[str, CellModel], asking: _Asking, data: CelltypeData, seed: int
) -> _ModelMethods:
    """Every model by reference and untrained; by words or its classifier where it has them."""
    found = _ModelMethods()
    words = (data.mapping or {}).get(WORDS, {})
    for name, model in models.items():
        short = _short(name, models)
        key, fresh = short, f"{short}_untrained"
        title = f"{short}, nearest neighbours"
        found.embedded[key] = asking.embedded(model, f"embed {key}")
        found.embedded[fresh] = asking.embedded(untrained(model, seed), f"embed {fresh}")
        note = ZERO_SHOT_NOTE if model.classifier is None else TUNED_NOTE
        found.methods += [
            ByNeighbours(key, title, note, key, "model"),
            ByNeighbours(fresh, f"{title}, untrained", UNTRAINED_NOTE, fresh, "untrained"),
        ]
        if knows_words(model):
            key = f"{short}_words"
            found.given[key] = asking.told(words_of, model, words, f"embed {key}")
            note = "by the model's own words for types; no reference"
            own = ProbabilityCalibration()  # its temperature is in what it says
            found.methods.append(Given(key, f"{short}, by words", note, own))
        if model.classifier is not None:
            key = f"{short}_classifier"
            found.given[key] = asking.told(classified, model, words, f"embed {key}")
            own = ProbabilityCalibration(threshold=Calibration.of(model).threshold)
            found.methods.append(Given(key, f"{short}, by its classifier", TUNED_NOTE, own))
    return found


def _finetuned(
    name: str, config: CelltypeConfig, models: Mapping[str, CellModel], asking: _Asking
) -> FineTuned:
    """A model to be fine-tuned in every fold."""
    opened, model, short = asking.opened, models[name], _short(name, models)
    members = tuple(asking.members(model))
    first = np.cumsum([0, *(member.source.n_cells for member in members[:-1])])
    places = [start + cells.rows for start, cells in zip(first, opened.sets, strict=True)]
    return FineTuned(
        key=f"{short}_{config.method}",
        name=f"{short}, fine-tuned ({config.method})",
        note="learned the labels of the cells learned from, anew in every fold",
        model=model,
        members=members,
        places=np.concatenate(places),
        config=config,
        groups=opened.groups,
    )


def _per_seed(
    runs: Sequence[MethodRun],
    plan: SplitPlan,
    typing: TypingData,
    data: CelltypeData,
    opened: OpenedCells,
    methods: Sequence[Method],
    config: ProtocolConfig,
) -> dict[str, list[float]]:
    """Macro-F1 of every method with every seed, the first seed's from its runs."""
    found: dict[str, list[float]] = {run.method.key: [] for run in runs}
    for seed in config.seeds:
        if seed != config.seeds[0]:
            plan = plan_of(data, opened, config, seed)
            runs = run_methods(typing, plan, methods, replace(config, unknown=()), seed=seed)
        for run in runs:
            score = macro_f1(opened.labels[plan.judged], run.probabilities.label)
            found[run.method.key].append(score)
    return found


def contamination_of(
    models: Mapping[str, CellModel], opened: OpenedCells, reading: InputConfig
) -> dict[str, Contamination]:
    """By model and data set; models without a folder have no record to search."""
    found = {}
    for model in models:
        if not Path(model).is_dir():
            continue
        pretraining = pretraining_data(model)
        for cells, source in zip(opened.sets, opened.sources, strict=True):
            found[f"{_short(model, models)}: {cells.name}"] = find_contamination(
                pretraining, source, name=cells.name, species=reading.species
            )
    return found


def _short(name: str, models: Mapping[str, CellModel]) -> str:
    """The folder's last name that tells the models apart; "scfm" for a single one."""
    if len(models) == 1:
        return "scfm"
    parts = [part for part in Path(name).parts if part != "model"]
    short = parts[-1] if parts else name
    others = sum(
        [part for part in Path(m).parts if part != "model"][-1:] == [short] for m in models
    )
    return short if others == 1 else name
