"""No judged cell has a part in what is learned or calibrated; left-out labels are left out."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import scipy.sparse as sp

from scfm.errors import ConfigError
from scfm.evaluate.celltype_protocol import ProtocolConfig, TypingData, on_classes, run_methods
from scfm.evaluate.celltype_scoring import reliability, score_runs
from scfm.evaluate.splits import hold_out_cells, hold_out_groups
from scfm.evaluate.type_baselines import BASELINES, with_doubt
from scfm.evaluate.type_methods import Cells, Reference
from scfm.tasks.probability_calibration import ProbabilityCalibration
from scfm.tasks.type_probabilities import TypeProbabilities

CONFIG = ProtocolConfig(n_folds=4, n_inner_folds=2, n_bootstrap=50)


@dataclass
class Spy:
    """Learns nothing and writes down whom it saw; a cell's number is its only gene's value."""

    seen: list = field(default_factory=list)
    key: str = "spy"
    name: str = "Spy"
    kind: str = "model"
    note: str = ""
    own_calibration: ProbabilityCalibration | None = None

    def fit(self, reference: Reference):
        spy, learned = self, set(reference.cells.log_counts.toarray()[:, 0].tolist())
        labels = sorted(set(reference.labels.tolist()))

        class Learned:
            def predict(self, cells: Cells) -> TypeProbabilities:
                asked = set(cells.log_counts.toarray()[:, 0].tolist())
                spy.seen.append((learned, asked, labels))
                even = np.full((len(cells), len(labels)), 1 / len(labels))
                return TypeProbabilities(tuple(labels), even, np.zeros(len(cells), dtype=bool))

        return Learned()


@pytest.fixture
def data(rng):
    labels = np.tile(np.array(["A", "B", "C"], dtype=object), 40)
    donors = np.repeat(np.array([f"d{i}" for i in range(8)], dtype=object), 15)
    numbers = sp.csr_matrix(np.arange(1, 121, dtype=np.float64)[:, None])
    return TypingData(Cells(numbers), labels, donors)


def test_who_is_asked_was_never_learned_from_nor_any_cell_of_its_donor(data):
    spy = Spy()
    plan = hold_out_groups(data.groups, data.labels, n_folds=4, seed=0, by="donor")
    runs = run_methods(data, plan, [spy], CONFIG)
    donor_of = {float(i + 1): donor for i, donor in enumerate(data.groups)}
    assert len(spy.seen) == 4 * (1 + 2 + 3)  # a fold: itself, two for calibration, three left out
    for learned, asked, _ in spy.seen:
        assert not {donor_of[i] for i in learned} & {donor_of[i] for i in asked}
    for number, fold in enumerate(plan.folds):
        judged = set((fold.test + 1.0).tolist())
        for learned, asked, _ in spy.seen[6 * number : 6 * number + 6]:
            assert not learned & judged
            assert asked == judged or not asked & judged
    assert sorted(len(labels) for _, _, labels in spy.seen[3:6]) == [2, 2, 2]
    assert len(runs[0].probabilities.label) == len(plan.judged)


def test_a_method_that_learned_elsewhere_is_asked_once_a_fold(data):
    spy = Spy(own_calibration=ProbabilityCalibration(temperature=1.0, threshold=0.9))
    plan = hold_out_cells(data.labels, n_folds=4, seed=0)
    runs = run_methods(data, plan, [spy], CONFIG)
    assert len(spy.seen) == 4
    assert runs[0].novelty == {}
    assert not runs[0].is_named.any()  # 1/3 is less than 0.9


def test_answers_of_folds_that_knew_other_labels_are_put_side_by_side():
    one = TypeProbabilities(("A", "C"), np.array([[0.25, 0.75]]), np.zeros(1, bool))
    two = TypeProbabilities(("A", "B"), np.array([[0.5, 0.5]]), np.ones(1, bool))
    found = on_classes([one, two])
    assert found.classes == ("A", "B", "C")
    np.testing.assert_array_equal(found.probabilities, [[0.25, 0, 0.75], [0.5, 0.5, 0]])
    assert found.is_outlier.tolist() == [False, True]


def test_a_label_that_is_not_there_cannot_be_left_out(data):
    plan = hold_out_cells(data.labels, n_folds=4, seed=0)
    with pytest.raises(ConfigError, match=r"'Z' cannot be left out.*A, B, C"):
        run_methods(data, plan, [Spy()], ProtocolConfig(unknown=("Z",)))


@pytest.fixture
def learnable(rng):
    """Three types by 60 genes, donors of a slightly different mean."""
    labels = np.tile(np.array(["A", "B", "C"], dtype=object), 60)
    donors = np.repeat(np.array([f"d{i}" for i in range(6)], dtype=object), 30)
    mean = rng.gamma(0.7, 2, size=(3, 60))
    counts = rng.poisson(mean[np.tile([0, 1, 2], 60)])
    return TypingData(Cells(sp.csr_matrix(np.log1p(counts))), labels, donors)


def test_scores_of_methods_that_can_learn(learnable):
    plan = hold_out_groups(learnable.groups, learnable.labels, n_folds=3, seed=0, by="donor")
    methods = [m for m in BASELINES if m.key in ("majority", "pca_logistic", "raw_logistic")]
    model = Spy()
    runs = run_methods(learnable, plan, [*methods, model], CONFIG)
    truth = learnable.labels[plan.judged]
    result = score_runs(
        *(runs, truth, learnable.groups[plan.judged], plan, CONFIG),
        *(),
        reference={"name": "toy"},
        query={"name": "toy"},
        over="donor",
    )
    assert result.evaluation.methods[0].key == "spy"  # the judged model comes first
    by_key = {method.key: method for method in result.evaluation.methods}
    assert by_key["pca_logistic"].macro_f1.value > 0.95
    assert by_key["majority"].accuracy.value == pytest.approx(1 / 3)
    assert result.calibration["raw_logistic"].error.value < 0.1
    assert result.evaluation.resampled == "donor"
    assert "wins" in result.verdict
    assert result.verdict.startswith("The strongest baseline")
    assert result.mean_unknown("majority") == pytest.approx(0.5, abs=0.05)
    assert set(result.unknown["pca_logistic"]) == {"A", "B", "C"}
    found = result.to_dict()
    assert found["bootstrap"]["over"] == "donor"
    assert len(found["macro_f1_per_fold"]["pca_logistic"]) == 3


def test_the_order_of_cells_changes_no_answer(learnable, rng):
    """A cell's result is its own: the folds' donors and the methods see the same sets."""
    order = rng.permutation(180)
    moved = TypingData(
        learnable.cells.part(order), learnable.labels[order], learnable.groups[order]
    )
    methods = [m for m in BASELINES if m.key in ("pca_centred_knn", "pca_logistic")]
    config = ProtocolConfig(n_folds=3, unknown=(), n_bootstrap=5)
    found = {}
    for name, data in (("one", learnable), ("two", moved)):
        plan = hold_out_groups(data.groups, data.labels, n_folds=3, seed=0, by="donor")
        answers = np.empty((2, 180))
        for run, row in zip(run_methods(data, plan, methods, config), answers, strict=True):
            row[plan.judged] = run.probabilities.probabilities[:, 0]
        found[name] = answers
    np.testing.assert_allclose(found["two"], found["one"][:, order], atol=2e-3)


def test_votes_of_one_mind_are_no_certainty():
    votes = with_doubt(np.array([[1.0, 0.0], [0.6, 0.4]]), 4)
    np.testing.assert_allclose(votes, [[0.9, 0.1], [0.58, 0.42]])


def test_reliability_bins_hold_all_cells():
    sure = np.array([0.05, 0.95, 0.96, 0.5])
    bins = reliability(np.array([False, True, False, True]), sure)
    assert [b.n_cells for b in bins] == [1, 1, 2]
    assert (bins[-1].confidence, bins[-1].accuracy) == (pytest.approx(0.955), 0.5)


def test_an_evaluation_without_a_model_is_refused(learnable):
    plan = hold_out_cells(learnable.labels, n_folds=2, seed=0)
    config = ProtocolConfig(n_folds=2, unknown=(), n_bootstrap=5)
    runs = run_methods(learnable, plan, BASELINES[:1], config)
    with pytest.raises(ConfigError, match="No model"):
        score_runs(
            *(runs, learnable.labels[plan.judged], None, plan, config), reference={}, query={}
        )


@pytest.mark.parametrize(
    "wrong", [{"n_folds": 1}, {"n_inner_folds": 1}, {"n_bootstrap": 0}, {"seeds": (1, 1)}]
)
def test_impossible_settings(wrong):
    with pytest.raises(ConfigError):
        ProtocolConfig(**wrong)
