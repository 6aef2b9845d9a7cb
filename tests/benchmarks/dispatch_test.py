"""The table of dispatch back ends, as far as it needs no TPU's compiler."""

import re
import subprocess
import sys

import jax
import pytest

from benchmarks import dispatch
from moemoe_jax.aot.flops_text import mixture_rows
from moemoe_jax.errors import UserError
from moemoe_jax.nn.dispatch import DISPATCHERS
from moemoe_jax.nn.moe import MoEConfig
from tests.launch.cli import ROOT


@pytest.mark.parametrize(("tokens", "experts"), [(128, 8), (4864, 64)])
def test_kernels_say_what_the_formula_does(tokens, experts):
    config = MoEConfig(num_experts=experts, dispatch="grouped")
    function, arguments = dispatch.layer(config, tokens, jax.devices()[:1])
    text = function.trace(*arguments).lower(lowering_platforms=("tpu",)).as_text("hlo")
    rows, _ = mixture_rows(config, tokens, 1, 1)
    told = [int(number) for number in re.findall(r"flops\W+(\d+)", text)]
    assert told == [2 * rows * 768 * 2048] * 9
    moved = sum(int(number) for number in re.findall(r"bytes_accessed\W+(\d+)", text))
    # At least: all kernels in bfloat16 three times, and rows to and fro; the gradients' rows more
    # than once, as its tiles do not hold them whole.
    least = 3 * 3 * experts * 768 * 2048 * 2 + 9 * rows * (768 + 2048) * 2
    assert 1.0 <= moved / least < 1.3


def test_a_line_by_hand():
    # 128 tokens with two choices: in the worst case, 23 blocks of 16 rows; or all in all queues.
    assert dispatch.worst_rows("grouped", 128, 8) == 23 * 16
    assert dispatch.worst_rows("index", 128, 8) == 8 * 128
    assert dispatch.worst_rows("ragged", 128, 8) == 256
    # 256 from each of two chips, for 4 experts: blocks of 64.
    assert dispatch.worst_rows("grouped", 128, 8, 2) == 64 * (8 + 3)
    found = dispatch.Found(4864, 8, "index", 1.125, 4.0, 2**30, 2**21)
    assert found.cells() == ("4,864", "8", "index", "1.12", "4.00", "1024", "2")
    assert len(found.cells()) == len(dispatch.HEADER)


@pytest.mark.parametrize("name", ["128", "128x", "0x8"])
def test_a_layer_in_another_form_is_refused(name):
    assert dispatch.layer_of("4864x64") == (4864, 64)
    with pytest.raises(UserError, match=f"--layers={name}: write tokens x experts"):
        dispatch.layer_of(name)
    with pytest.raises(UserError, match="a token goes to 2 experts"):
        dispatch.layer_of("128x1")


def test_back_ends_are_those_of_the_layer():
    assert dispatch.backends_of([]) == list(DISPATCHERS)
    assert dispatch.backends_of(["ragged", "index"]) == ["ragged", "index"]
    with pytest.raises(UserError, match=r"--dispatch=gruoped: the back ends are .*grouped"):
        dispatch.backends_of(["index", "gruoped"])


def test_nothing_imports_jax_before_its_environment_is_set():
    code = "import sys; from benchmarks import dispatch; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_layer_is_timed_here_beside_the_dense_block(monkeypatch, capsys):
    for name, value in {"_WIDTH": 16, "_HIDDEN": 24, "_RUNS": 2}.items():
        monkeypatch.setattr(dispatch, name, value)
    dispatch.time_here([(80, 4)], ["index", "dense"], "bfloat16")
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith(jax.devices()[0].device_kind)
    cells = [line.strip("| ").split(" | ") for line in lines[2:]]
    assert [row[2] for row in cells] == ["dense block", "index", "dense"]
    assert all(float(row[-1]) > 0 for row in cells)
