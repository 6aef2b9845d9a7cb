"""No setting is parsed and ignored: the code reads each, beyond checking it."""

import ast
import dataclasses
import pathlib
import typing

import pytest

import moemoe_jax
from moemoe_jax.config_tree import _item_dataclass
from moemoe_jax.experiment import ExperimentConfig
from moemoe_jax.models.config import MoELayers

PACKAGE = pathlib.Path(moemoe_jax.__file__).parent


def settings(kind, path=""):
    """Yields the path and the name of every setting."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint, where = hints[field.name], f"{path}{field.name}"
        group = hint if dataclasses.is_dataclass(hint) else _item_dataclass(hint)
        if group:
            yield from settings(group, f"{where}.")
        else:
            yield where, field.name


class Reads(ast.NodeVisitor):
    """The names of attributes that are read, but for what refuses a setting."""

    def __init__(self):
        self.names = set()

    def visit_FunctionDef(self, node):
        if node.name != "__post_init__" and not node.name.startswith("_check"):
            self.generic_visit(node)

    def visit_Attribute(self, node):
        if isinstance(node.ctx, ast.Load):
            self.names.add(node.attr)
        self.generic_visit(node)


def reads(*sources):
    found = Reads()
    for source in sources:
        found.visit(ast.parse(source))
    return found.names


@pytest.fixture(scope="module")
def read():
    return reads(*(path.read_text() for path in PACKAGE.rglob("*.py")))


def test_every_setting_is_read(read):
    every = dict(settings(ExperimentConfig))
    assert {"loss.aux_weight", "data.sources.dropout_asks", "model.text.remat"} <= set(every)
    # The layers of a stack are looked up by the stack's name.
    by_name = {f"model.moe_layers.{f.name}" for f in dataclasses.fields(MoELayers)}
    ignored = [path for path, name in every.items() if name not in read and path not in by_name]
    assert not ignored


def test_a_check_is_no_reading():
    check = "class A:\n    def __post_init__(self): self.a\n    def _check_b(self): self.b"
    assert reads(check, "def f(x): x.c = x.d") == {"d"}
