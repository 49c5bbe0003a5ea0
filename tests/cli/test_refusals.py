"""Bad input: exit code 2, one clear message on stderr, no traceback, nothing written or lost."""

import shutil

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from scfm.cli.app import main
from tests.toys import toy_adata


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of the command, in this process."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    code = stopped.value.code
    out, err = capsys.readouterr()
    return (code if isinstance(code, int) else 0), out, err


def assert_refused(result: tuple[int, str, str], *words: str) -> None:
    code, out, err = result
    assert code == 2, err
    assert out == ""
    assert "Traceback" not in err
    assert err.count("scfm: ") == 1, err
    for word in words:
        assert word in err, err


@pytest.fixture
def adata(rng):
    return toy_adata(rng)


def log_normalised(adata):
    adata.X = (adata.X.multiply(1e4 / adata.X.sum(1))).tocsr().log1p()


def scaled(adata):
    dense = adata.X.toarray()
    adata.X = (dense - dense.mean(0)) / (dense.std(0) + 1)


def negative(adata):
    adata.X[3, 0] = -2


def with_nan(adata):
    adata.X[3, 0] = np.nan


def non_integer(adata):
    adata.X.data[::3] += 0.4


def empty_cell(adata):
    dense = adata.X.toarray()
    dense[5] = 0
    adata.X = sp.csr_matrix(dense)


def no_cells(adata):
    adata._inplace_subset_obs(slice(0, 0))


def foreign_genes(adata):
    adata.var_names = [f"probe_{i}" for i in range(adata.n_vars)]


def mouse(adata):
    symbols = ["Sox17", "Mrpl15", "Lypla1", "Tcea1", "Rgs20", "Atp6v1h", "Oprk1", "Rb1cc1"]
    adata._inplace_subset_var(slice(0, len(symbols)))
    adata.var_names = symbols


BAD_MATRICES = [
    (log_normalised, ["log1p", 'adata.layers["counts"]', "--layer"]),
    (scaled, ["raw counts"]),
    (negative, ["negative"]),
    (with_nan, ["NaN"]),
    (non_integer, ["integer"]),
    (empty_cell, ["no counts", "filter_cells"]),
    (no_cells, ["cells"]),
    (foreign_genes, ["gene"]),
    (mouse, ["mouse", "--orthologs"]),
]


@pytest.mark.parametrize(
    ("spoil", "words"), BAD_MATRICES, ids=[spoil.__name__ for spoil, _ in BAD_MATRICES]
)
def test_matrix_that_cannot_be_used(capsys, adata, toy_model_folder, tmp_path, spoil, words):
    spoil(adata)
    adata.write_h5ad(tmp_path / "in.h5ad")
    (tmp_path / "out.h5ad").write_text("an earlier result")
    result = run(
        capsys,
        *("embed", tmp_path / "in.h5ad"),
        *("--model", toy_model_folder, "--out", tmp_path / "out.h5ad"),
    )
    assert_refused(result, *words)
    assert (tmp_path / "out.h5ad").read_text() == "an earlier result"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.h5ad", "out.h5ad"]


def test_missing_file(capsys, toy_model_folder, tmp_path):
    path = tmp_path / "no.h5ad"
    result = run(capsys, "embed", path, "--model", toy_model_folder, "--out", tmp_path / "o.h5ad")
    assert_refused(result, "no.h5ad")


def test_truncated_file(capsys, adata, toy_model_folder, tmp_path):
    path = tmp_path / "in.h5ad"
    adata.write_h5ad(path)
    path.write_bytes(path.read_bytes()[:5000])
    result = run(capsys, "embed", path, "--model", toy_model_folder, "--out", tmp_path / "o.h5ad")
    assert_refused(result, "in.h5ad", "truncated")


def test_foreign_file(capsys, toy_model_folder, tmp_path):
    path = tmp_path / "in.h5ad"
    path.write_text("cell,gene,count\n")
    result = run(capsys, "embed", path, "--model", toy_model_folder, "--out", tmp_path / "o.h5ad")
    assert_refused(result, "in.h5ad")


def test_output_folder_does_not_exist(capsys, adata, toy_model_folder, tmp_path):
    adata.write_h5ad(tmp_path / "in.h5ad")
    result = run(
        capsys,
        *("embed", tmp_path / "in.h5ad", "--model", toy_model_folder),
        *("--out", tmp_path / "nowhere" / "out.h5ad"),
    )
    assert_refused(result, "Cannot write", "nowhere")


def test_output_is_a_folder(capsys, adata, toy_model_folder, tmp_path):
    adata.write_h5ad(tmp_path / "in.h5ad")
    result = run(
        capsys, "embed", tmp_path / "in.h5ad", "--model", toy_model_folder, "--out", tmp_path
    )
    assert_refused(result, "folder")


