"""scfm.tl.calibrate: how far a model's type words can be trusted, from cells whose types are known.

in   labelled cells that trained nothing, a model of family scmulan
out  a Calibration, which the model then annotates by; calibration.json in the model's folder
"""

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int

from scfm.data.split import group_codes
from scfm.errors import ConfigError, LabelError, ScfmWarning
from scfm.model.base import CellModel
from scfm.model.folder import find_model
from scfm.tasks.calibration import Calibration, fit_calibration
from scfm.tasks.type_calls import TypeLogits, call_types
from scfm.tasks.word_annotation import TypeWords, annotate_cells
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tokens.sentence_config import NO_WORD
from scfm.tokens.words import Words, nearest_texts
from scfm.tools.embedding import checked_batch_size, model_id, vocab_of
from scfm.tools.loading import as_model, input_config
from scfm.version import __version__

if TYPE_CHECKING:
    from anndata import AnnData

NAMES_SHOWN = 5
NO_LABEL, NO_TYPE = -2, -1  # of a cell; of a label that is none of the model's words


def calibrate(
    adata: "AnnData",
    model: CellModel | str | Path,
    *,
    label_key: str,
    precision: float = 0.9,
    batch_size: int = 64,
    layer: str | None = None,
    species: str = "auto",
    orthologs: bool = False,
    minimum_coverage: float = 0.5,
) -> Calibration:
    """Fit the temperature and the threshold for "unknown" on labelled cells.

    The temperature makes a confidence the share of cells that are named rightly; the threshold is
    the lowest at which so many of the named cells are right.

    Parameters
    ----------
    adata
        Raw counts of cells that did not train the model: on its own, it is too sure.
    model
        Annotates by the calibration from then on. Named by a folder, that gets calibration.json,
        which loading takes up; a model in memory keeps it as long as it lives
        (``Calibration.save(folder)`` writes it).
    label_key
        obs column of the true types: words of the model's finest type column, their ontology ids,
        or their text in any letter case. Cells without a value are left out; a type that is no
        word of the model counts as one it cannot name, so wrong whatever it says.
    precision
        Share of the named cells that must be right.

    Raises
    ------
    ConfigError
        The model knows no words for cell types, or no threshold reaches the precision.
    LabelError
        No such column, or none of its values is a word of the model.
    """
    reading = input_config(layer, species, minimum_coverage, orthologs=orthologs)
    return calibrate_on(adata, model, label_key, reading, precision, batch_size)


def calibrate_on(
    data: "AnnData | str | Path",
    model: CellModel | str | Path,
    label_key: str,
    reading: InputConfig,
    precision: float = 0.9,
    batch_size: int = 64,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Calibration:
    """The same for a file or an AnnData, read as ``reading`` says."""
    if not 0 < precision <= 1:
        raise ConfigError(f"precision is {precision}; wanted a share in (0, 1].")
    folder = None if isinstance(model, CellModel) else find_model(model)
    model = as_model(model)
    types = TypeWords.of(model)
    member, report = open_input(data, vocab_of(model), reading, model.token_config)
    truth = true_words(model, types, member.source.obs, label_key, member.source.name)
    parts = []
    for cells in annotate_cells(model, member, batch_size=checked_batch_size(batch_size)):
        parts.append(cells.logits.part(truth[cells.cell_index] != NO_LABEL))
        on_progress(int(cells.cell_index[-1]) + 1, member.source.n_cells)
    logits, truth = TypeLogits.joined(parts), truth[truth != NO_LABEL]
    names_type = types.names_type(-1)[call_types(logits).fine]
    if not names_type.any():
        raise ConfigError("The model names no type for any of these cells: nothing to calibrate.")
    named = logits.part(names_type)
    found = fit_calibration(named, is_right(types, named, truth[names_type]), precision)
    facts = {
        "n_cells_given_no_type": int((~names_type).sum()),
        "data": Path(member.source.name).name,
        "label_key": label_key,
        "n_cells_of_no_word": int((truth == NO_TYPE).sum()),
        "counts_covered": report.counts_covered,
        "scfm_version": __version__,
    }
    found = replace(found, weights_sha256=model_id(model), facts={**facts, **found.facts})
    model.calibration = found.to_dict()
    if folder is not None:
        found.save(folder)
    return found


def is_right(
    types: TypeWords, logits: TypeLogits, truth: Int[np.ndarray, " cell"]
) -> Bool[np.ndarray, " cell"]:
    """Whether the finest word said is the true one (a token id)."""
    return types.levels[-1].ids[call_types(logits).fine] == truth


def true_words(
    model: CellModel, types: TypeWords, obs: object, label_key: str, name: str
) -> Int[np.ndarray, " cell"]:
    """Each cell's true type as a token id; `NO_LABEL`, or `NO_TYPE` for one the model lacks."""
    codes, labels = group_codes(obs, label_key, name)  # pyright: ignore[reportArgumentType]
    words, column = Words(vocab_of(model)), types.levels[-1].column
    silent = {text.casefold() for text in NO_WORD}
    ids = np.full(len(labels) + 1, NO_LABEL, dtype=np.int64)  # the last is for code -1
    for number, label in enumerate(labels):
        if label.strip().casefold() not in silent:
            found = words.find(column, label)
            ids[number] = NO_TYPE if found is None else found
    unknown = [label for label, i in zip(labels, ids, strict=False) if i == NO_TYPE]
    if not (ids >= 0).any():
        raise LabelError(_none_known(label_key, name, labels, types, unknown))
    if unknown:
        _warn_of_unknown(label_key, name, unknown, Counter(codes.tolist()), labels, types)
    return ids[codes]


def _none_known(
    label_key: str, name: str, labels: list[str], types: TypeWords, unknown: list[str]
) -> str:
    if not unknown:
        return f"Column '{label_key}' of {name} labels no cell. Name another: --label."
    lines = [_hint(label, types) for label in unknown[:NAMES_SHOWN]]
    return (
        f"None of the {len(labels):,} values of '{label_key}' in {name} is a word of "
        f"{types.levels[-1].column} that the model knows: " + "; ".join(lines) + ". Name another "
        "column (--label), or rename its values as the model's vocab.tsv spells them."
    )


def _warn_of_unknown(
    label_key: str,
    name: str,
    unknown: list[str],
    n_cells: Counter[int],
    labels: list[str],
    types: TypeWords,
) -> None:
    n = sum(n_cells[labels.index(label)] for label in unknown)
    lines = [_hint(label, types) for label in unknown[:NAMES_SHOWN]]
    more = f" and {len(unknown) - NAMES_SHOWN:,} more" if len(unknown) > NAMES_SHOWN else ""
    warnings.warn(
        f"{n:,} cells of {name} have values of '{label_key}' that are no word of the model: "
        + "; ".join(lines)
        + f"{more}. Whatever it says of them counts as wrong. Rename them if they are another "
        "spelling.",
        ScfmWarning,
        stacklevel=3,
    )


def _hint(label: str, types: TypeWords) -> str:
    near = nearest_texts(label, types.levels[-1].names)
    return f"'{label}'" + (f" (nearest: {', '.join(near)})" if near else "")
