import json
import types

import pytest

from moemoe_jax.errors import UserError
from moemoe_jax.experiment import ExperimentConfig
from moemoe_jax.inference.calibration import (
    CalibrationConfig,
    Calibrator,
    Sigmoid,
    fit_calibrator,
)
from moemoe_jax.inference.config import AnswerConfig
from moemoe_jax.inference.loading import (
    Calibration,
    calibrator_for,
    load_calibration,
    save_calibration,
)
from moemoe_jax.workdir import WorkDir

FITTED = Calibrator("platt", Sigmoid(2.0))
SETTINGS = {"answer": AnswerConfig().scored_by()}


@pytest.mark.parametrize(
    ("answer", "fits"),
    [
        ({}, True),
        ({"window": 8, "products_per_batch": 2, "lengths": 1}, True),
        ({"length_penalty": 2.0, "early_stopping": "never"}, True),  # which are of beams
        ({"confidence": "min"}, False),
        ({"beams": 4, "alternatives": 3}, False),
    ],
)
def test_a_calibrator_is_of_answers_that_are_scored_in_one_way(tmp_path, answer, fits):
    loaded, said = types.SimpleNamespace(config=ExperimentConfig(), step=3), []
    save_calibration(WorkDir(tmp_path), 3, Calibration(FITTED, {}, SETTINGS))
    found = calibrator_for(loaded, WorkDir(tmp_path), AnswerConfig(**answer), said.append)
    assert found == (FITTED if fits else None)
    assert said == [
        "note: no calibrated scores: those were fitted on answers with confidence=prod beams=1; "
        "answer with these settings to have them, or fit some by launch.evaluate with yours"
    ] * (not fits)


@pytest.mark.parametrize("method", ["isotonic", "platt"])
def test_a_calibrator_of_no_answers_is_none(tmp_path, method):
    loaded, said = types.SimpleNamespace(config=ExperimentConfig(), step=3), []
    fitted = fit_calibrator([], [], config=CalibrationConfig(method))
    save_calibration(WorkDir(tmp_path), 3, Calibration(fitted, {}, SETTINGS))
    assert calibrator_for(loaded, WorkDir(tmp_path), AnswerConfig(), said.append) is None
    (told,) = said
    assert "the model gave no answer to fit them on" in told


def test_there_is_no_calibrator_for_another_checkpoint_and_nothing_to_say_of_it(tmp_path):
    loaded = types.SimpleNamespace(config=ExperimentConfig(), step=4)
    save_calibration(WorkDir(tmp_path), 3, Calibration(FITTED, {}, SETTINGS))
    assert calibrator_for(loaded, WorkDir(tmp_path), AnswerConfig(beams=2), None) is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"settings": None}, "it has no 'settings'"),
        ({"settings": {}}, "it has no 'answer'"),
        ({"thresholds": None}, "it has no 'thresholds'"),
        ({"step": None}, "it has no 'step'"),
        ({"settings": {"answer": 3}}, ""),
        ({"settings": []}, ""),
        ({"calibrator": {}}, "not a saved calibrator"),
    ],
)
def test_a_file_that_does_not_tell_all_is_refused(tmp_path, change, told):
    workdir = WorkDir(tmp_path)
    save_calibration(workdir, 3, Calibration(FITTED, {}, SETTINGS))
    document = json.loads(workdir.calibration.read_text()) | change
    document = {name: value for name, value in document.items() if value is not None}
    workdir.calibration.write_text(json.dumps(document))
    with pytest.raises(UserError) as refused:
        load_calibration(workdir, 3)
    text = str(refused.value)
    assert text.startswith(f"{workdir.calibration} is damaged ({told}")
    assert text.endswith("; delete it and evaluate again")
