"""A model fine-tuned in every fold of an evaluation: on nothing but the cells learned from."""

import numpy as np
import pytest

import scfm
from scfm.errors import ConfigError, ScfmWarning
from scfm.evaluate.celltype_evaluation import evaluate_celltype
from scfm.evaluate.celltype_inputs import CelltypeData
from scfm.evaluate.celltype_protocol import ProtocolConfig
from scfm.evaluate.type_baselines import BASELINES
from scfm.evaluate.type_finetuned import FineTuned
from scfm.evaluate.type_methods import Cells, Reference
from scfm.tasks.celltype import CelltypeConfig
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tools.celltype_finetuning import finetune_celltype
from scfm.train.settings import TrainConfig
from tests.toys import toy_adata, toy_model

SHORT = TrainConfig(steps=2, validate_every=2, accelerator="cpu")


@pytest.fixture
def cells(rng):
    adata = toy_adata(rng, n_cells=80)
    adata.obs["donor"] = [f"d{i % 5}" for i in range(80)]
    return adata


def made(cells, method):
    model = toy_model()
    member, _ = open_input(cells, model.vocab, InputConfig(), model.token_config)
    config = CelltypeConfig(method=method, train=SHORT)
    return FineTuned(
        *("key", "name", "note", model, (member,), np.arange(80), config),
        groups=cells.obs["donor"].to_numpy(dtype=object),
    )


@pytest.mark.parametrize("method", ["probe", "full"])
def test_judged_cells_have_no_part(cells, method):
    """Their labels may be anything; and the model is as it was."""
    from scfm.evaluate.log_counts import log1p_cp10k

    table = Cells(log1p_cp10k(cells.X, np.arange(50)), rows=np.arange(80))
    train, test = np.arange(60), np.arange(60, 80)
    labels = cells.obs["cell_type"].astype(str).to_numpy(dtype=object)
    answers = []
    for judged in (labels[test], np.full(20, "nonsense", dtype=object)):
        tuned = made(cells, method)
        everything = Reference(table, np.concatenate([labels[train], judged]), seed=0)
        found = tuned.fit(everything.part(train)).predict(table.part(test))
        assert found.classes == ("A", "B")
        answers.append(found.probabilities)
        for name, weight in toy_model().state_dict().items():
            assert (tuned.model.state_dict()[name] == weight).all()
    np.testing.assert_array_equal(*answers)
    assert (found.label == labels[test]).mean() > 0.9


def test_it_stands_beside_the_others(cells):
    found = evaluate_celltype(
        CelltypeData(query=cells, label_key="cell_type", split_by="donor"),
        {"model": toy_model()},
        config=ProtocolConfig(n_folds=2, n_inner_folds=2, n_bootstrap=20, unknown=()),
        reading=InputConfig(),
        baselines=[m for m in BASELINES if m.key == "majority"],
        finetune=[CelltypeConfig(method="probe")],
    )
    tuned = found.evaluation.method("scfm_probe")
    assert tuned.name == "scfm, fine-tuned (probe)"
    assert tuned.kind == "model"
    assert tuned.macro_f1.value > 0.9


def test_a_model_fine_tuned_elsewhere_answers_by_its_classifier(cells, tmp_path):
    """Its own labels, in the judge's terms, and its own calibration; it learns nothing here."""
    donors = {"label_key": "cell_type", "holdout": "donor"}
    finetune_celltype(
        *(cells, toy_model(), tmp_path / "run"), **donors, config=CelltypeConfig(method="probe")
    )
    model = scfm.load(tmp_path / "run")
    cells.obs["kind"] = cells.obs["cell_type"].map({"A": "alpha", "B": "B"}).astype(str)
    found = evaluate_celltype(
        CelltypeData(
            query=cells,
            label_key="kind",
            split_by="donor",
            mapping={"AnnData": {"alpha": "alpha", "B": "B"}, "words": {"A": "alpha"}},
        ),
        {"model": model},
        config=ProtocolConfig(n_folds=2, n_inner_folds=2, n_bootstrap=20, unknown=()),
        reading=InputConfig(),
        baselines=[m for m in BASELINES if m.key == "majority"],
    )
    method = found.evaluation.method("scfm_classifier")
    assert method.name == "scfm, by its classifier"
    assert method.macro_f1.value > 0.9
    own = model.calibration["threshold"]
    assert found.calibration["scfm_classifier"].thresholds == (own, own)


def judged(cells, model, **more):
    """On two folds of donors, beside the majority class."""
    return evaluate_celltype(
        CelltypeData(query=cells, label_key="cell_type", split_by="donor"),
        {"model": model},
        config=ProtocolConfig(n_folds=2, n_inner_folds=2, n_bootstrap=20, unknown=()),
        reading=InputConfig(),
        baselines=[m for m in BASELINES if m.key == "majority"],
        **more,
    )


def test_the_callers_model_keeps_its_own_classifier(cells):
    model = toy_model()
    judged(cells, model, finetune=[CelltypeConfig(method="probe")])
    assert model.classifier is None


def test_one_way_asked_for_twice_is_refused(cells):
    twice = [CelltypeConfig(method="probe"), CelltypeConfig(method="probe", features="genes")]
    with pytest.raises(ConfigError, match="'scfm_probe'"):
        judged(cells, toy_model(), finetune=twice)


def test_a_model_judged_on_the_file_it_was_fine_tuned_on_is_named(cells, tmp_path):
    cells.write_h5ad(tmp_path / "atlas.h5ad")
    how = {"label_key": "cell_type", "holdout": "donor", "config": CelltypeConfig(method="probe")}
    finetune_celltype(tmp_path / "atlas.h5ad", toy_model(), tmp_path / "run", **how)
    model = scfm.load(tmp_path / "run")
    with pytest.warns(ScfmWarning, match=r"fine-tuned on atlas\.h5ad itself"):
        found = judged(tmp_path / "atlas.h5ad", model)
    assert "has seen its labels" in found.notes[0]
    assert found.notes[0] in found.verdict
    assert "zero-shot" not in found.evaluation.method("scfm").note
    cells[:60].copy().write_h5ad(tmp_path / "others.h5ad")
    found = judged(tmp_path / "others.h5ad", model)
    assert not any("labels" in note for note in found.notes)
