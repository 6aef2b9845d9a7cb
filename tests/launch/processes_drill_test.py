"""Drills with several processes: other counts, resuming with another count, one that is killed."""

import json
import os
from pathlib import Path
import re
import signal
import time

import chex
import pytest

from tests.launch import several
from tests.launch.cli import TINY
from tests.launch.processes_test import history

pytestmark = pytest.mark.drill

STEPS = 6
SETTINGS = (
    f"--config={TINY}:text",
    "--config.model.moe_layers.decoder=odd",
    "--config.model.moe.noise=gaussian",
    # Muon makes much of the last bits, in which the sums of other devices differ.
    "--config.optimizer.name=adamw",
    "--config.optimizer.learning_rate=1e-4",
    f"--config.train.steps={STEPS}",
    "--config.train.eval_every=6",
    "--config.train.save_every=1",
    "--config.train.keep_last=9",
    "--config.train.accumulation=2",
    "--config.data.products_per_batch=16",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def unbroken(cache, tmp_path_factory):
    """One process with eight devices."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    several.run("train", *SETTINGS, f"--workdir={folder}", count=1, devices=8, cache=cache)
    return folder


def difference(folder, unbroken):
    """The largest relative difference of a step's losses."""
    mine, theirs = history(folder), history(unbroken)
    assert mine.keys() == theirs.keys()
    names = [name for name in theirs[1] if name.startswith("loss/")]
    return max(
        abs(mine[step][name] - theirs[step][name]) / max(abs(theirs[step][name]), 1e-3)
        for step in theirs
        for name in names
    )


def reach(jobs, folder, step):
    """Waits until the first process has said that a step is done, and its checkpoint is whole."""
    for line in jobs[0].stdout:
        found = re.match(r"train (\d+)/", line)
        if found and int(found[1]) >= step:
            break
    else:
        raise AssertionError(f"it ended before step {step}: {jobs[0].stderr.read()}")
    deadline = time.monotonic() + 600
    while not (folder / "checkpoints" / str(step)).exists():
        assert time.monotonic() < deadline, "nothing was saved"
        time.sleep(0.05)


def alive(session):
    """The processes of a session that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue  # it ended just now
        if int(its) == session and state != "Z":
            found.append(stat.parent.name)
    return found


def kill(jobs):
    for job in jobs:
        os.kill(job.pid, signal.SIGKILL)  # the process alone: what it started is on its own
    for job in jobs:
        job.communicate()
        assert not alive(job.pid), "a process outlived its parent"


def test_every_count_of_processes_gives_the_same_losses(unbroken, cache, tmp_path, capsys):
    rows = []
    for count, devices in ((2, 4), (4, 2)):
        folder = tmp_path / str(count)
        several.run(
            "train", *SETTINGS, f"--workdir={folder}", count=count, devices=devices, cache=cache
        )
        rows.append((f"{count} x {devices}", difference(folder, unbroken)))
    with capsys.disabled():
        print("\nprocesses x devices   largest relative difference of a loss to 1 x 8")
        for name, value in rows:
            print(f"{name:<22}{value:.1e}")
    assert all(value < 1e-5 for _, value in rows)


def test_a_run_goes_on_with_other_counts_of_processes_devices_and_threads(
    unbroken, cache, tmp_path, capsys
):
    folder, rows = tmp_path / "run", []
    for count, devices, threads, until in ((1, 8, 0, 1), (2, 4, 1, 3), (4, 2, 4, 4), (1, 4, 2, 6)):
        jobs = several.start(
            "train", *SETTINGS, f"--workdir={folder}", f"--config.data.threads={threads}",
            count=count, devices=devices, cache=cache,
        )  # fmt: skip
        if until < STEPS:
            reach(jobs, folder, until)
            kill(jobs)
        else:
            assert [status for status, *_ in several.finish(jobs)] == [0]
        rows.append((count, devices, threads, until))
    worst = difference(folder, unbroken)
    with capsys.disabled():
        print("\nprocesses  devices  threads  killed after step")
        for row in rows:
            print(("{:>9}" * 4).format(*row))
        print(f"largest relative difference of a loss to the unbroken run: {worst:.1e}")
    assert worst < 1e-6


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_takes_the_other_along_and_the_job_resumes(
    unbroken, cache, tmp_path, victim, capsys
):
    folder = tmp_path / "run"
    where = {"count": 2, "devices": 4, "cache": cache}
    jobs = several.start("train", *SETTINGS, f"--workdir={folder}", **where)
    reach(jobs, folder, 2)
    jobs[victim].kill()
    began = time.monotonic()
    _, said = jobs[1 - victim].communicate(timeout=10 * several.PEER_TIMEOUT)
    took = time.monotonic() - began
    jobs[victim].communicate()
    status = jobs[1 - victim].returncode
    assert status != 0
    outs = several.run("train", *SETTINGS, f"--workdir={folder}", **where)
    assert "resuming at step" in outs[0]
    with capsys.disabled():
        print(f"\nprocess {victim} killed: the other ended after {took:.1f} s, status {status}")
        print("\n".join(f"  {line[:160]}" for line in said.splitlines()[-1:]))
    assert difference(folder, unbroken) < 1e-5


def test_two_processes_evaluate_as_one_does(unbroken, cache):
    found = {}
    for count, devices in ((1, 8), (2, 4)):
        name = f"by{count}"
        outs = several.run(
            "evaluate", f"--workdir={unbroken}", "--split=val", f"--name={name}",
            count=count, devices=devices, cache=cache,
        )  # fmt: skip
        assert "accuracy" in outs[0] and "accuracy" not in "".join(outs[1:])
        folder = unbroken / "eval" / name
        lines = (folder / "answers.jsonl").read_text().splitlines()
        answers = [json.loads(line) for line in lines]
        numbers = [[a.pop("confidence"), a.pop("calibrated")] for a in answers]
        numbers += [list(a.pop("source_weights").values()) for a in answers]
        accuracy = json.loads((folder / "metrics.json").read_text())["accuracy"]
        found[count] = answers, [*numbers, [accuracy]]
    assert found[1][0] == found[2][0] and len(found[1][0]) > 5
    chex.assert_trees_all_close(found[1][1], found[2][1], rtol=1e-4, atol=1e-5)


def test_two_processes_predict_what_one_does_also_when_one_is_killed(
    unbroken, cache, tmp_path, capsys
):
    records = tmp_path / "in.jsonl"
    with records.open("w") as out:
        for number in range(120):
            title = " ".join(["red", "blue", "cotton", "shirt"][: 1 + number % 4])
            bad = number in (17, 90)
            record = {"id": f"p{number}", "sources": {"title": title}}
            out.write("{\n" if bad else json.dumps(record) + "\n")

    def flags(name):
        return (
            f"--workdir={unbroken}", f"--input={records}", f"--output={tmp_path / name}",
            "--attributes=color,size", "--answer=window=8,products_per_batch=8",
            "--max_reject_fraction=0.1",
        )  # fmt: skip

    def rejects(name):
        (path,) = tmp_path.glob(f"{name}.rejects*")  # one list, whoever found them
        return sorted(path.read_text().splitlines())

    alone, several_flags = {"count": 1, "devices": 4}, {"count": 2, "devices": 4, "cache": cache}
    several.run("predict", *flags("one.jsonl"), **alone, cache=cache)
    outs = several.run("predict", *flags("two.jsonl"), **several_flags)
    assert "15 windows" in outs[0] and "windows" not in outs[1]
    rows = []
    for victim in (1, 0):
        parts = tmp_path / ".killed.jsonl.parts"
        goal = len(list(parts.glob("*.jsonl"))) + 3
        jobs = several.start("predict", *flags("killed.jsonl"), **several_flags)
        while all(job.poll() is None for job in jobs):
            if len(list(parts.glob("*.jsonl"))) >= goal:
                break
            time.sleep(0.005)
        jobs[victim].kill()
        statuses = [status for status, *_ in several.finish(jobs)]
        assert 0 not in statuses
        rows.append((victim, len(list(parts.glob("*.jsonl"))), statuses))
    several.run("predict", *flags("killed.jsonl"), **several_flags)
    whole = (tmp_path / "one.jsonl").read_bytes()
    ids = [json.loads(line)["id"] for line in whole.splitlines()]
    assert len(ids) == 2 * 118 and len(set(ids)) == 118
    for name in ("two.jsonl", "killed.jsonl"):
        assert (tmp_path / name).read_bytes() == whole
        assert rejects(name) == rejects("one.jsonl")
    with capsys.disabled():
        print("\nkilled process  windows of 15 answered  statuses")
        for row in rows:
            print("{:>14}  {:>22}  {}".format(*row))
