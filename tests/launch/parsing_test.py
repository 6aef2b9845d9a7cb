"""Flags with values that they cannot have."""

import functools

from absl import flags
from ml_collections import config_flags
import pytest

from launch import parsing
from moemoe_jax.errors import UserError

CONFIG = "tests/launch/tiny.py"


@pytest.fixture
def fresh(monkeypatch):
    """Flags of this test alone."""
    own = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", own)
    define = functools.partial(config_flags.DEFINE_config_dict, flag_values=own)
    monkeypatch.setattr(config_flags, "DEFINE_config_dict", define)
    return own


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("train.epochs=one", "train.epochs is 'one'; give a whole number"),
        ("train.epochs=1.5", "train.epochs is '1.5'; give a whole number"),
        ("train.epochs=", "train.epochs is ''; give a whole number"),
        ("train.epochs=a=b: c", "train.epochs is 'a=b: c'; give a whole number"),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate is 'fast'; give a number"),
        ("train.frozen_dropout=maybe", "train.frozen_dropout is 'maybe'; give True or False"),
        (
            "data.text_buckets=(1,",
            "data.text_buckets is '(1,'; give a tuple, such as \"(1, 2)\"",
        ),
    ],
)
def test_a_setting_says_what_it_takes(fresh, flag, told):
    with pytest.raises(UserError) as refused:
        parsing.parse(["train", f"--config.{flag}"], CONFIG)
    assert str(refused.value) == f"--config.{told}"


def test_a_bound_is_told(fresh):
    flags.DEFINE_integer("timeout", 100, "Seconds.", 10, flag_values=fresh)
    flags.DEFINE_float("effort", 0.0, "Of the compiler.", -1.0, 1.0, flag_values=fresh)
    flags.DEFINE_enum("kind", "a", ["a", "b"], "One of them.", flag_values=fresh)
    for flag, told in (
        ("--timeout=5", "--timeout is '5'; give a whole number, 10 or more"),
        ("--timeout=long", "--timeout is 'long'; give a whole number, 10 or more"),
        ("--effort=2", "--effort is '2'; give a number, -1.0 or more, 1.0 or less"),
        ("--kind=c", "flag --kind=c: value should be one of <a|b> (--help lists the flags)"),
    ):
        with pytest.raises(UserError) as refused:
            parsing.parse(["train", flag], "")
        assert str(refused.value) == told
