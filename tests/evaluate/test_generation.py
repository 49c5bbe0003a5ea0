"""The evaluation of generated cells: who is compared with whom, limits, refusals, outputs."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scfm.cli.app import main
from scfm.errors import (
    ConfigError,
    CountsError,
    DuplicateGeneError,
    GeneCoverageError,
    InputError,
    LabelError,
    MissingFileError,
)
from scfm.evaluate.generation import GenerationConfig, evaluate_generation
from scfm.evaluate.generation_data import match_cells
from scfm.evaluate.generation_report import write_generation
from scfm.evaluate.generation_result import GENERATED, NAMES, GenerationResult
from scfm.evaluate.generation_scores import SCORES
from scfm.evaluate.results import Interval
from scfm.tokens.inputs import InputConfig
from tests.toys import toy_vocab

N_GENES = 50
SMALL = GenerationConfig(n_cells=30, n_bootstrap=20)
TYPES = ("B cell", "T cell")


def cells_of(rng, n, *, n_columns=N_GENES, swap=False):
    """Counts of two types whose genes have gamma-Poisson means, 300 molecules or so a cell."""
    means = np.random.default_rng(8).gamma(0.6, 10, (2, N_GENES))[:, :n_columns]
    types = np.repeat([0, 1], n)
    rates = means[1 - types if swap else types]
    counts = rng.poisson(rates * rng.gamma(3, 1 / 3, rates.shape))
    obs = pd.DataFrame({"cell_type": np.array(TYPES)[types]}, index=[f"c{i}" for i in range(2 * n)])
    var = pd.DataFrame(index=list(toy_vocab().symbols[:n_columns]))
    return ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)


def logged(adata):
    adata = adata.copy()
    total = np.asarray(adata.X.sum(1))
    adata.X = sp.csr_matrix(np.log1p(1e4 * adata.X.toarray() / total))
    return adata


def judged(real, made, **options):
    options = {"label_key": "cell_type", "config": SMALL, **options}
    return evaluate_generation(real, made, **options)


@pytest.fixture(scope="module")
def real():
    return cells_of(np.random.default_rng(1), 80)


@pytest.fixture(scope="module")
def found(real):
    """Generated cells of the very distribution of the real ones."""
    return judged(real, logged(cells_of(np.random.default_rng(2), 40)))


def test_cells_of_the_same_distribution_are_as_good_as_real_ones(found):
    ours, ceiling = found.scores[GENERATED], found.scores["real"]
    assert set(found.scores) == set(NAMES)
    for method in found.scores.values():
        for name in SCORES:
            assert method[name].low <= method[name].value <= method[name].high
    gap = found.versus["real"]["mmd2"]
    assert gap.low <= 0 <= gap.high
    assert ours["auroc"].value == pytest.approx(0.5, abs=0.15)
    assert ours["mean_r"].value > 0.95
    assert ours["margin"].value > 0.1
    assert ceiling["mmd2"].value == pytest.approx(0, abs=0.02)
    assert found.n_own_first == 2
    assert found.data["cells_per_type"] == dict.fromkeys(TYPES, 30)


def test_cells_of_the_other_type_are_found_out(real):
    wrong = judged(real, cells_of(np.random.default_rng(2), 40, swap=True))
    assert wrong.n_own_first == 0
    assert wrong.scores[GENERATED]["margin"].high < 0
    assert wrong.scores[GENERATED]["auroc"].value > 0.95
    assert wrong.verdict.startswith("The best baseline, ")
    assert "wins" in wrong.verdict


def test_depth_and_scale_play_no_part(real):
    """Counts, their log1p(cp10k), and ten times as deep a scale are the same cells."""
    made = cells_of(np.random.default_rng(2), 40)
    shallow = made.copy()
    shallow.X = made.X * 7
    one, two, three = (judged(real, m).to_dict() for m in (made, logged(made), shallow))
    for other in (two, three):
        for method in NAMES:
            for name in SCORES:
                assert other["scores"][method][name]["value"] == pytest.approx(
                    one["scores"][method][name]["value"], abs=1e-6
                )


def matched(real, made, **options):
    settings = {"label_key": "cell_type", "generated_key": "cell_type", "fit": None}
    settings |= {"n_cells": 30, "n_fit": 100, "seed": 0, "config": InputConfig()}
    return match_cells(real, made, **settings | options)


def rows(counts):
    return {tuple(row) for row in counts.toarray().astype(int)}


def test_no_cell_plays_two_parts(real):
    """Truth and ceiling share no cell; baselines never see the truth; all are of their type."""
    found = matched(real, cells_of(np.random.default_rng(2), 40))
    for label in TYPES:
        of_type = rows(real[real.obs["cell_type"] == label].X)
        held_out, other, fit = (rows(k[label]) for k in (found.held_out, found.other, found.fit))
        assert len(held_out) == len(other) == 30
        assert not held_out & (other | fit)
        assert held_out | other | fit <= of_type
        assert other <= fit


def test_baselines_may_learn_from_a_file_of_their_own(real):
    trained_on = cells_of(np.random.default_rng(5), 50)
    made = cells_of(np.random.default_rng(2), 40)
    found = matched(real, made, fit=trained_on)
    for label in TYPES:
        assert rows(found.fit[label]) <= rows(trained_on.X)
    result = judged(real, made, fit=trained_on)
    assert result.data["baselines_learn_from"] == "a file of their own"


def test_genes_are_matched_whatever_the_order(real):
    made = cells_of(np.random.default_rng(2), 40)
    order = np.random.default_rng(0).permutation(N_GENES)
    one, two = matched(real, made), matched(real[:, order].copy(), made)
    assert one.genes == two.genes == tuple(made.var_names)
    for label in TYPES:
        np.testing.assert_array_equal(one.held_out[label].toarray(), two.held_out[label].toarray())
    fewer = matched(real, made[:, :40].copy())
    assert fewer.genes == tuple(made.var_names[:40])
    with pytest.raises(GeneCoverageError, match="measures 40"):
        matched(real[:, :20].copy(), made)


def test_empty_cells_and_small_types_are_said(real):
    made = cells_of(np.random.default_rng(2), 40)
    counts = made.X.toarray()
    counts[:25] = 0
    counts[25] = 3
    made.X = sp.csr_matrix(counts)
    few = made[np.r_[0:34, 40:80]].copy()
    found = judged(real, few)
    assert found.data["generated_cells_without_expression"] == 25
    assert found.data["left_out"] == {"B cell": "9 generated, 80 real cells, 40 to fit on"}
    assert found.types == ("T cell",)
    assert found.by_type == "One type was generated (T cell): none to confuse it with."
    assert "Not judged: B cell (9 generated" in found.table()
    assert json.loads(json.dumps(found.to_dict()))["scores"][GENERATED]["margin"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda a: a.obs.rename(columns={"cell_type": "kind"}, inplace=True), LabelError, "kind"),
        (lambda a: setattr(a, "X", a.X - 1.5), CountsError, "X holds negative values"),
        (lambda a: setattr(a, "var_names", ["A1BG"] * N_GENES), DuplicateGeneError, "'A1BG'"),
        (
            lambda a: a.obs.__setitem__("cell_type", "hepatocyte"),
            InputError,
            "generated as 'hepatocyte', and no cell",
        ),
    ],
)
def test_what_cannot_be_judged(real, change, error, message):
    made = cells_of(np.random.default_rng(2), 40)
    made.X = made.X.toarray()
    change(made)
    with pytest.raises(error, match=message):
        judged(real, made)


def test_other_refusals(real, tmp_path):
    made = cells_of(np.random.default_rng(2), 40)
    with pytest.raises(MissingFileError, match="scfm generate"):
        judged(real, tmp_path / "none.h5ad")
    with pytest.raises(LabelError, match="'tissue'"):
        judged(real, made, label_key="tissue", generated_key="cell_type")
    with pytest.raises(InputError, match="No type has 10 generated and 20 real cells"):
        judged(real, made[::8].copy())
    with pytest.raises(ConfigError, match="at least 10"):
        GenerationConfig(n_cells=3)


def test_the_sentence_says_who_wins(found):
    def verdict(value, low, high):
        versus = {m: {"mmd2": Interval(value, low, high)} for m in NAMES if m != GENERATED}
        parts = vars(found) | {"versus": versus}
        return GenerationResult(**parts).verdict

    assert verdict(-0.1, -0.2, -0.05).startswith("Generated cells win: MMD²")
    assert verdict(0.1, 0.05, 0.2).startswith("The best baseline, ")
    assert verdict(0.1, -0.05, 0.2).startswith("No clear winner")
    assert "Real cells against real cells have" in verdict(0.1, 0.05, 0.2)


def test_report_and_metrics(found, tmp_path):
    write_generation(found, tmp_path / "out", title="Toy <cells>")
    page = (tmp_path / "out" / "report.html").read_text()
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert page.index(found.verdict) < page.index("<main>")
    assert "Toy &lt;cells&gt;" in page
    assert 'src="http' not in page
    assert 'href="http' not in page
    for name in NAMES.values():
        assert name in page.lower()
    assert written["verdict"] == found.verdict
    assert written["scores"][GENERATED]["mmd2"]["value"] == found.scores[GENERATED]["mmd2"].value
    assert found.table().startswith(found.verdict)


def test_on_the_command_line(real, tmp_path, capsys):
    made = cells_of(np.random.default_rng(2), 30)
    made.obs["asked_for"] = made.obs.pop("cell_type")
    made.uns["scfm"] = {"generate": {"n_bins": 5, "seed": 3, "prompt": {"organ": "Blood"}}}
    real.write_h5ad(tmp_path / "real.h5ad")
    made.write_h5ad(tmp_path / "made.h5ad")
    arguments = ["evaluate", "generation", str(tmp_path / "real.h5ad"), "--label", "cell_type"]
    arguments += ["--generated", str(tmp_path / "made.h5ad"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as done:
        main([*arguments, "--generated-label", "asked_for", "--cells", "12", "--json"])
    said = capsys.readouterr()
    assert done.value.code == 0, said.err
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["settings"]["n_bins"] == 5
    assert written["generator"]["seed"] == 3
    assert said.out.startswith(written["verdict"])
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 2
    assert "no obs column 'cell_type'. There is: asked_for" in capsys.readouterr().err
