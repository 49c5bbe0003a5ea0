"""`scfm info` in words: what a model was trained on, files and stores alike."""

from scfm.model.dna import BindingModel
from scfm.model.dna_config import BindingConfig
from scfm.model.dna_folder import save_binding
from scfm.tools.info import describe, in_words


def model_of(data):
    return {
        "kind": "model",
        "family": "scfm",
        "path": "RUN",
        "architecture": {"d_model": 8, "n_layers": 1, "n_heads": 2},
        "n_parameters": 10,
        "n_genes": 5,
        "vocab_hash": "c" * 64,
        "provenance": {"weights_sha256": "d" * 64, "data": data},
    }


def test_a_model_names_its_files_and_stores():
    data = {
        "n_cells": 100,
        "n_held_out": 10,
        "files": [["a.h5ad", "a" * 64]],
        "stores": [["store", "b" * 64]],
    }
    said = in_words(model_of(data))
    assert f"90 cells of:\n  a.h5ad  sha256 {'a' * 12}\n  store  sha256 {'b' * 12}" in said


def test_a_model_of_before_there_were_stores():
    said = in_words(model_of({"n_cells": 4, "n_held_out": 1, "files": [["a.h5ad", "a" * 64]]}))
    assert said.endswith(f"3 cells of:\n  a.h5ad  sha256 {'a' * 12}")


def test_a_binding_model_and_its_run(tmp_path):
    model = BindingModel(BindingConfig(length=100), ("CTCF", "SPI1"))
    save_binding(model, tmp_path / "run" / "model")
    for place in (tmp_path / "run", tmp_path / "run" / "model"):
        found = describe(place)
        assert (found["family"], found["tasks"]) == ("scfm-binding", ["CTCF", "SPI1"])
        assert found["n_parameters"] == sum(t.numel() for t in model.state_dict().values())
        said = in_words(found)
        assert "TF binding model" in said
        assert "2 tasks: CTCF, SPI1" in said
