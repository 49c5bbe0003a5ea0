import json

import numpy as np
import pytest
from scipy.special import expit

from scfm.errors import ModelError
from scfm.metrics import expected_calibration_error
from scfm.tasks.tf_calibration import BindingCalibration, fit_binding_calibration

TASKS = ("A", "B", "C")


def drawn(rng, n=20_000):
    """Labels drawn from true logits; the model says them too large, too small, and backwards."""
    true = rng.normal(-1, 2, (n, 3))
    labels = (rng.random((n, 3)) < expit(true)).astype(np.int8)
    labels[rng.random((n, 3)) < 0.1] = -1
    said = np.stack([3 * true[:, 0] + 1, 0.5 * true[:, 1] - 2, -true[:, 2]], axis=1)
    return true, labels, said.astype(np.float32)


def test_the_scale_and_offset_that_labels_were_drawn_by(rng):
    true, labels, said = drawn(rng)
    found = fit_binding_calibration(said, labels, TASKS, source="here")
    applied = found.apply(said)
    for task in (0, 1):
        np.testing.assert_allclose(applied[:, task], true[:, task], atol=0.25)
        known = labels[:, task] >= 0
        truth = labels[known, task] == 1
        before, after = (
            expected_calibration_error(truth, expit(x[known, task]).astype(np.float64))
            for x in (said, applied)
        )
        assert after < 0.02 < before
    assert (found.scale[2], found.offset[2]) == (1, 0)  # backwards: left as it is
    assert found.facts == {"source": "here", "n_examples": 20_000, "n_tasks_fitted": 2}


def test_too_few_labels_keep_their_logits(rng):
    _, labels, said = drawn(rng, 200)
    labels[:, 0] = 0
    labels[:5, 1] = 1
    labels[5:, 1] = 0
    found = fit_binding_calibration(said, labels, TASKS)
    assert found.scale[:2] == (1, 1)
    np.testing.assert_array_equal(found.apply(said)[:, :2], said[:, :2])


def test_files(rng, tmp_path):
    _, labels, said = drawn(rng, 500)
    made = fit_binding_calibration(said, labels, TASKS)
    path = tmp_path / "calibration.json"
    made.save(path)
    assert BindingCalibration.load(path, TASKS) == made
    assert BindingCalibration.load(path, TASKS, weights_sha256="f" * 64) == made
    with pytest.raises(ModelError, match="another model"):
        BindingCalibration.load(path, ("A", "B", "D"))
    kept = json.loads(path.read_text()) | {"weights_sha256": "0" * 64}
    path.write_text(json.dumps(kept))
    with pytest.raises(ModelError, match="another model"):
        BindingCalibration.load(path, TASKS, weights_sha256="f" * 64)
    for text in ("{", "{}", '{"tasks": ["A"], "scale": [1, 2], "offset": [0]}'):
        path.write_text(text)
        with pytest.raises(ModelError, match="no calibration"):
            BindingCalibration.load(path, TASKS)
    with pytest.raises(ModelError, match="no calibration"):
        BindingCalibration.load(tmp_path / "none.json", TASKS)
