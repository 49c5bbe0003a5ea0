"""scfm evaluate celltype from end to end on real cells, and its report in a real browser."""

import json
import re
from html.parser import HTMLParser

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pytest

import scfm
from scfm.errors import ConfigError, LabelError, ScfmWarning
from scfm.evaluate.celltype_evaluation import evaluate_celltype
from scfm.evaluate.celltype_inputs import CelltypeData
from scfm.evaluate.celltype_protocol import ProtocolConfig
from scfm.evaluate.celltype_report import write_celltype
from scfm.evaluate.type_baselines import BASELINES
from scfm.model.base import save_model
from scfm.tokens.inputs import InputConfig
from tests.browser import CHROMIUM, look_at
from tests.cli.test_refusals import assert_refused, run
from tests.toys import toy_model, toy_vocab

FAST = [m for m in BASELINES if m.key in ("majority", "pca_centred_knn", "raw_logistic")]
ANY_COVERAGE = InputConfig(minimum_coverage=0)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "typist"
    save_model(toy_model(toy_vocab(1_500)), folder)
    return folder


@pytest.fixture(scope="module")
def files(demo_cells, tmp_path_factory):
    """Some real cells of both sets on their 1,000 most common genes; the donors are made up."""
    folder = tmp_path_factory.mktemp("cells")
    paths = {}
    for name, step in (("zheng_facs_pbmc", 20), ("pbmc3k", 14)):
        adata = ad.read_h5ad(demo_cells / f"{name}.h5ad")[::step].copy()
        common = np.argsort(-adata.X.getnnz(0), kind="stable")[:1_000]
        adata = adata[:, np.sort(common)].copy()
        adata.obs["donor"] = [f"donor{i % 6}" for i in range(adata.n_obs)]
        paths[name] = folder / f"{name}.h5ad"
        adata.write_h5ad(paths[name])
    return paths


@pytest.fixture(scope="module")
def evaluated(files, model_folder, demo_cells, tmp_path_factory):
    """The command as a user types it: sorted PBMC label PBMC3k."""
    import contextlib
    import io

    from scfm.cli.app import main

    out = tmp_path_factory.mktemp("evaluation") / "out"
    command = [
        *("evaluate", "celltype", files["pbmc3k"], "--label", "cell_type"),
        *("--reference", files["zheng_facs_pbmc"], "--reference-label", "celltype"),
        *("--mapping", demo_cells / "pbmc_label_mapping.csv", "--model", model_folder),
        *("--unknown", "B", "--bootstrap", 60, "--minimum-coverage", 0, "--out", out, "--json"),
    ]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as stopped:
        main(list(map(str, command)))
    assert stopped.value.code in (None, 0)
    return out, printed.getvalue()


def test_the_command_writes_a_verdict_and_everything_behind_it(evaluated):
    out, printed = evaluated
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("report.html", "metrics.json", "scores.png", "reliability.png", "per_class.png")
    }
    found = json.loads((out / "metrics.json").read_text())
    assert json.loads(printed.splitlines()[-1])["verdict"] == found["verdict"]
    assert printed.startswith(found["verdict"])
    keys = {method["key"] for method in found["methods"]}
    assert keys == {"scfm", "scfm_untrained", *(method.key for method in BASELINES)}
    assert found["labels"] == ["B", "CD4 T", "CD8 T", "Monocyte", "NK"]
    assert list(found["unknown_auroc"]["scfm"]) == ["B"]
    assert found["query"]["left_out"].keys() == {"DC", "NA", "Platelet"}
    assert 0 <= found["calibration"]["pca_logistic"]["error"]["value"] < 0.3
    assert found["contamination"]["scfm: pbmc3k.h5ad"]["unknowable"]
    best = max(m["macro_f1"]["value"] for m in found["methods"] if m["kind"] == "baseline")
    assert f"{best:.3f}" in found["verdict"]


def test_the_first_sentence_of_the_report_is_the_verdict(evaluated):
    out, _ = evaluated
    page = (out / "report.html").read_text()
    verdict = json.loads((out / "metrics.json").read_text())["verdict"]
    first = re.search(r"<h1>(.*?)</h1>", page, re.DOTALL)
    assert first is not None
    assert first[1].replace("&#39;", "'") == verdict
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', page)
    assert "<script" not in page


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: chromium)")
@pytest.mark.parametrize("width", [390, 1_200])
def test_a_browser_shows_every_figure_and_asks_nobody(evaluated, tmp_path, width):
    seen = look_at(evaluated[0] / "report.html", tmp_path, width=width)
    assert seen.requests == ()
    assert seen.complaints == ()
    drawings = seen.page["drawings"]
    assert len(drawings) == 3 + len(BASELINES) + 2  # scores, differences, confusion; reliability
    for drawing in drawings:
        assert drawing["visible"]
        assert drawing["loaded"]
        assert drawing["ink"]
        assert min(drawing["box"]) > 100
    assert seen.page["needed"] <= width
    assert seen.page["broken"] == []
    assert seen.page["h1"].startswith(("scfm", "The strongest", "No clear"))


