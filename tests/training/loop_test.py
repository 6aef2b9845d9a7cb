import json

import pytest

from moemoe_jax.errors import UserError
from moemoe_jax.experiment import to_json
from moemoe_jax.training import loop
from moemoe_jax.training.goodput import read_starts
from moemoe_jax.training.loop import _closing
from moemoe_jax.workdir import WorkDir
from tests.launch import tiny


class Checkpoints:
    """Whose last save turns out to have failed."""

    def __init__(self, error):
        self.error = error

    def close(self):
        if self.error:
            raise self.error


def test_a_save_that_fails_while_the_run_does_is_told_beside_the_cause(capsys):
    with pytest.raises(UserError, match="not finite"), _closing(Checkpoints(OSError("disk full"))):
        raise UserError("the loss was not finite")
    assert capsys.readouterr().err == "the save under way failed as well: disk full\n"


def test_a_save_that_fails_twice_is_told_once(capsys):
    with pytest.raises(OSError, match="disk full"), _closing(Checkpoints(OSError("disk full"))):
        raise OSError("disk full")
    assert capsys.readouterr().err == ""


def test_a_save_that_fails_at_the_end_fails_the_run():
    with pytest.raises(OSError, match="disk full"), _closing(Checkpoints(OSError("disk full"))):
        pass
    with _closing(Checkpoints(None)):
        pass


def test_a_validation_split_that_is_empty_is_told_before_the_work_directory_is_taken(tmp_path):
    records = tmp_path / "few.jsonl"
    one = {"id": "1", "sources": {"title": "a red tee"}, "attributes": {"color": "red"}}
    records.write_text(json.dumps(one) + "\n")
    config, workdir = tiny.get_config("text"), WorkDir(tmp_path / "run")
    config.data.source, config.data.products_per_batch = str(records), 8
    config.data.test_fraction = 0.0
    with pytest.raises(UserError, match="of few records a split may get none; raise its share"):
        loop.train(config, str(workdir.path), say=lambda line: None)
    assert not workdir.config.exists()  # whoever raises the share starts anew


def test_a_start_that_fails_before_it_has_a_state_is_in_the_book_of_a_run_that_there_is(
    tmp_path, monkeypatch
):
    def fail(*_):
        raise UserError("no such data")

    monkeypatch.setattr(loop, "open_data", fail)
    config, workdir = tiny.get_config(), WorkDir(tmp_path / "run")
    config.data.products_per_batch = 8
    for begun in (False, True):
        if begun:
            workdir.claim(to_json(config))
        with pytest.raises(UserError, match="no such data"):
            loop.train(config, str(workdir.path))
        assert workdir.goodput.exists() == begun
    (row,) = read_starts(workdir.goodput)
    assert (row.from_step, row.end) == (None, "failed: UserError")
    assert row.seconds["startup"] > 0
