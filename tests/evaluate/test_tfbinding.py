"""TF binding judged: baselines in closed form, quadrants, calibration, the page."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from scfm.data.region_examples import open_regions
from scfm.data.region_sequences import SequenceRegions
from scfm.data.region_split import RegionSplit
from scfm.errors import LabelError
from scfm.evaluate.ranking import ranking
from scfm.evaluate.tfbinding import BindingEvaluationConfig, JudgedCells, evaluate_tfbinding
from scfm.evaluate.tfbinding_baselines import by_accessibility, by_other_cells, by_prevalence, look
from scfm.evaluate.tfbinding_pairs import judged
from scfm.evaluate.tfbinding_report import write_tfbinding
from scfm.model.dna import BindingModel
from scfm.model.dna_config import BindingConfig
from scfm.tasks.tf_calibration import BindingCalibration
from tests.toys_regions import GroupedRegions, planted_codes

CHROMS = tuple(f"chr{i}" for i in range(1, 7))
SPLIT = RegionSplit(
    training_chroms=CHROMS[:2], validation_chroms=CHROMS[2:3], test_chroms=CHROMS[3:]
)
LENGTH = 60


def windows(rng, n=600, tasks=("AP1:A", "AP1:B", "SP1:A")) -> SequenceRegions:
    """AP1 in two cell types that mostly agree, SP1 in one."""
    codes, bound = planted_codes(rng, n, LENGTH)
    flipped = bound[:, 0] ^ (rng.random(n) < 0.1)
    labels = np.stack([bound[:, 0], flipped, bound[:, 1]], axis=1).astype(np.int8)
    labels[rng.random(labels.shape) < 0.1] = -1
    start = np.arange(n, dtype=np.int64) * 2 * LENGTH
    chrom = np.array([CHROMS[i * len(CHROMS) // n] for i in range(n)])
    return SequenceRegions(
        name="toy",
        tasks=tasks,
        chrom=chrom,
        start=start,
        end=start + LENGTH,
        codes=codes,
        label_table=labels,
        source_row=np.arange(n),
    )


@dataclass(frozen=True)
class SixChromosomes(GroupedRegions):
    """The toy's groups on the chromosomes of these tests."""

    chrom = property(lambda self: np.repeat(CHROMS, -(-self.n_regions // 6))[: self.n_regions])


def tiny(tasks, **more):
    torch.manual_seed(0)
    config = BindingConfig(
        length=LENGTH,
        first_filters=8,
        track_filters=4,
        d_model=8,
        n_blocks=1,
        d_hidden=8,
        **{"n_tracks": 0, **more},
    )
    return BindingModel(config, tasks).eval()


def test_scores_are_scikit_learns_on_each_side(rng):
    data = windows(rng)
    model = tiny(data.tasks)
    config = BindingEvaluationConfig(n_bootstrap=50)
    found, _ = evaluate_tfbinding(data, model, SPLIT, config=config)
    assert [q.name for q in found.quadrants] == [
        "seen cells, held-out chromosomes",
        "seen cells, seen chromosomes",
    ]
    assert found.headline is found.quadrants[0]
    test = np.isin(data.chrom, SPLIT.test_chroms)
    others = found.headline.method("other_cells")
    wanted = []
    for own, other in ((0, 1), (1, 0)):
        share = data.label_table[:, other].astype(float)
        share[share < 0] = share[share >= 0].mean()
        known = test & (data.label_table[:, own] >= 0)
        truth = data.label_table[known, own]
        wanted.append(
            (average_precision_score(truth, share[known]), roc_auc_score(truth, share[known]))
        )
    assert others.n_pairs == 2  # SP1 has no other cell
    assert others.scores["aupr"].value == pytest.approx(np.mean(wanted, 0)[0], rel=1e-6)
    assert others.scores["auroc"].value == pytest.approx(np.mean(wanted, 0)[1], rel=1e-6)
    prevalence = found.headline.method("prevalence")
    assert prevalence.scores["enrichment"].value == pytest.approx(1)
    assert prevalence.scores["auroc"].value == 0.5


def test_differences_are_over_shared_pairs_and_the_same_resamples(rng):
    data = windows(rng)
    found, _ = evaluate_tfbinding(
        data, tiny(data.tasks), SPLIT, config=BindingEvaluationConfig(n_bootstrap=100)
    )
    here = found.headline
    per_pair = here.per_pair
    shared = [name for name in per_pair if np.isfinite(per_pair[name]["other_cells"])]
    assert here.n_shared["other_cells"] == len(shared) == 2
    gap = np.mean([per_pair[n]["scfm"] - per_pair[n]["other_cells"] for n in shared])
    assert here.versus["other_cells"].value == pytest.approx(gap)
    assert here.versus["other_cells"].low <= gap <= here.versus["other_cells"].high
    # random weights against labels of a cell that agrees in 9 of 10 windows
    assert found.verdict.startswith("The strongest baseline, Other cells' ChIP, beats scfm")
    both = here.method("scfm_other_cells")
    assert both.scores["aupr"].value > 0.75
    assert "3 groups of 'chromosome'" in found.resampled
    assert "too few" in found.resampled


def test_one_test_chromosome_has_no_interval(rng):
    split = replace(SPLIT, test_chroms=("chr6",), training_chroms=CHROMS[:2] + CHROMS[3:5])
    data = windows(rng)
    found, _ = evaluate_tfbinding(data, tiny(data.tasks), split)
    aupr = found.model.scores["aupr"]
    assert aupr.low == aupr.value == aupr.high
    assert "one chromosome" in found.resampled


def test_groups_quadrants_and_accessibility(rng):
    """A TF is bound where its motif is and the window open: half of what accessibility says."""
    data = SixChromosomes.drawn(rng)
    split = replace(SPLIT, held_out_groups=("B",))
    model = tiny(data.tasks, n_tracks=1)
    config = BindingEvaluationConfig(n_bootstrap=20)
    found, _ = evaluate_tfbinding(data, model, split, config=config)
    assert [q.name for q in found.quadrants] == [
        "held-out cells, held-out chromosomes",
        "seen cells, held-out chromosomes",
        "held-out cells, seen chromosomes",
        "seen cells, seen chromosomes",
    ]
    pairs = judged(data, split, model.tasks, max_regions=10**6, seed=0)
    assert {(p.tf, p.cell, p.is_held_out) for p in pairs.pairs} == {
        ("AP1", "T", False),
        ("SP1", "T", False),
        ("AP1", "B", True),
        ("SP1", "B", True),
    }
    score = by_accessibility(pairs, look(data, pairs)).score
    for column, pair in enumerate(pairs.pairs):
        # the toy's signal averages to 1 where open
        np.testing.assert_allclose(
            score[:, column], data.is_open[pairs.region, pair.group], atol=1e-5
        )
    assert found.headline.method("accessibility").scores["aupr"].value > 0.4
    assert found.headline.method("accessibility").scores["auroc"].value > 0.7


def test_networks_say_nothing_of_tfs_they_were_not_taught(rng):
    """SP1 has labels in the held-out group alone."""

    class Untaught(SixChromosomes):
        def labels(self, region, group):
            found = super().labels(region, group)
            found[np.asarray(group) == 0, 1] = -1
            return found

    data = Untaught.drawn(rng)
    split = replace(SPLIT, held_out_groups=("B",))
    config = BindingEvaluationConfig(n_bootstrap=5)
    found, _ = evaluate_tfbinding(data, tiny(data.tasks, n_tracks=1), split, config=config)
    assert found.headline.method("accessibility").n_pairs == 2
    assert found.model.n_pairs == 1
    assert found.headline.n_shared["accessibility"] == 1
    assert any("labels of SP1: networks say nothing" in note for note in found.notes)


def test_a_group_is_not_judged_by_its_own_labels(rng):
    """Two groups with the same labels are one cell type: nothing is left to average."""
    data = SixChromosomes.drawn(rng)
    data.is_open[:, 1] = data.is_open[:, 0]
    found = judged(data, SPLIT, data.tasks, max_regions=10**6, seed=0)
    assert not by_other_cells(data, found).is_there.any()


def test_other_cells_on_the_real_windows(shared_data):
    """99 tasks of hg19 windows with two other cell types at least: the reference's numbers."""
    if shared_data is None:
        return
    data = open_regions(shared_data / "tf" / "windows_hg19_100bp_labels.npz")
    split = RegionSplit(
        training_chroms=("chr3",),
        validation_chroms=("chr11",),
        test_chroms=("chr2", "chr9", "chr20"),
    )
    found = judged(data, split, data.tasks, max_regions=10**6, seed=0)
    score = by_other_cells(data, found, fewest=2)
    rows = found.rows("held-out")
    assert rows.sum() == 9_792
    assert score.is_there.sum() == 99
    scores = []
    for column in np.flatnonzero(score.is_there):
        truth = found.labels[rows, column] == 1
        place = (score.score[rows, column].astype(float), np.zeros(rows.sum(), dtype=np.int64))
        of_task = ranking(truth, *place, np.ones((1, 1)))
        scores.append((of_task.aupr[0], of_task.auroc[0]))
    np.testing.assert_allclose(np.mean(scores, axis=0), (0.3923, 0.7918), atol=1e-4)


def test_prevalence_is_that_of_training_chromosomes(rng):
    data = windows(rng)
    found = judged(data, SPLIT, data.tasks, max_regions=10**6, seed=0)
    rows = np.isin(data.chrom, SPLIT.training_chroms)
    labels = data.label_table[rows, 0]
    wanted = labels[labels >= 0].mean()
    np.testing.assert_allclose(by_prevalence(found).score[:, 0], wanted, rtol=1e-6)


def test_no_more_regions_than_asked(rng):
    found = judged(windows(rng), SPLIT, ("SP1:A",), max_regions=40, seed=0)
    assert np.bincount(found.part).tolist() == [40, 40, 40]
    assert (np.diff(found.region) > 0).all()


def test_what_cannot_be_judged_is_refused(rng):
    data = windows(rng)
    with pytest.raises(LabelError, match="None of the model's 1 TFs"):
        evaluate_tfbinding(data, tiny(("CTCF:A",)), SPLIT)
    with pytest.raises(LabelError, match="test chromosome"):
        evaluate_tfbinding(data, tiny(data.tasks), replace(SPLIT, test_chroms=("chrX",)))


def test_the_page_and_its_numbers(rng, tmp_path):
    data = windows(rng)
    types = np.repeat(["B", "T"], 20)
    values = np.stack([types == "B", rng.random(40)], axis=1).astype(float)
    cells = JudgedCells(types, {"activity": ("TF activity", "made up", values)})
    meme = tmp_path / "m.meme"
    rows = "\n".join(" ".join("0.97" if b == x else "0.01" for b in "ACGT") for x in "GGGCGG")
    meme.write_text(f"MEME version 4\n\nMOTIF X SP1\nletter-probability matrix: w= 6\n{rows}\n")
    model = tiny(data.tasks)
    config = BindingEvaluationConfig(n_bootstrap=20)
    found, calibration = evaluate_tfbinding(
        *(data, model, SPLIT),
        others={"scfan": tiny(data.tasks, family="scfan")},
        motifs=meme,
        cells=cells,
        config=config,
    )
    here = found.headline
    assert here.method("motif").scores["aupr"].value > 0.9  # the motif is what binds
    assert here.method("motif").n_pairs == 1
    assert here.method("scfan").n_pairs == 3
    assert found.cells[0].ari.value == pytest.approx(1)
    write_tfbinding(found, calibration, tmp_path / "out", title="Toy <b>", provenance={"a": 1})
    text = (tmp_path / "out" / "report.html").read_text()
    body = text[text.index("<body>") :]
    assert body.index(found.verdict.replace("'", "&#39;")) < body.index("Toy &lt;b&gt;")
    assert "http" not in text.replace("http://www.w3.org", "")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["verdict"] == found.verdict
    assert len(metrics["quadrants"]) == 2
    assert (tmp_path / "out" / "aupr.png").stat().st_size > 1000
    again = BindingCalibration.load(tmp_path / "out" / "calibration.json", model.tasks)
    assert again == calibration
    assert found.calibration is not None
    assert sum(n for _, _, n in found.calibration.bins) == (data.label_table[300:] >= 0).sum()
