"""What an evaluation takes from a model's folder and its data."""

import numpy as np
import pytest

from scfm.data.matched_peaks import matched_peaks
from scfm.data.nucleotides import encode, gc_share
from scfm.data.read import open_counts
from scfm.data.region_examples import open_regions
from scfm.errors import ConfigError, LabelError
from scfm.evaluate.motif_deviations import chromvar_deviations
from scfm.evaluate.motif_hits import read_motifs
from scfm.evaluate.tfbinding import BindingEvaluationConfig
from scfm.tools.tf_activities import peak_totals
from scfm.tools.tf_evaluation import (
    EvaluationData,
    evaluate_binding,
    judged_cells,
    judged_split,
    motif_deviations,
    trained_scfan,
)
from tests.toys_peaks import toy_binding, toy_peaks

KEPT = {
    "training_chroms": ["chr1", "chr2"],
    "validation_chroms": ["chr3"],
    "test_chroms": ["chr4"],
    "held_out_groups": ["T"],
}


@pytest.fixture
def adata(rng):
    return toy_peaks(rng)


@pytest.fixture
def examples(adata):
    return open_regions(adata, length=60, group_key="cell_type")


def test_the_split_is_the_models_own(examples):
    model = toy_binding(n_tracks=1)
    model.provenance = {"split": KEPT}
    found = judged_split(examples, model, {})
    assert found.training_chroms == ("chr1", "chr2")
    assert (found.validation_chroms, found.test_chroms) == (("chr3",), ("chr4",))
    assert found.held_out_groups == ("T",)


def test_what_is_asked_otherwise_leaves_the_rest_to_training(examples):
    model = toy_binding(n_tracks=1)
    model.provenance = {"split": KEPT | {"training_chroms": ["chr2"]}}
    found = judged_split(examples, model, {"test_chroms": ("chr1",)})
    assert found.training_chroms == ("chr2", "chr4")
    assert found.test_chroms == ("chr1",)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"test_chroms": ("chr1",)}, r"--test-chroms: the model has seen .* \(chr1\)"),
        ({"test_chroms": ("2:0-100000",)}, r"--test-chroms: the model has seen .* \(chr2\)"),
        (
            {"test_chroms": ("chr3",), "validation_chroms": ("chr4",)},
            "--test-chroms: the model has seen",
        ),
        ({"validation_chroms": ("chr1",)}, "--validation-chroms: the model has seen"),
        ({"held_out_groups": ("B",)}, "trained on B. It was not on T"),
        ({"held_out_groups": ("typo",)}, "no group of"),
    ],
)
def test_a_model_is_not_judged_on_what_it_was_trained_on(examples, asked, said):
    model = toy_binding(n_tracks=1)
    model.provenance = {"split": KEPT, "data": {"groups": ["B", "T"]}}
    with pytest.raises(ConfigError, match=said):
        judged_split(examples, model, asked)


def test_groups_whose_names_are_not_those_of_the_chip(adata):
    """As in training: chip_of says whose labels they are, or a column does."""
    adata.obs["cluster"] = adata.obs["cell_type"].map({"B": "0", "T": "1"})
    model = toy_binding(n_tracks=1)
    model.provenance = {"split": KEPT | {"held_out_groups": []}}
    scores = []
    for key, more in (
        ("cell_type", {}),
        ("cluster", {"chip_of": {"0": "B", "1": "T"}}),
        ("cluster", {"chip_key": "cell_type"}),
    ):
        found, _, _ = evaluate_binding(
            EvaluationData(path=adata, group_key=key, **more),
            model,
            config=BindingEvaluationConfig(n_bootstrap=2),
            device="cpu",
        )
        scores.append([m.scores["aupr"].value for m in found.quadrants[0].methods])
    assert scores[0] == scores[1] == scores[2]


def test_a_model_that_does_not_say_is_asked_for(examples):
    with pytest.raises(ConfigError, match="--validation-chroms, --test-chroms"):
        judged_split(examples, toy_binding(n_tracks=1), {})


def test_the_scfan_network_is_trained_on_the_spot(examples):
    model = toy_binding(n_tracks=1)
    model.provenance = {"split": KEPT}
    split = judged_split(examples, model, {})
    network = trained_scfan(examples, split, 2, 0, "cpu")
    assert network.config.family == "scfan"
    assert not network.config.both_strands
    assert network.tasks == examples.tasks


def test_groups_that_are_the_judged_types_are_said_to_be(adata):
    model = toy_binding(n_tracks=1)
    model.provenance = {"split": KEPT}
    found, _, made = evaluate_binding(
        EvaluationData(path=adata, group_key="cell_type", label_key="cell_type"),
        model,
        config=BindingEvaluationConfig(n_bootstrap=5),
        device="cpu",
    )
    assert any("activities were told them" in note for note in found.notes)
    assert made["weights sha256"] == {"scfm": "trained here"}
    assert found.data["name"] == "AnnData"


def test_no_such_column_of_types(adata, examples):
    data = EvaluationData(path=adata, label_key="kind")
    with pytest.raises(LabelError, match="'kind'"):
        judged_cells(data, toy_binding(), BindingEvaluationConfig(), examples, None)


def test_motif_deviations_are_chromvars_of_peaks_with_the_motif(adata, examples, tmp_path):
    """SP1's motif, planted in half of the windows: annotated where the letters are."""
    rows = "\n".join(" ".join("0.997" if b == x else "0.001" for b in "ACGT") for x in "GGGCGG")
    path = tmp_path / "m.meme"
    path.write_text(f"MEME version 4\n\nMOTIF X SP1\nletter-probability matrix: w= 6\n{rows}\n")
    motifs = read_motifs(path, ["AP1", "SP1"])
    source = open_counts(adata)
    found = motif_deviations(examples, source, motifs, seed=1)
    has_site = adata.var["sequence"].str.contains("GGGCGG|CCGCCC").to_numpy()
    letters = encode(adata.var["sequence"].to_numpy(dtype=str), "toy")
    background = matched_peaks(peak_totals(source), gc_share(letters), seed=1)
    annotation = has_site[:, None].astype(float)
    wanted = chromvar_deviations(lambda: [adata.X], annotation, background).z
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
