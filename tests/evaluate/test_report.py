"""The page says what the Evaluation says: read back with html.parser, figures with matplotlib."""

import base64
import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from scfm.data.gene_report import GeneReport
from scfm.errors import OutputError
from scfm.evaluate import figures, inline, report
from scfm.evaluate.results import ClassScore, Evaluation, Interval, MethodResult

HOSTILE = '<script>alert("$x$")</script>'
VOID = {"meta", "img", "br", "link", "input", "hr"}


def around(value: float, half: float = 0.0123) -> Interval:
    return Interval(value, value - half, value + half)


def a_method(key, name, kind, value, labels, predicted) -> MethodResult:
    return MethodResult(
        key=key,
        name=name,
        kind=kind,
        macro_f1=around(value),
        accuracy=around(value - 0.0417),
        balanced_accuracy=around(value - 0.0832),
        per_class={
            label: ClassScore(0.5 + 0.0311 * i, 0.6 + 0.0222 * i, value - 0.0137 * i, 40 + i)
            for i, label in enumerate(labels)
        },
        predicted=predicted,
        note=f"how {key} works",
    )


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    rng = np.random.default_rng(20261120)
    labels = ["B", "CD4 T", "CD8 T", HOSTILE]
    truth = rng.choice(labels, size=300, p=[0.3, 0.4, 0.2, 0.1])
    given = np.where(rng.random(300) < 0.8, truth, rng.choice([*labels, "CD34+", "unknown"], 300))
    methods = [
        a_method("scfm", "scfm", "model", 0.8125, labels, given),
        a_method("untrained", "scfm, untrained", "untrained", 0.5316, labels, truth[::-1]),
        a_method("pca_knn", "PCA + kNN", "baseline", 0.8049, labels, truth),
        a_method("pca_lr", "PCA + logistic", "baseline", 0.8612, labels, truth),
    ]
    return Evaluation(
        reference={"name": "Ref & co", "n_cells": 3874, "label_key": "celltype"},
        query={"name": "PBMC3k", "n_cells": 300},
        labels=labels,
        truth=truth,
        methods=methods,
        versus={
            "untrained": Interval(0.2809, 0.2604, 0.3017),
            "pca_knn": Interval(0.0076, -0.0103, 0.0242),
            "pca_lr": Interval(-0.0487, -0.0612, -0.0351),
        },
        verdict="scfm is at 0.812 & PCA + logistic at 0.861 beats it.",
        n_bootstrap=1000,
        seed=7,
    )


