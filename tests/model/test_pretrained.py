"""The model folder: exact round trip, and every way it can be broken is refused in words."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from scfm.data.fingerprint import sha256
from scfm.errors import ModelError
from scfm.model.base import save_model
from scfm.model.folder import WEIGHTS
from scfm.model.pretrained import ScfmModel
from tests.toys import toy_cells, toy_model


@pytest.fixture
def folder(tmp_path):
    save_model(toy_model(), tmp_path / "model")
    return tmp_path / "model"


def test_round_trip_is_exact(folder, rng):
    model, loaded = toy_model(), ScfmModel.from_pretrained(folder)
    assert loaded.vocab == model.vocab
    for (name, ours), (_, theirs) in zip(
        model.state_dict().items(), loaded.state_dict().items(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    cells = toy_cells(rng, [9, 4])
    with torch.no_grad():
        assert torch.equal(model(cells).cell, loaded(cells).cell)


def test_second_round_trip_keeps_provenance(folder, tmp_path):
    loaded = ScfmModel.from_pretrained(folder)
    loaded.provenance["data"] = {"files": {"a.h5ad": "00"}}
    save_model(loaded, tmp_path / "again")
    again = ScfmModel.from_pretrained(tmp_path / "again")
    assert again.provenance["data"] == {"files": {"a.h5ad": "00"}}
    assert again.provenance["weights_sha256"] == sha256(tmp_path / "again" / WEIGHTS)


def test_run_folder_names_its_model(folder):
    assert ScfmModel.from_pretrained(folder.parent).config.n_tokens == 54


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "vocab.tsv", "provenance.json"])
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        ScfmModel.from_pretrained(folder)


def test_missing_folder(tmp_path):
    with pytest.raises(ModelError, match="There is no model at"):
        ScfmModel.from_pretrained(tmp_path / "nothing")


def test_truncated_weights(folder):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="has changed since it was saved"):
        ScfmModel.from_pretrained(folder)


def test_tampered_weights(folder):
    weights = load_file(folder / WEIGHTS)
    weights["decoder.value_out.bias"] += 1e-3
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="has changed since it was saved"):
        ScfmModel.from_pretrained(folder)


def test_pickle_in_place_of_weights_is_not_opened(folder):
    """Even with a matching hash, a file that is no safetensors file is refused, not unpickled."""
    torch.save({"x": torch.zeros(1)}, folder / WEIGHTS)
    restamp(folder)
    with pytest.raises(ModelError, match="cannot be loaded"):
        ScfmModel.from_pretrained(folder)


def test_missing_weight_is_named(folder):
    weights = load_file(folder / WEIGHTS)
    del weights["decoder.value_out.bias"]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    restamp(folder)
    with pytest.raises(ModelError, match=r"missing keys: decoder\.value_out\.bias"):
        ScfmModel.from_pretrained(folder)


def test_other_vocabulary_is_refused(folder, tmp_path):
    from tests.toys import toy_vocab

    toy_vocab(49).save(folder / "vocab.tsv")
    with pytest.raises(ModelError, match="not the vocabulary this model was trained with"):
        ScfmModel.from_pretrained(folder)


def test_failed_save_leaves_the_old_model(folder, monkeypatch):
    before = sha256(folder / WEIGHTS)
    other = toy_model(seed=1)
    monkeypatch.setattr(
        type(other.vocab), "save", lambda *_: (_ for _ in ()).throw(OSError(28, "no space"))
    )
    with pytest.raises(Exception, match="space"):
        save_model(other, folder)
    assert sha256(folder / WEIGHTS) == before
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def restamp(folder):
    """Make provenance.json agree with changed weights."""
    provenance = json.loads((folder / "provenance.json").read_text())
    provenance["weights_sha256"] = sha256(folder / WEIGHTS)
    (folder / "provenance.json").write_text(json.dumps(provenance))
