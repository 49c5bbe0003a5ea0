"""An evaluation -> report.html and metrics.json.

in   Evaluation, 2-d embeddings of the query, the training record, gene reports, provenance
out  one self-contained page (no script, no other file) and one JSON file

Figures come from scfm.evaluate.figures, wording and layout from templates/report.html.j2. The
page can be opened anywhere, e-mailed and archived: nothing in it points outside.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import Num
from markupsafe import Markup
from matplotlib.figure import Figure

from scfm.data.gene_report import GeneReport, percent
from scfm.data.write import atomic_path
from scfm.evaluate import figures, inline
from scfm.evaluate.results import Evaluation, MethodResult
from scfm.evaluate.wording import DASH, duration, plain, score, sentence, shown, signed, span, words

PANEL_WIDTH = 360  # CSS pixels of a scatter; its PNG has twice as many
MAX_NAMES_ON_PANEL = 12  # more labels than this would hide the cells


@dataclass(frozen=True)
class Panel:
    """One scatter: an image of all the query's cells and the labels' names to lay over it."""

    title: str
    caption: str
    alt: str
    image: str
    names: Mapping[str, tuple[float, float]]


def write_report(
    out: Path,
    evaluation: Evaluation,
    *,
    embeddings: Mapping[str, Num[np.ndarray, "cell 2"]],
    training: Mapping[str, Any] | None,
    gene_reports: Mapping[str, Any],
    provenance: Mapping[str, Any],
    title: str,
    limits: Sequence[str] = (),
) -> None:
    """Write one self-contained HTML page about an evaluation.

    Parameters
    ----------
    out
        The page's path; what was there before survives a failed write.
    embeddings
        Per method key, 2-d coordinates of the query's cells in the query's order. The model's
        is drawn twice (true and predicted labels), every other one with the true labels.
    training
        None, or the columns ``step`` and ``loss`` (and ``validation_loss``, not finite or None at
        steps without one), and by choice ``seconds``, ``cells``, ``parameters``, ``settings`` (a
        mapping shown as a table).
    gene_reports
        Per data set a GeneReport, its ``to_dict()``, or its text.
    provenance
        Versions, seeds, file hashes, model id; a nested mapping becomes a titled group.
    limits
        Sentences on what this evaluation does not show, beyond those that always hold.

    Raises
    ------
    OutputError
        ``out`` cannot be written.
    """
    colours = label_colours(evaluation)
    page = (
        page_environment()
        .get_template("report.html.j2")
        .render(
            evaluation=evaluation,
            title=title,
            model=judged(evaluation),
            ranking=ranked(evaluation),
            best=best_values(evaluation),
            standing={method.key: standing(evaluation, method) for method in evaluation.methods},
            colours=colours,
            panels=list(embedding_panels(evaluation, embeddings, colours)),
            interval_chart=interval_chart(evaluation),
            difference_chart=difference_chart(evaluation),
            confusion_chart=confusion_chart(evaluation),
            confusion_words=confusion_words(evaluation),
            loss_chart=loss_chart(training) if training and len(training["loss"]) else None,
            losses=list(training["loss"]) if training else [],
            training_facts=training_facts(training or {}),
            data={
                "Reference": captioned(evaluation.reference),
                "Query": captioned(evaluation.query),
            },
            wide_confusion=len(confusion_columns(evaluation)) > 10,
            genes=gene_tables(gene_reports),
            provenance=grouped(provenance),
            limits=limits,
        )
    )
    with atomic_path(Path(out)) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def page_environment() -> jinja2.Environment:
    """What all pages are made with: their templates, escaping, and how values are worded."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("scfm.evaluate"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "score": score,
        "signed": signed,
        "span": span,
        "plain": plain,
        "words": words,
        "sentence": sentence,
    }
    return environment


def write_metrics(out: Path, evaluation: Evaluation, extra: Mapping[str, Any]) -> None:
    """Write metrics.json: ``evaluation.to_dict()`` and ``extra``, keys sorted, indented.

    JSON knows finite numbers only: NaN and infinities become null. Raises OutputError where
    ``out`` cannot be written.
    """
    found = evaluation.to_dict()
    assert not found.keys() & extra.keys(), f"already in the evaluation: {found.keys() & extra}"
    text = json.dumps(finite(found | dict(extra)), indent=2, sort_keys=True, allow_nan=False)
    with atomic_path(Path(out)) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")


def judged(evaluation: Evaluation) -> MethodResult:
    """The method the evaluation is about."""
    return next(method for method in evaluation.methods if method.kind == "model")