@pytest.fixture(scope="module")
def gene_report() -> GeneReport:
    return GeneReport(
        name="PBMC3k", species="human", species_guessed=True, orthologs=False,
        id_kind="symbols in var.index", n_columns=32738, n_genes=19300, matched=18011,
        renamed=812, duplicated=3, ambiguous=31, outside_vocabulary=14294, unrecognised=402,
        missing=1292, counts_covered=0.9341, examples={"renamed": ("FAM65B",)},
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory, evaluation, gene_report) -> str:
    tmp_path, rng = tmp_path_factory.mktemp("report"), np.random.default_rng(20261121)
    report.write_report(
        tmp_path / "report.html",
        evaluation,
        embeddings={key: rng.normal(size=(300, 2)) for key in ("untrained", "scfm")},
        training={
            "step": list(range(1, 101)),
            "loss": list(np.exp(-np.arange(100) / 30) + 0.3),
            "validation_loss": [0.5 if i % 20 == 19 else None for i in range(100)],
            "seconds": 143.2,
            "cells": 6400,
            "parameters": 3012345,
            "settings": {"learning_rate": 0.001, "seed": 20261120},
        },
        gene_reports={
            "PBMC3k": gene_report,
            "reference": gene_report.to_dict(),
            "text": f"as text {HOSTILE}",
        },
        provenance={"model": "demo/model", "versions": {"torch": "2.13.0"}, HOSTILE: {HOSTILE: 1}},
        title="scfm demo",
        limits=["The query's labels come from clustering."],
    )
    return (tmp_path / "report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Elements with attributes, visible text of the body in order, rows of tables."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if "body" in self.open and data.strip():
            self.text.append(data.strip())
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def test_parses_and_closes_every_element(page):
    parsed = Page(page)
    assert parsed.open == []
    tags = [tag for tag, _ in parsed.elements]
    assert tags.count("h1") == 1
    assert tags.count("html") == tags.count("main") == 1
    ids = [a["id"] for _, a in parsed.elements if "id" in a]
    assert len(ids) == len(set(ids))


def test_verdict_comes_first(page, evaluation):
    assert Page(page).text[0] == evaluation.verdict


def test_needs_nothing_from_outside(page):
    parsed = Page(page)
    for tag, attributes in parsed.elements:
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "href", "srcset", "data", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
    assert "http" not in page
    assert "@import" not in page
    assert len(page.encode()) < 2_000_000
    targets = {a["id"] for _, a in parsed.elements if "id" in a}
    links = [a["href"] or "" for _, a in parsed.elements if "href" in a]
    links += [f"#{name}" for name in re.findall(r"url\(#([^)]+)\)", page)]
    assert {link[1:] for link in links} <= targets


def test_hostile_label_stays_text(page):
    assert "<script" not in page
    assert any(HOSTILE in text for text in Page(page).text)  # nor is any of it lost


def test_every_figure_is_described(page):
    parsed = Page(page)
    images = [a for tag, a in parsed.elements if tag == "img"]
    assert len(images) == 3
    assert all(
        re.match(r"scfm.*: .* labels\. Scatter of 300 cells", a["alt"] or "") for a in images
    )
    described = [a for _, a in parsed.elements if a.get("role") == "img"]
    drawn = [a for tag, a in parsed.elements if tag == "svg"]
    assert len(described) == len(drawn) == 4
    assert all(a["aria-label"] for a in described)


def test_table_of_methods_equals_the_evaluation(page, evaluation):
    rows = Page(page).rows
    table = rows[1:5]
    assert [row[0].split("how")[0] for row in table] == [
        "PCA + logistic", "scfm", "PCA + kNN", "scfm, untrained",
    ]  # fmt: skip
    for row in table:
        method = next(m for m in evaluation.methods if row[0].startswith(m.name + "how"))
        for cell, interval in zip(
            row[1:4], (method.macro_f1, method.accuracy, method.balanced_accuracy), strict=True
        ):
            shown = [float(number) for number in re.findall(r"\d\.\d{3}", cell)]
            np.testing.assert_allclose(shown, dataclasses.astuple(interval), atol=0.00051)
        if method.key in evaluation.versus:
            shown = [
                float(x.replace("\N{MINUS SIGN}", "-"))
                for x in re.findall(r"[^\d ]\d\.\d{3}", row[4])
            ]
            expected = dataclasses.astuple(evaluation.versus[method.key])
            np.testing.assert_allclose(shown, expected, atol=0.00051)
    assert [row[5] for row in table] == [
        "beats the model", "the model judged here", "behind, not clearly", "behind the model",
    ]  # fmt: skip


def test_best_of_each_column_is_marked(page):
    marked = re.findall(r'class="best" title="best of the column">([\d.]+)<', page)
    assert marked == ["0.861", "0.820", "0.778"]


def test_class_table_equals_the_evaluation(page, evaluation):
    scores = evaluation.method("scfm").per_class
    rows = {row[0]: row[1:] for row in Page(page).rows if len(row) == 5 and row[0] in scores}
    # The later table (F1 of every method) has as many columns and comes last.
    ranked = report.ranked(evaluation)
    for label in evaluation.labels:
        assert rows[label] == [f"{m.per_class[label].f1:.3f}" for m in ranked]
    first = [row for row in Page(page).rows if len(row) == 5 and row[0] in scores][:4]
    for label, n_cells, precision, recall, f1 in first:
        fate = scores[label]
        assert (n_cells, precision, recall, f1) == (
            f"{fate.n_cells}", f"{fate.precision:.3f}", f"{fate.recall:.3f}", f"{fate.f1:.3f}",
        )  # fmt: skip


def test_gene_reports_training_and_provenance_are_shown(page):
    text = " ".join(" ".join(row) for row in Page(page).rows)
    for shown in ("32,738", "18,011 55.0 %", "93.4 %", "2 min 23 s", "3,012,345", "20261120",
                  "0.001", "2.13.0", "demo/model"):  # fmt: skip
        assert shown in text
    assert f"as text {HOSTILE}" in Page(page).text
    assert "The query's labels come from clustering." in Page(page).text


def test_panels_hold_every_cell_in_its_labels_colour(rng, evaluation):
    colours = report.label_colours(evaluation)
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1]] * 75, dtype=float)
    (panel, predicted) = report.embedding_panels(evaluation, {"scfm": corners}, colours)
    assert panel.title == "scfm: true labels"
    right = (evaluation.method("scfm").predicted == evaluation.truth).sum()
    assert f"{right} of 300 are right" in predicted.caption
    image = Image.open(io.BytesIO(base64.b64decode(panel.image.partition(",")[2])))
    assert image.size == (720, 720)
    alpha = np.asarray(image)[..., 3]
    assert alpha[0, 0] == 0  # the ground is the page's
    for half in (alpha[:360, :360], alpha[:360, 360:], alpha[360:, :360], alpha[360:, 360:]):
        assert half.any()