def evaluate(files, model_folder, *, baselines=FAST[:2], **how):
    data = {"query": files["pbmc3k"], "label_key": "cell_type", **how}
    config = data.pop("config", ProtocolConfig(n_folds=2, n_bootstrap=20, unknown=()))
    return evaluate_celltype(
        CelltypeData(**data),
        {str(model_folder): toy_model(toy_vocab(1_500))},
        **{"config": config, "reading": ANY_COVERAGE, "baselines": baselines},
    )


def test_donors_are_held_out_and_drawn_whole(files, model_folder):
    config = ProtocolConfig(n_folds=3, n_bootstrap=20, unknown=(), seeds=(0, 1))
    found = evaluate(files, model_folder, baselines=FAST, split_by="donor", config=config)
    assert [len(fold["held_out"]) for fold in found.split["folds"]] == [2, 2, 2]
    assert found.evaluation.resampled == "donor"
    assert "6 groups of 'donor'" in found.resampled
    assert "too few" in found.resampled
    assert [len(values) for values in found.per_seed.values()] == [2] * 5
    first = found.evaluation.method("raw_logistic").macro_f1.value
    assert found.per_seed["raw_logistic"][0] == pytest.approx(first)

    axes = scfm.pl.reliability(found, method="raw_logistic")
    drawn = axes.collections[-1].get_offsets()
    bins = found.calibration["raw_logistic"].bins
    np.testing.assert_allclose(drawn, [(b.confidence, b.accuracy) for b in bins])
    axes = scfm.pl.per_class(found)
    first = found.evaluation.methods[0]
    f1 = [first.per_class[label].f1 for label in found.evaluation.labels]
    np.testing.assert_allclose(axes.collections[1].get_offsets()[:, 0], f1)
    with pytest.raises(ConfigError, match="No method 'nobody'"):
        scfm.pl.reliability(found, method="nobody")
    plt.close("all")


def test_a_random_split_is_called_optimistic(files, model_folder, tmp_path):
    with pytest.warns(ScfmWarning, match="optimistic about new donors"):
        found = evaluate(files, model_folder, donor_key="donor")
    assert found.evaluation.resampled == "donor"
    write_celltype(found, tmp_path, title="random")
    text = (tmp_path / "report.html").read_text()
    assert "Cells were split at random" in text
    assert found.split["is_optimistic"]


def test_hostile_labels_stay_text(files, model_folder, tmp_path):
    adata = ad.read_h5ad(files["pbmc3k"])
    adata.obs["cell_type"] = [
        '<script>alert("$x$")</script>' if label == "B" else label for label in adata.obs.cell_type
    ]
    found = evaluate({"pbmc3k": adata}, model_folder, split_by="donor")
    write_celltype(found, tmp_path, title="<b>")
    page = Tags()
    page.feed((tmp_path / "report.html").read_text())
    assert "script" not in page.seen
    assert "b" in page.seen  # our own, in the lead


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)


def test_what_does_not_go_together_is_refused(files, model_folder):
    with pytest.raises(ConfigError, match="With a reference nothing is split"):
        CelltypeData(query="q", label_key="x", reference="r", split_by="donor")
    with pytest.raises(LabelError, match=r"have none in common.*--mapping"):
        evaluate(
            files,
            model_folder,
            reference=files["zheng_facs_pbmc"],
            reference_label_key="celltype",
        )
    with pytest.raises(LabelError, match="no obs column 'site'"):
        evaluate(files, model_folder, split_by="site")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda obs: obs.assign(cell_type="one"), ("only 'one' is left", "--label")),
        (lambda obs: obs.assign(donor="d"), ("cannot be held out", "only 'd'")),
        (lambda obs: obs.assign(cell_type=np.linspace(0, 1, len(obs))), ("a measurement",)),
        (lambda obs: obs.assign(cell_type=None), ("no label is left",)),
    ],
)
def test_bad_columns_end_the_command_with_2(capsys, files, model_folder, tmp_path, change, words):
    adata = ad.read_h5ad(files["pbmc3k"])[:40].copy()
    adata.obs = change(adata.obs)
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(
        float if adata.obs["cell_type"].dtype == float else str
    )
    adata.obs["cell_type"] = adata.obs["cell_type"].replace({"None": ""})
    adata.write_h5ad(tmp_path / "bad.h5ad")
    result = run(
        capsys,
        *("evaluate", "celltype", tmp_path / "bad.h5ad", "--label", "cell_type"),
        *("--split-by", "donor", "--model", model_folder, "--out", tmp_path / "out"),
    )
    assert_refused(result, *words)
    assert not (tmp_path / "out").exists()