def ranked(evaluation: Evaluation) -> list[MethodResult]:
    """All methods, best macro-F1 first: a baseline that wins stands on top."""
    return sorted(evaluation.methods, key=lambda method: -method.macro_f1.value)


def label_colours(evaluation: Evaluation) -> dict[str, str]:
    """One colour a label over truth and all methods, so that every panel of the page agrees."""
    return figures.label_colours(evaluation.labels, *(m.predicted for m in evaluation.methods))


def best_values(evaluation: Evaluation) -> dict[str, float]:
    """The highest value a score reaches, per column of the table."""
    scores = ("macro_f1", "accuracy", "balanced_accuracy")
    return {s: max(getattr(method, s).value for method in evaluation.methods) for s in scores}


def standing(evaluation: Evaluation, method: MethodResult) -> tuple[str, str]:
    """How a method stands against the model: a word for the page's style, and plain words.

    "Clearly" means that the paired 95 % interval of the difference does not reach zero.
    """
    if method.kind == "model":
        return "model", "the model judged here"
    difference = evaluation.versus.get(method.key)
    if difference is None:
        return "even", "not compared"
    if difference.high < 0:
        return "ahead", "beats the model"
    if difference.low > 0:
        return "behind", "behind the model"
    if difference.value < 0:
        return "even", "ahead, not clearly"
    return "even", "behind, not clearly"


def embedding_panels(
    evaluation: Evaluation,
    embeddings: Mapping[str, Num[np.ndarray, "cell 2"]],
    colours: Mapping[str, str],
) -> Iterator[Panel]:
    """The model's cells by truth and by prediction, then each other embedding by truth."""
    model = judged(evaluation)
    n_cells = plain(len(evaluation.truth))
    for key in sorted(embeddings, key=lambda key: key != model.key):
        name, coordinates = evaluation.method(key).name, embeddings[key]
        title = f"{name}: true labels"
        if key != model.key:
            caption = "The same cells and labels in this method's embedding"
            yield _panel(title, caption, coordinates, evaluation.truth, colours)
            continue
        caption = "UMAP of the embedding, coloured by the labels that came with the query"
        yield _panel(title, caption, coordinates, evaluation.truth, colours)
        right = plain(int(np.sum(np.asarray(model.predicted) == np.asarray(evaluation.truth))))
        caption = f"The same cells by what {name} calls them: {right} of {n_cells} are right"
        yield _panel(f"{name}: predicted labels", caption, coordinates, model.predicted, colours)


def _panel(
    title: str,
    caption: str,
    coordinates: Num[np.ndarray, "cell 2"],
    labels: np.ndarray,
    colours: Mapping[str, str],
) -> Panel:
    figure = Figure(figsize=(PANEL_WIDTH / 100, PANEL_WIDTH / 100))
    ax = figure.add_axes((0, 0, 1, 1))
    figures.embedding(ax, coordinates, labels, colours, legend=False)
    ax.set_axis_off()
    present = np.unique(np.asarray(labels, dtype=str))
    few = len(present) <= MAX_NAMES_ON_PANEL
    return Panel(
        title=title,
        caption=caption,
        alt=f"{title}. Scatter of {len(labels):,} cells, {len(present)} labels: "
        + ", ".join(present),
        image=inline.png(figure, width=PANEL_WIDTH),
        names=figures.name_places(ax, coordinates, labels) if few else {},
    )


def interval_chart(evaluation: Evaluation) -> Markup:
    """Macro-F1 of every method with its interval, best first."""
    methods = ranked(evaluation)
    figure = Figure(figsize=(4, 0.55 + 0.45 * len(methods)), layout="constrained")
    figures.intervals(
        figure.subplots(),
        [method.name for method in methods],
        [method.macro_f1 for method in methods],
        highlight=[method.kind for method in methods].index("model"),
    )
    return inline.svg(figure, name="scores")


def difference_chart(evaluation: Evaluation) -> Markup | None:
    """The model's macro-F1 minus each other method's, in the order of the chart of scores."""
    methods = [m for m in ranked(evaluation) if m.key in evaluation.versus]
    if not methods:
        return None
    figure = Figure(figsize=(4, 0.55 + 0.45 * len(methods)), layout="constrained")
    figures.differences(
        figure.subplots(),
        [method.name for method in methods],
        [evaluation.versus[method.key] for method in methods],
        model=judged(evaluation).name,
    )
    return inline.svg(figure, name="differences")


def confusion_columns(evaluation: Evaluation) -> list[str]:
    """The query's labels, then others the model gave, unknown last."""
    given = {str(label) for label in judged(evaluation).predicted} - set(evaluation.labels)
    return [*evaluation.labels, *sorted(given, key=lambda name: (name == figures.UNKNOWN, name))]


