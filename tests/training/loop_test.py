import pytest

from moemoe_jax.errors import UserError
from moemoe_jax.training.loop import _closing


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