def test_missing_model(capsys, adata, tmp_path):
    adata.write_h5ad(tmp_path / "in.h5ad")
    result = run(
        capsys,
        *("embed", tmp_path / "in.h5ad", "--model", tmp_path / "model"),
        *("--out", tmp_path / "out.h5ad"),
    )
    assert_refused(result, "There is no model at", "scfm pretrain")


@pytest.mark.parametrize("harm", ["missing", "tampered"])
def test_model_with_spoiled_weights(capsys, adata, toy_model_folder, tmp_path, harm):
    adata.write_h5ad(tmp_path / "in.h5ad")
    shutil.copytree(toy_model_folder, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    if harm == "missing":
        weights.unlink()
    else:
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    result = run(
        capsys,
        *("embed", tmp_path / "in.h5ad", "--model", tmp_path / "model"),
        *("--out", tmp_path / "out.h5ad"),
    )
    assert_refused(result, "model.safetensors", "Copy")


@pytest.mark.parametrize(
    ("label", "words"),
    [("celltype", ["no obs column 'celltype'", "cell_type"]), ("empty", ["labels none"])],
)
def test_reference_labels(capsys, adata, toy_model_folder, tmp_path, label, words):
    adata.obs["empty"] = np.nan
    adata.write_h5ad(tmp_path / "in.h5ad")
    result = run(
        capsys,
        *("annotate", tmp_path / "in.h5ad", "--reference", tmp_path / "in.h5ad"),
        *("--label", label, "--model", toy_model_folder, "--out", tmp_path / "out.h5ad"),
    )
    assert_refused(result, *words)
    assert not (tmp_path / "out.h5ad").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.learning_rate=1", ["unknown key 'optim.learning_rate'", "lr"]),
        ("optimm.lr=1", ["unknown key 'optimm'", "Did you mean 'optim'"]),
        ("optim.lr=fast", ["optim.lr", "number"]),
        ("optim.lr=-1", ["optim.lr must be positive"]),
        ("train.precision=fp8", ["train.precision"]),
        ("optim.lr", ["--set takes a.b=c"]),
        ("train.steps=[1", ["not readable as a value"]),
        ("train.devices=0", ["train.devices must be at least 1"]),
        ("model.n_heads=0", ["at least 1"]),
        ("optim.beta1=1.5", ["optim.beta1"]),
        ("seed=-1", ["seed must be"]),
        ("model.n_heads=3", ["model.d_model (64) must divide by model.n_heads (3)"]),
    ],
)
def test_settings(capsys, adata, tmp_path, override, words):
    adata.write_h5ad(tmp_path / "in.h5ad")
    result = run(
        capsys,
        *("pretrain", "--data", tmp_path / "in.h5ad", "--out", tmp_path / "run"),
        *("--set", override),
    )
    assert_refused(result, *words)
    assert not (tmp_path / "run").exists()


def test_unknown_config(capsys, tmp_path):
    result = run(capsys, "pretrain", "--config", "scfm-tyni", "--out", tmp_path / "run")
    assert_refused(result, "There is no config 'scfm-tyni'", "Did you mean 'scfm-tiny'")


def test_pretrain_without_data(capsys, tmp_path):
    assert_refused(run(capsys, "pretrain", "--out", tmp_path / "run"), "--data")


def test_resume_of_nothing(capsys, tmp_path):
    result = run(capsys, "pretrain", "--resume", "--out", tmp_path)
    assert_refused(result, "is no run folder")


def test_pretrain_into_a_file(capsys, adata, tmp_path):
    adata.write_h5ad(tmp_path / "in.h5ad")
    result = run(capsys, "pretrain", "--data", tmp_path / "in.h5ad", "--out", tmp_path / "in.h5ad")
    assert_refused(result, "Cannot write")
    assert ad.read_h5ad(tmp_path / "in.h5ad").n_obs == 40


def test_duplicate_genes_are_summed_or_refused_as_chosen(capsys, adata, tmp_path):
    adata.var_names = [adata.var_names[0], *adata.var_names[:-1]]
    adata.write_h5ad(tmp_path / "in.h5ad")
    result = run(
        capsys,
        *("pretrain", "--data", tmp_path / "in.h5ad", "--out", tmp_path / "run"),
        *("--set", "input.duplicates=refuse"),
    )
    assert_refused(result, "repeat a gene", "sum")


def test_demo_does_not_replace_a_users_folder(capsys, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    assert_refused(run(capsys, "demo", "--out", tmp_path), "not an earlier demo's")
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_debug_shows_the_traceback(capsys, tmp_path):
    code, _, err = run(capsys, "info", tmp_path / "no.h5ad", "--debug")
    assert code == 2
    assert "Traceback" in err


def test_unknown_option_is_a_usage_error(capsys):
    code, _, err = run(capsys, "embed", "--modle", "x")
    assert code == 2
    assert "Traceback" not in err
