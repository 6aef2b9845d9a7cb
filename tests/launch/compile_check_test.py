"""The command's own part: its mistakes in one line, its exit status, its file."""

import importlib.util
import json
import pathlib
import subprocess

from absl import flags
from absl.testing import flagsaver
import ml_collections
import pytest

from launch import compile_check
from moemoe_jax.aot import topologies
from moemoe_jax.errors import UserError
from tests.launch.tiny import get_config

PROGRAM = {
    "fits": True,
    "seconds": 1.0,
    "arguments": 2**30,
    "temporaries": 2**30,
    "results": 0,
    "code": 0,
    "peak": 2**31,
    "flops": 1e12,
    "hbm_bytes": 1e9,
    "collectives": {},
    "gathers": [],
}
REFUSED = {"fits": False, "needs": 20 * 2**30, "available": 15 * 2**30}


@pytest.fixture
def command(monkeypatch):
    """Runs the command with flags, and a worker that answers `train`; returns its status."""
    monkeypatch.setattr(topologies, "require_libtpu", lambda: None)

    def run(*arguments, train=PROGRAM):
        def worker(topology, config, programs):
            chips = 4 if topology == "v5e:2x2" else 16
            return {
                "topology": topology,
                "products": config.data.products_per_batch,
                "programs": {"train": train(config) if callable(train) else train},
                "mesh": {"data": chips},
                "devices": chips,
                "formula": {"model": 4e12, "again": 0.0, "total": 4e12},
                "minimum": {"all-reduce": 1e6},
                "held": {"trained parameters": 2**30, "frozen parameters": 0},
            }

        monkeypatch.setattr(compile_check, "_compile", worker)
        monkeypatch.setattr(compile_check, "_config", get_config)
        with flagsaver.flagsaver():
            flags.FLAGS(["compile_check", *arguments])
            return compile_check.main([])

    return run


def test_the_status_says_whether_all_fit(command, capsys, tmp_path):
    file = tmp_path / "found.json"
    both = ("--topology=v5e:2x2", "--topology=v6e:4x4", f"--json={file}")
    assert command(*both) == 0
    assert [entry["topology"] for entry in json.loads(file.read_text())] == ["v5e:2x2", "v6e:4x4"]
    assert command(*both, train=REFUSED) == compile_check.DOES_NOT_FIT == 3
    assert "does not fit: needs 20.00 of 15.00 GiB" in capsys.readouterr().out
    assert not any(entry["fits"] for entry in json.loads(file.read_text()))


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_compiled(command, capsys):
    with pytest.raises(UserError, match=r"--json=none/x\.json: there is no such folder"):
        command("--topology=v5e:2x2", "--json=none/x.json")
    assert "v5e:2x2" not in capsys.readouterr().out


def test_a_batch_can_be_given_a_chip(command, capsys):
    command("--topology=v5e:2x2", "--products_per_chip=6")
    assert "v5e:2x2: data=4, 24 products a step (6 a chip)" in capsys.readouterr().out


def test_a_search_prints_what_it_tried(command, capsys):
    def train(config):
        small = config.data.products_per_batch <= 4 * 16
        return PROGRAM if small or config.model.text.remat == "full" else REFUSED

    arguments = ("--topology=v5e:2x2", "--search", "--search_compiles=5")
    assert command(*arguments, train=train) == 0
    said = capsys.readouterr().out.splitlines()
    # Each candidate as it is measured, and all of them at the end.
    step = "fits with 2.00 GiB; a step takes at least 5.08 ms: 6,304 products/s at most, compute-"
    assert said[0] == "v5e:2x2: remat none, 8 products a chip ..."
    assert said[1].startswith(f"  {step}bound  [")
    assert said[5].startswith("  does not fit: needs 20.00 of 15.00 GiB  [")
    rows = [line.split() for line in said]
    assert ["none", "8", "2.00", "5.08", "6,304", "compute-bound"] in rows
    assert ["full", "32", "2.00", "5.08", "25,216", "compute-bound", "(best)"] in rows


def test_a_search_goes_on_where_the_compiler_fails(command, capsys):
    def train(config):
        if config.model.text.remat == "none" or fails_always:
            raise RuntimeError("compiling for v5e:2x2 ended with status -6")
        return PROGRAM

    fails_always = False
    arguments = ("--topology=v5e:2x2", "--search", "--search_compiles=3")
    assert command(*arguments, train=train) == 0
    said = capsys.readouterr().out
    assert "ended with status -6" in said and "(best)" in said
    fails_always = True
    with pytest.raises(RuntimeError, match="status -6"):
        command(*arguments, train=train)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--topology is missing"),
        (["--topology=h100:8"], "the chips are v5e, v5p, v6e"),
        (["--topology=v5e:2x2", "--programs=train,serve"], "--programs=serve: choose from train"),
    ],
)
def test_mistakes_are_told_in_one_line(command, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        command(*arguments)
    assert "\n" not in str(caught.value)


def test_without_libtpu_there_is_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install libtpu==\d+(\.\d+)+") as caught:
        topologies.require_libtpu()
    assert "\n" not in str(caught.value)


def test_a_worker_s_mistake_and_its_end_are_told(monkeypatch, capfd):
    config = ml_collections.ConfigDict({"data": {"products_per_batch": 4}})

    def answers(text):
        def run(worker, **kwargs):
            assert kwargs["env"]["JAX_PLATFORMS"] == "cpu"
            if text:
                pathlib.Path(worker[-1]).write_text(text)
            else:
                kwargs["stdout"].write("Check failed: reduction_loop_bound")
            return subprocess.CompletedProcess(worker, 0 if text else -6)

        return run

    with flagsaver.flagsaver():
        flags.FLAGS(["compile_check"])
        monkeypatch.setattr(subprocess, "run", answers('{"mistake": "mesh data=3 needs 3"}'))
        with pytest.raises(UserError, match="mesh data=3 needs 3"):
            compile_check._compile("v5e:2x2", config, ["train"])
        monkeypatch.setattr(subprocess, "run", answers(""))
        with pytest.raises(RuntimeError, match=r"status -6.*--effort=0, or another mesh"):
            compile_check._compile("v5e:2x2", config, ["train"])
    assert "Check failed" in capfd.readouterr().err
