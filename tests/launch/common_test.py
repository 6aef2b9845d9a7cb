"""Settings of a run that a flag changes, and how warnings look."""

import subprocess
import sys

import pytest

from launch.common import changed
from moemoe_jax.errors import UserError
from moemoe_jax.experiment import ExperimentConfig
from moemoe_jax.inference.loading import Loaded

LOADED = Loaded(ExperimentConfig(), None, None, (), None, 3)


def test_settings_are_changed_in_their_own_type_and_the_others_stay():
    given = ["threshold_from=val", " bound = clopper_pearson ", "bound_delta=0.1", "topk=2:30"]
    found = changed(LOADED, "evaluation", given).config
    judged = found.evaluation
    assert (judged.threshold_from, judged.bound, judged.bound_delta) == (
        "val",
        "clopper_pearson",
        0.1,
    )
    assert judged.topk == (2, 30) and judged.score == "confidence"
    assert found.answer == LOADED.config.answer
    assert changed(LOADED, "answer", ["beams=4"]).config.answer.beams == 4
    assert changed(LOADED, "evaluation", []) == LOADED


def test_a_setting_that_a_command_does_not_read_is_refused():
    with pytest.raises(UserError, match="--answer has 'window=8', which this command does not"):
        changed(LOADED, "answer", ["beams=2", "window=8"], omit=("window",))


@pytest.mark.parametrize(
    ("group", "given", "message"),
    [
        ("evaluation", "bounds=none", "evaluation.bounds does not exist; did you mean bound?"),
        ("evaluation", "bound=wilson", "'wilson': choose one of none, clopper_pearson"),
        ("evaluation", "bound", "--evaluation has 'bound'; write name=value, as --help shows"),
        ("evaluation", "topk=5:x", "'topk=5:x'; give a whole number, or several such as 5:10"),
        ("evaluation", "bound_delta=little", "'bound_delta=little'; give a number"),
        ("evaluation", "no_answer_text=none", "which follows from the run's data"),
        ("answer", "beams=many", "--answer has 'beams=many'; give a whole number"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(group, given, message):
    with pytest.raises(UserError) as refused:
        changed(LOADED, group, [given])
    assert message in str(refused.value)


def test_a_warning_is_told_without_its_place_in_the_code():
    warn = "from absl import logging; logging.warning('%s is in both', 'p7')"
    program = f"from launch import common; common.run(lambda argv: exec({warn!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "WARNING: p7 is in both\n")


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("ENOSPC", "No space left on device; choose another path, or make room there"),
        ("EACCES", "Permission denied; choose another path"),
    ],
)
def test_room_is_asked_for_only_where_there_is_none(kind, told):
    fail = f"import errno, os; raise OSError(n := errno.{kind}, os.strerror(n), 'there')"
    program = f"from launch import common; common.run(lambda argv: exec({fail!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (2, f"-c: there: {told}\n")
