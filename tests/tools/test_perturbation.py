"""The whole run on simulated counts, its refusals, and predictions for an AnnData."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scfm
from scfm.errors import ConfigError, LabelError, ModelError, OutputError, ScfmWarning
from scfm.model.base import save_model
from scfm.model.perturbation import PerturbationSizes
from scfm.model.perturbation_folder import load_perturbation
from scfm.tasks.perturbation import PerturbationConfig
from scfm.tasks.perturbation_data import read_perturbed_cells
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tools.perturbation import Protocol, finetune_perturbation
from tests.cli.test_refusals import run
from tests.toys import scfoundation_vocab, toy_model, toy_scfoundation

N_GENES = 50
CONFIG = PerturbationConfig(
    head=PerturbationSizes(d_model=8, d_cross=4),
    steps=8,
    validate_every=4,
    cells_per_profile=4,
    batch_size=8,
    accelerator="cpu",
)
PROTOCOL = Protocol(context_cells=4)
OPTIONS = {"control": "ctrl", "batch_key": "rep", "config": CONFIG, "protocol": PROTOCOL}
SYMBOLS = scfoundation_vocab(N_GENES).symbols
# two of the perturbed genes are not measured: they need no column
MEASURED, PERTURBED = SYMBOLS[:40], (*SYMBOLS[3:9], *SYMBOLS[45:47])


@pytest.fixture(scope="module")
def model():
    return toy_scfoundation(N_GENES)


@pytest.fixture
def screen(rng):
    """Counts in which perturbing a gene silences it, where it is measured."""
    labels = np.repeat(["ctrl", *PERTURBED], [60, *[20] * len(PERTURBED)])
    mean = np.tile(rng.uniform(1, 6, len(MEASURED)), (len(labels), 1))
    for gene in PERTURBED[:6]:
        mean[labels == gene, MEASURED.index(gene)] = 0.05
    counts = sp.csr_matrix(rng.poisson(mean).astype(np.float32))
    obs = pd.DataFrame(
        {"perturbation": pd.Categorical(labels), "rep": rng.choice(["a", "b"], len(labels))},
        index=[f"c{i}" for i in range(len(labels))],
    )
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=list(MEASURED)))


@pytest.fixture
def read(screen, model):
    member, _ = open_input(screen, model.vocab, InputConfig(), model.token_config)
    return read_perturbed_cells(
        member, perturbation_key="perturbation", control="ctrl", batch_key="rep"
    )


def test_expression_is_scanpys(screen, read):
    import scanpy as sc

    theirs = screen.copy()
    sc.pp.normalize_total(theirs, target_sum=1e4)
    sc.pp.log1p(theirs)
    names = [SYMBOLS[gene] for gene in read.genes]
    np.testing.assert_allclose(
        read.expression.toarray(), theirs[:, names].X.toarray(), rtol=1e-5, atol=1e-5
    )


def test_targets_and_batches_are_read(screen, read):
    assert read.names == tuple(sorted(PERTURBED))
    assert [SYMBOLS[gene] for (gene,) in read.targets] == list(read.names)
    for name in read.names:
        cells = read.cells_of(name)
        assert (screen.obs["perturbation"].to_numpy()[cells] == name).all()
    assert (read.batch == (screen.obs["rep"] == "b")).all()


def test_combinations_have_one_name_in_any_order(screen, model):
    a, b = PERTURBED[:2]
    labels = screen.obs["perturbation"].astype(str).to_numpy()
    one, other = np.flatnonzero(labels == a), np.flatnonzero(labels == b)
    labels[one[:10]], labels[one[10:]] = f"{a}+{b}", f"{b}+{a}"
    labels[other] = f"{b}+ctrl"
    screen.obs["perturbation"] = labels
    member, _ = open_input(screen, model.vocab, InputConfig(), model.token_config)
    found = read_perturbed_cells(member, perturbation_key="perturbation", control="ctrl")
    both = "+".join(sorted([a, b]))
    assert sorted(found.cells_of(both)) == one.tolist()
    assert sorted(found.cells_of(b)) == other.tolist()
    assert sorted(SYMBOLS[g] for g in found.targets_of([both])[0]) == sorted([a, b])


def test_unknown_targets_are_refused_or_left_out_by_name(screen, model):
    labels = screen.obs["perturbation"].astype(str)
    screen.obs["perturbation"] = labels.replace(PERTURBED[0], "NOTAGENE")
    member, _ = open_input(screen, model.vocab, InputConfig(), model.token_config)
    how = {"perturbation_key": "perturbation", "control": "ctrl"}
    with pytest.raises(LabelError, match=r"does not know 1 .*NOTAGENE.*--leave-out-unknown"):
        read_perturbed_cells(member, **how)
    with pytest.warns(ScfmWarning, match=r"NOTAGENE.*20 cells are left out"):
        found = read_perturbed_cells(member, **how, leave_out_unknown=True)
    assert found.left_out == {"NOTAGENE": 20}
    assert (found.perturbation == -2).sum() == 20


def test_wrong_columns_and_controls_are_refused(screen, model):
    member, _ = open_input(screen, model.vocab, InputConfig(), model.token_config)
    with pytest.raises(LabelError, match="no column 'guide'; there are: perturbation, rep"):
        read_perturbed_cells(member, perturbation_key="guide", control="ctrl")
    with pytest.raises(LabelError, match=r"perturbation = 'nt'.*--control"):
        read_perturbed_cells(member, perturbation_key="perturbation", control="nt")


def test_a_run_is_complete(screen, model, tmp_path):
    out = tmp_path / "run"
    found = finetune_perturbation(screen, model, out, **OPTIONS)
    assert {p.name for p in out.iterdir()} == {"head", "metrics.json", "scores.csv", "scores.png"}
    metrics = json.loads((out / "metrics.json").read_text())
    assert next(iter(metrics)) == "verdict"
    assert metrics["verdict"] == found.verdict
    assert set(metrics["scores"]) == {
        *("head", "head_random", "no_change", "mean_change"),
        *("linear_genes", "linear_embeddings"),
    }
    head = load_perturbation(out)
    used = head.provenance["perturbations"]
    held_out = set(pd.read_csv(out / "scores.csv")["perturbation"])
    assert held_out == set(used["held_out"])
    assert not held_out & {*used["training"], *used["validation"]}
    finetune_perturbation(screen, model, out, **OPTIONS)  # replaces its own
    again = json.loads((out / "metrics.json").read_text())
    assert again == metrics


def test_folds_judge_every_perturbation(screen, model, tmp_path):
    protocol = Protocol(context_cells=4, n_folds=2, random_weights=False, repeats=2)
    found = finetune_perturbation(
        screen, model, tmp_path / "run", **{**OPTIONS, "protocol": protocol}
    )
    own = found.table[found.table["method"] == "head"]
    assert sorted(own["perturbation"]) == sorted(PERTURBED)
    assert load_perturbation(tmp_path / "run").provenance["perturbations"]["held_out"] == []


def test_named_perturbations_are_held_out(screen, model, tmp_path):
    protocol = Protocol(context_cells=4, holdout=PERTURBED[:2], random_weights=False)
    found = finetune_perturbation(
        screen, model, tmp_path / "run", **{**OPTIONS, "protocol": protocol}
    )
    assert set(found.table["perturbation"]) == set(PERTURBED[:2])


def test_other_folders_are_not_replaced(screen, model, tmp_path):
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(OutputError, match="not an earlier result"):
        finetune_perturbation(screen, model, tmp_path, **OPTIONS)


def test_models_without_context_embeddings_are_refused(screen, tmp_path):
    with pytest.raises(ModelError, match="scfoundation"):
        finetune_perturbation(screen, toy_model(), tmp_path / "run", **OPTIONS)


@pytest.fixture(scope="module")
def head(model, tmp_path_factory):
    rng = np.random.default_rng(0)
    out = tmp_path_factory.mktemp("heads") / "run"
    finetune_perturbation(screen.__wrapped__(rng), model, out, **OPTIONS)
    made = load_perturbation(out)
    made.last_bias.data.fill_(0.1)
    made.last_weight.data.fill_(0.02)
    return made


def test_perturb_is_the_head_on_the_mean_cell(screen, head):
    import scanpy as sc

    controls = screen[screen.obs["perturbation"] == "ctrl"].copy()
    found = scfm.tl.perturb(controls, head, perturbations=[SYMBOLS[46], f"{SYMBOLS[3]}+A2M"])
    assert found.shape == (2, len(head.genes))
    sc.pp.normalize_total(controls, target_sum=1e4)
    sc.pp.log1p(controls)
    mean = controls[:, list(found.var_names)].X.toarray().mean(0)
    np.testing.assert_allclose(found.X - found.layers["change"], [mean, mean], rtol=1e-4, atol=1e-4)
    assert found.var["measured"].all()
    assert np.abs(found.layers["change"]).min() > 0


def test_perturb_does_not_depend_on_the_order_of_columns(screen, head, rng):
    how = {"perturbations": [SYMBOLS[4]]}
    found = scfm.tl.perturb(screen, head, **how)
    other = scfm.tl.perturb(screen[:, rng.permutation(screen.n_vars)].copy(), head, **how)
    np.testing.assert_allclose(found.X, other.X, rtol=1e-5, atol=1e-5)


def test_genes_not_measured_come_from_the_heads_control_cell(screen, head):
    found = scfm.tl.perturb(screen[:, 10:].copy(), head, perturbations=[SYMBOLS[4]])
    assert (~found.var["measured"]).sum() == 10
    start = (found.X - found.layers["change"])[0, :10]
    np.testing.assert_allclose(start, head.control_mean.numpy()[:10], rtol=1e-4, atol=1e-5)


def test_perturb_refuses_unknown_genes_by_name(screen, head):
    with pytest.raises(LabelError, match="does not know NOTAGENE"):
        scfm.tl.perturb(screen, head, perturbations=["NOTAGENE"])
    with pytest.raises(ConfigError, match="perturbations are genes"):
        scfm.tl.perturb(screen, head, perturbations=[])


def test_the_command_from_end_to_end(capsys, screen, model, tmp_path):
    screen.write_h5ad(tmp_path / "screen.h5ad")
    save_model(model, tmp_path / "model")
    command = (
        *("finetune", "perturbation", tmp_path / "screen.h5ad", "--model", tmp_path / "model"),
        *("--control", "ctrl", "--batch-key", "rep", "--out", tmp_path / "run", "--steps", 10),
        *("--context-cells", 2, "--cells-per-profile", 4, "--device", "cpu"),
    )
    code, stdout, err = run(capsys, *command, "--no-random-weights", "--json")
    assert code == 0, err
    found = json.loads(stdout.splitlines()[-1])
    assert found["verdict"] in err
    assert "linear_embeddings" in found["scores"]
    assert found["data"]["name"] == "screen.h5ad"
    code, _, err = run(capsys, *command, "--holdout", "NOPE")
    assert code == 2
    assert "--holdout names NOPE" in err
    code, _, err = run(capsys, *command, "--loss", "mae")
    assert code == 2
    assert "objective.loss" in err
