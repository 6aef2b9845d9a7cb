"""Several processes work as one: the same numbers, told and written once."""

import json
import re
import socket
import subprocess

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from moemoe_jax.errors import UserError
from moemoe_jax.parallel import processes
from moemoe_jax.parallel.clusters import Place
from moemoe_jax.training.loop import train
from tests.launch import several, tiny
from tests.launch.cli import ROOT, TINY, command, environment, run

# Without Muon and evaluations, which take longer to compile than all else.
SETTINGS = {"optimizer.name": "adamw", "data.val_fraction": 0.0, "data.products_per_batch": 8}


def history(folder):
    """What was measured at each step, but for what is measured by the clock."""
    found = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        step = found.setdefault(entry.pop("step"), {})
        new = {k: v for k, v in entry.items() if not k.startswith(("speed/", "time"))}
        assert not set(step) & set(new), "a step was written twice"
        step |= new
    return found


def arrays(folder, step):
    """All arrays of a checkpoint, read without any of the project's code."""
    place = folder / "checkpoints" / str(step) / "state"
    reader = ocp.PyTreeCheckpointer()
    tree = reader.metadata(place).item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return reader.restore(place, restore_args=as_numpy)


def close(first, second):
    """The largest relative difference of two histories."""
    assert first.keys() == second.keys()
    for step, values in first.items():
        assert values.keys() == second[step].keys()
    pairs = [(v, second[s][k]) for s, values in first.items() for k, v in values.items()]
    return max(abs(a - b) / max(abs(a), 1e-3) for a, b in pairs)


def by_gloo(line):
    """Whether a line of the second process is Gloo's, or what is left of one.

    Several of Gloo's threads write in small pieces, which may be parted by other lines.
    """
    return bool(re.fullmatch(r"\[1\] .*(Gloo|peer ranks).*|\[1\] [\d\s]*", line))


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    config = tiny.get_config("text")
    config.update_from_flattened_dict(SETTINGS)
    train(config, str(one))
    flags = [f"--config={TINY}:text", *(f"--config.{k}={v}" for k, v in SETTINGS.items())]
    done = subprocess.run(
        ["bash", "launch/local.sh", "2", *command("train", *flags, f"--workdir={two}")],
        cwd=ROOT, env={**environment(), "JAX_NUM_CPU_DEVICES": "4"},
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    told = [line for line in lines if line.startswith("[1] ") and not by_gloo(line)]

    assert history(one).keys() == {1, 2}
    assert close(history(one), history(two)) < 1e-5  # losses and gradients
    chex.assert_trees_all_close(arrays(one, 2), arrays(two, 2), rtol=1e-4, atol=1e-6)
    # The first tells, the second does not; nor does it write.
    assert done.stdout.count("processes: 2 with 8 devices, met through the flags") == 1
    assert sum(line.startswith("train 2/2") for line in lines) == 1
    assert len(told) == 1 and told[0].startswith("[1] train: starting with ")
    names = [sorted(p.name for p in place.iterdir()) for place in (one, two)]
    assert names[0] == names[1]
    assert len(list((two / "tensorboard").iterdir())) == 1


@pytest.mark.slow
def test_two_processes_answer_as_one_does(tmp_path):
    config = tiny.get_config("text")
    config.update_from_flattened_dict(SETTINGS)
    train(config, str(tmp_path / "w"))
    asked = [{"question": "who made it?"}]
    records = [{"id": f"p{n}", "sources": {"title": f"shirt {n}"}} for n in range(20)]
    lines = [json.dumps(record | {"questions": asked}) for record in records]
    lines[3] = "{"
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    files = []
    for count in (1, 2):
        output = tmp_path / f"{count}.jsonl"
        told = several.run(
            "predict", f"--workdir={tmp_path / 'w'}", f"--input={tmp_path / 'in.jsonl'}",
            f"--output={output}", "--attributes=color,size", "--max_reject_fraction=0.1",
            "--answer=window=4,products_per_batch=4", count=count, devices=2,
        )  # fmt: skip
        assert ["57 answers" in text for text in told] == [True, False][:count]
        assert "model was trained on: 19, such as 'who made it?'" in told[0]  # by both together
        files.append([output.read_bytes(), (tmp_path / f"{count}.jsonl.rejects.jsonl").read_text()])
    assert files[0] == files[1]


def test_what_is_said_of_the_processes_only_in_part_is_refused(tmp_path):
    done = run("train", f"--config={TINY}", f"--workdir={tmp_path}", "--processes=2")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "did not say --coordinator and --process" in line and "--processes=1" in line


def test_a_host_that_nobody_knows_is_told(monkeypatch):
    asked = []

    def unknown(host, port):
        asked.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(processes.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(processes.time, "monotonic", iter(range(99)).__next__)
    with pytest.raises(UserError, match=r"host nowhere is not known here .*Name or service"):
        processes.join(Place("the flags", "nowhere:1", 2, 1), start_timeout=5)
    assert set(asked) == {"nowhere"} and len(asked) > 2


def test_jax_gets_what_the_cluster_said_and_a_failure_is_told(monkeypatch):
    given = {}

    def initialize(**arguments):
        given.update(arguments)
        raise RuntimeError("DEADLINE_EXCEEDED: nobody\ncame")

    monkeypatch.setattr(processes.jax.distributed, "initialize", initialize)
    with pytest.raises(UserError) as error:
        processes.join(Place("Slurm", "localhost:1", 4, 3, local=1), 30, 60)
    text = str(error.value)
    assert "process 3 of 4 could not meet the others at localhost:1 (Slurm) within 60 s" in text
    assert "nobody came" in text and "\n" not in text
    assert given["local_device_ids"] == [1] and given["heartbeat_timeout_seconds"] == 30
    assert given["cluster_detection_method"] == "deactivate"
    with pytest.raises(UserError):
        processes.join(Place("Kubernetes", None, None, 3))
    assert given["cluster_detection_method"] is None and given["num_processes"] is None