def test_svg_uses_the_pages_colours_and_leaves_labels_alone():
    figure = Figure()
    ax = figure.subplots()
    label = f'{figures.INK} id="q" url(#q) <b>'
    ax.text(0.5, 0.5, label, color=figures.INK)
    drawn = inline.svg(figure, name="q")
    parsed = Page(f"<body>{drawn}</body>")
    assert label in parsed.text
    style = next(a["style"] for tag, a in parsed.elements if tag == "text" and "ink" in a["style"])
    assert "fill: var(--ink)" in style
    assert drawn == inline.svg(figure, name="q")


def test_css_defines_every_role_colour_for_light_and_dark():
    css = (Path(report.__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")
    for variable in inline.CSS_VARIABLES.values():
        assert css.count(variable.removeprefix("var(").removesuffix(")") + ":") == 2


def test_a_method_without_embedding_training_or_genes(tmp_path, evaluation):
    report.write_report(
        tmp_path / "bare.html", evaluation, embeddings={}, training=None, gene_reports={},
        provenance={}, title="bare",
    )  # fmt: skip
    page = (tmp_path / "bare.html").read_text(encoding="utf-8")
    assert "Pretraining" not in page
    assert "#cells" not in page
    assert Page(page).open == []


def test_folder_that_is_missing_is_refused(tmp_path, evaluation):
    with pytest.raises(OutputError, match="nowhere"):
        report.write_metrics(tmp_path / "nowhere" / "metrics.json", evaluation, {})


def test_metrics_round_trip(tmp_path, evaluation):
    out = tmp_path / "metrics.json"
    extra = {
        "training": {"seconds": 12.5, "loss": np.array([1.5, np.nan])},
        "path": Path("demo/model"),
        "n": np.int64(3),
    }
    report.write_metrics(out, evaluation, extra)
    text = out.read_text(encoding="utf-8")
    read = json.loads(text, parse_constant=pytest.fail)
    assert read["training"] == {"seconds": 12.5, "loss": [1.5, None]}
    assert (read["path"], read["n"]) == ("demo/model", 3)
    for key, value in evaluation.to_dict().items():
        assert read[key] == value
    assert list(read) == sorted(read)
    assert text.startswith('{\n  "')