def confusion_chart(evaluation: Evaluation) -> Markup:
    """Where the model's labels fall, per true label."""
    columns = confusion_columns(evaluation)
    counts = figures.confusion_counts(
        evaluation.truth, judged(evaluation).predicted, evaluation.labels, columns
    )
    width = 0.44 * len(columns) + 0.35 + 0.07 * max(map(len, evaluation.labels))
    height = 0.42 * len(evaluation.labels) + 0.4 + 0.055 * max(map(len, columns))
    figure = Figure(figsize=(max(width, 3.2), height), layout="constrained")
    figures.confusion(figure.subplots(), counts, evaluation.labels, columns)
    return inline.svg(figure, name="confusion")


def confusion_words(evaluation: Evaluation) -> str:
    """The confusion matrix for a reader who cannot see it: each label's fate."""
    predicted = np.asarray(judged(evaluation).predicted, dtype=str)
    fates = []
    for label in evaluation.labels:
        given, counts = np.unique(predicted[evaluation.truth == label], return_counts=True)
        if len(given):
            top = counts.argmax()
            share = counts[top] / counts.sum()
            fates.append(f"{label}: {share:.0%} called {given[top]}")
    return "; ".join(fates)


def loss_chart(training: Mapping[str, Any]) -> Markup:
    """Loss by step, with validation where the record has it."""
    validation = None
    if "validation_loss" in training:
        validation = (training["step"], training["validation_loss"])
    figure = Figure(figsize=(4, 2.5), layout="constrained")
    figures.loss_curve(figure.subplots(), training["step"], training["loss"], validation)
    return inline.svg(figure, name="loss")


def gene_tables(reports: Mapping[str, Any]) -> dict[str, Any]:
    """Gene reports side by side (rows of a value and its share), and those that are plain text."""
    read = {
        name: report if isinstance(report, GeneReport) else GeneReport.from_dict(report)
        for name, report in reports.items()
        if not isinstance(report, str)
    }
    return {
        "names": list(read),
        "rows": list(zip(GENE_ROWS, *map(_gene_cells, read.values()), strict=True)),
        "examples": {name: report.examples for name, report in read.items()},
        "causes": {name: r.likely_cause for name, r in read.items() if r.likely_cause},
        "texts": {name: report for name, report in reports.items() if isinstance(report, str)},
    }


GENE_ROWS = (
    "Species",
    "Read from",
    "Columns",
    "Genes of the model",
    "of these renamed",
    "of these repeated, summed",
    "Ambiguous, not used",
    "Genes outside the vocabulary",
    "Unrecognised",
    "Genes of the model not measured",
    "Counts on genes of the model",
)


def _gene_cells(report: GeneReport) -> Iterator[tuple[str, str]]:
    """A value and its share for each of GENE_ROWS."""
    guessed = " (guessed)" if report.species_guessed else ""
    mapped = ", by one-to-one orthologs" if report.orthologs else ""
    yield report.species + guessed + mapped, ""
    yield report.id_kind, ""
    yield plain(report.n_columns), ""
    for kind in ("matched", "renamed", "duplicated", "ambiguous", "outside_vocabulary",
                 "unrecognised"):  # fmt: skip
        count = getattr(report, kind)
        yield plain(count), percent(count / max(report.n_columns, 1))
    yield plain(report.missing), percent(report.missing / max(report.n_genes, 1))
    yield DASH if report.counts_covered is None else percent(report.counts_covered), ""


def grouped(provenance: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Provenance in titled groups of one value a line; values on the top level come first."""
    single = {k: v for k, v in provenance.items() if not isinstance(v, Mapping)}
    groups = {"This run": captioned(single)} if single else {}
    for name, group in provenance.items():
        if isinstance(group, Mapping):  # its keys are packages, files: names to leave alone
            groups[sentence(name)] = {key: shown(f"{name} {key}", v) for key, v in group.items()}
    return groups


def captioned(values: Mapping[str, Any]) -> dict[str, str]:
    """Settings or facts as a table shows them."""
    return {sentence(key): shown(key, value) for key, value in values.items()}


def training_facts(training: Mapping[str, Any]) -> dict[str, str]:
    """What stands beside the loss curve."""
    facts = captioned({key: training[key] for key in ("parameters", "cells") if key in training})
    if "seconds" in training:
        facts["Time"] = duration(training["seconds"])
    return facts | captioned(training.get("settings", {}))


def finite(value: Any) -> Any:
    """The same data in JSON's types: numpy unwrapped, paths as text, no NaN or infinity."""
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [finite(v) for v in value]
    if isinstance(value, np.generic):
        return finite(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
