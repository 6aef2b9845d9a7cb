"""The drill: a training is killed without warning, started again, and nobody can tell."""

import json
import re
import shutil
import signal
import subprocess

import chex
import orbax.checkpoint as ocp
import pytest

from moemoe_jax.training.manifest import NAME
from tests.launch.cli import ROOT, TINY, WHOLE_ANSWERS, command, environment, run
from tests.training import damages

STEPS = 12
SETTINGS = (
    f"--config.train.steps={STEPS}",
    "--config.train.eval_every=8",
    "--config.train.save_every=2",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compiled programs, so that three runs compile once."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def unbroken(cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    done = run("train", f"--config={TINY}", f"--workdir={folder}", *SETTINGS, cache=cache)
    assert done.returncode == 0, done.stderr
    return folder


def metrics(folder):
    """The scalars of each step, without those that are measured by the clock."""
    found = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        step = found.setdefault(entry["step"], {})
        new = {k: v for k, v in entry.items() if not k.startswith(("speed/", "time", "step"))}
        assert not set(step) & set(new), "a step was logged twice"
        step |= new
    return found


def checkpoints(folder):
    path = folder / "checkpoints"
    return sorted(int(p.name) for p in path.iterdir() if p.name.isdigit()) if path.is_dir() else []


def arrays(folder):
    """All arrays of the last checkpoint, read without any of the project's code."""
    place = folder / "checkpoints" / str(STEPS) / "state"
    return ocp.PyTreeCheckpointer().restore(place)


def signalled(folder, cache, number, ready):
    """Starts a training and signals it at the first step for which `ready` is true."""
    job = subprocess.Popen(
        command("train", f"--config={TINY}", f"--workdir={folder}", *SETTINGS),
        cwd=ROOT, env=environment(cache), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        for line in job.stdout:
            step = re.match(r"train (\d+)/", line)
            if step and ready(int(step[1])):
                break
            assert not step or int(step[1]) < STEPS, "it was over before it was signalled"
        job.send_signal(number)
        rest = job.stdout.read()
    finally:
        job.kill()
        job.wait()
    return job.returncode, rest


def assert_same_end(folder, unbroken):
    expected, found = arrays(unbroken), arrays(folder)
    assert len(expected["params"]) > 0 and int(found["step"]) == STEPS
    chex.assert_trees_all_equal(found, expected)
    chex.assert_trees_all_equal_dtypes(found, expected)
    assert metrics(folder) == metrics(unbroken)
    assert set(metrics(folder)) == set(range(1, STEPS + 1))
    assert (folder / "config.json").read_text() == (unbroken / "config.json").read_text()


def ranks(folder):
    """What ranks each checkpoint."""
    manifests = {step: folder / "checkpoints" / str(step) / NAME for step in checkpoints(folder)}
    found = {step: json.loads(path.read_text()) for step, path in manifests.items()}
    return {step: manifest["meta"]["metrics"] for step, manifest in found.items()}


def ends(folder):
    return [row["end"] for row in json.loads((folder / "goodput.json").read_text())["starts"]]


def test_a_killed_training_ends_bit_for_bit_as_an_unbroken_one(unbroken, cache, tmp_path):
    killed = tmp_path / "killed"
    # Past step 6 and its checkpoint; the evaluation at step 8 is still to come.
    status, _ = signalled(
        killed, cache, signal.SIGKILL, lambda step: step > 6 and checkpoints(killed)
    )
    assert status == -signal.SIGKILL
    reached = checkpoints(killed)
    assert reached and reached[-1] < STEPS

    # More checkpoints from here on, which is no other run.
    again = (*SETTINGS, "--config.train.save_every=1", "--config.train.keep_last=3")
    done = run("train", f"--config={TINY}", f"--workdir={killed}", *again, cache=cache)
    assert done.returncode == 0, done.stderr
    assert checkpoints(killed)[-3:] == [STEPS - 2, STEPS - 1, STEPS]
    resumed = int(re.search(rf"resuming at step (\d+) of {STEPS}", done.stdout)[1])
    assert reached[-1] <= resumed < STEPS  # a save that was under way may have become whole
    assert_same_end(killed, unbroken)
    assert ends(killed) == ["", "done"]
    assert "lost to restarts" in done.stdout


def test_a_training_that_is_asked_to_stop_saves_and_ends_as_an_unbroken_one(
    unbroken, cache, tmp_path
):
    stopped = tmp_path / "stopped"
    # At step 8 it evaluates, which is left for this, and made up for by the next start.
    status, said = signalled(stopped, cache, signal.SIGUSR1, lambda step: step == 8)
    assert status == 75
    (line,) = [one for one in said.splitlines() if one.startswith("train: ")]
    step = checkpoints(stopped)[-1]
    assert step in (8, 9)  # the one under way, or the next
    assert line == (
        f"train: stopped by SIGUSR1 after step {step} of {STEPS}, saved as "
        f"{stopped / 'checkpoints' / str(step)}; the same command goes on from there"
    )
    done = run("train", f"--config={TINY}", f"--workdir={stopped}", *SETTINGS, cache=cache)
    assert done.returncode == 0, done.stderr
    assert f"resuming at step {step} of {STEPS}" in done.stdout
    assert_same_end(stopped, unbroken)
    assert ends(stopped) == ["stopped", "done"]
    assert checkpoints(stopped) == checkpoints(unbroken)
    assert ranks(stopped) == ranks(unbroken)


def test_a_finished_training_is_left_as_it_is(unbroken, cache):
    before = {p: p.stat().st_mtime_ns for p in (unbroken / "checkpoints").rglob("*") if p.is_file()}
    done = run("train", f"--config={TINY}", f"--workdir={unbroken}", *SETTINGS, cache=cache)
    assert done.returncode == 0, done.stderr
    assert f"all {STEPS} steps are done" in done.stdout
    after = {p: p.stat().st_mtime_ns for p in (unbroken / "checkpoints").rglob("*") if p.is_file()}
    assert before == after
    assert ends(unbroken) == ["done"]  # that start had nothing to do


def test_a_training_goes_on_from_before_a_damaged_checkpoint(unbroken, cache, tmp_path):
    folder = shutil.copytree(unbroken, tmp_path / "damaged")
    last = folder / "checkpoints" / str(STEPS)
    damages.flip(damages.arrays(last), 8 * 1000)
    done = run("train", f"--config={TINY}", f"--workdir={folder}", *SETTINGS, cache=cache)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "damaged" in line]
    assert f"checkpoint {last} is damaged (state/" in line and "; leaves: " in line
    before = STEPS - 2
    assert line.endswith(f"): step {before} is used instead; it is kept as {STEPS}.damaged")
    assert f"resuming at step {before} of {STEPS}" in done.stdout
    chex.assert_trees_all_equal(arrays(folder), arrays(unbroken))
    assert metrics(folder) == metrics(unbroken)


def test_a_disk_that_is_full_ends_the_run_with_a_line_that_says_so(unbroken, cache, tmp_path):
    # Files of 100 KiB at most: what is written in the background, the arrays, is larger.
    place = tmp_path / "full"
    arguments = command("train", f"--config={TINY}", f"--workdir={place}", *SETTINGS, WHOLE_ANSWERS)
    # JAX would tell that it cannot keep a program that it took long to compile, either.
    reading = environment(cache) | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1000"}
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 100; exec "$@"', "-", *arguments],
        cwd=ROOT, env=reading, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        f"train: {place}/checkpoints: File too large; choose another path, or make room there\n"
    )
    assert f"train {STEPS}/" not in done.stdout
    assert checkpoints(place) == []
    assert checkpoints(unbroken)[-1] == STEPS  # the same command where there is room
