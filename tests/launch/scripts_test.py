"""The scripts for clusters, as far as they can be run or read on one machine."""

import os
import signal
import stat
import subprocess
import sys

import pytest
import yaml

from tests.launch.cli import ROOT

# Stands in for the training: says where it stands, or what the test tells it to do.
STUB = f"""
import os, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
from moemoe_jax.parallel.clusters import locate
flags = dict(one.lstrip("-").split("=", 1) for one in sys.argv[1:])
index = int(flags.get("process", os.environ.get("SLURM_PROCID", 0)))
place = locate(flags.get("coordinator"), int(flags.get("processes", 0)) or None,
               int(flags["process"]) if "process" in flags else None)
say = lambda *words: os.write(1, (" ".join(map(str, words)) + "\\n").encode())
say(place.cluster, place.coordinator.split(":")[0], place.index, place.count)
def stop(*_):
    time.sleep(0.5)
    sys.exit(75)
if "stops" in flags:
    signal.signal(signal.SIGTERM, stop)
    ready = [os.path.join(flags["stops"], number) for number in "01"]
    os.mkdir(ready[index])
    while not all(map(os.path.exists, ready)):
        time.sleep(0.01)
    if index == 0:
        os.kill(int(os.environ["SRUN_PID"]), signal.SIGTERM)
    time.sleep(600)
if flags.get("fails") == str(index):
    sys.exit(int(flags.get("status", 7)))
if "fails" in flags:
    time.sleep(600)
say(*sorted(flags))
"""

# Runs each task with the variables that srun sets, as two nodes of one task. As srun does, it ends
# the other where one fails, sends signals to all that a task started, and ends with the highest
# status.
SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys, time
command = sys.argv[1:]
while command[0].startswith("--"):
    command.pop(0)
step = {{"SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "node[07-08]", "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "2", "SLURM_LOCALID": "0", "SRUN_PID": str(os.getpid())}}
tasks, ending = [], False
def send(*_):
    for task in tasks:
        if task.poll() is None:
            os.killpg(task.pid, signal.SIGTERM)
signal.signal(signal.SIGTERM, send)
for number in "01":
    own = os.environ | step | {{"SLURM_PROCID": number}}
    tasks.append(subprocess.Popen(command, env=own, start_new_session=True))
while None in (found := [task.poll() for task in tasks]):
    if any(found) and not ending:
        ending = True
        send()
    time.sleep(0.02)
sys.exit(max(status if status >= 0 else 128 - status for status in found))
"""


def executable(path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def stub(tmp_path):
    path = tmp_path / "stub.py"
    path.write_text(STUB)
    return path


def bash(*arguments, **variables):
    return subprocess.run(
        ["bash", *map(str, arguments)],
        cwd=ROOT, env={**os.environ, **variables},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["local.sh", "slurm.sbatch", "gke_jobset.yaml", "sky_gpu.yaml"])
def test_each_script_begins_with_what_it_does_and_how_it_is_called(name):
    lines = [one for one in (ROOT / "launch" / name).read_text().splitlines() if one[:2] != "#!"]
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    assert end > 8 and lines[0].endswith((".", ","))
    assert any(f"launch/{name}" in line for line in lines[:end])
    if not name.endswith(".yaml"):
        assert bash("-n", f"launch/{name}").returncode == 0


def test_local_runs_all_processes_and_ends_well_with_them(stub):
    done = bash("launch/local.sh", 3, sys.executable, stub, "--workdir=w", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        "[1] coordinator process processes workdir",
        "[1] the flags localhost 1 3",
        "[2] coordinator process processes workdir",
        "[2] the flags localhost 2 3",
        "coordinator process processes workdir",
        "the flags localhost 0 3",
    ]


@pytest.mark.parametrize("victim", [0, 1])
def test_local_stops_the_others_when_one_fails(stub, victim):
    done = bash("launch/local.sh", 2, sys.executable, stub, f"--fails={victim}")
    assert done.returncode == 7
    told = "local.sh: a process ended with status 7; stopping the others"
    assert done.stderr.splitlines() == [told]
    assert "coordinator process" not in done.stdout
    assert subprocess.run(["pgrep", "-f", str(stub)], check=False).returncode == 1  # none is left


def test_local_tells_of_a_killed_process_in_one_line():
    done = bash("launch/local.sh", 2, "bash", "-c", "kill -KILL $$")
    assert done.returncode == 137
    told = "local.sh: a process ended with status 137; stopping the others"
    assert done.stderr.splitlines() == [told]


def test_local_refuses_what_makes_no_sense(stub):
    done = bash("launch/local.sh", "python", "-m", "launch.train")
    assert done.returncode == 2 and "give the number of processes" in done.stderr
    done = bash("launch/local.sh", 2, "python", stub, CUDA_VISIBLE_DEVICES="0,1,2")
    assert done.returncode == 2 and "3 GPUs do not divide among 2" in done.stderr


@pytest.fixture
def slurm(tmp_path, stub):
    """The variables of a batch job, and stand-ins for Slurm's programs."""
    place = tmp_path / "bin"
    place.mkdir()
    executable(place / "srun", SRUN)
    executable(place / "scontrol", f'#!/bin/sh\necho "$@" >> {tmp_path}/requeued\n')
    return {
        "PATH": f"{place}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "11",
        "SLURM_NTASKS": "2",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "COMMAND": f"{sys.executable} {stub}",
        "VENV": str(tmp_path / "none"),
    }


def test_the_slurm_job_starts_a_process_a_node(slurm, tmp_path):
    done = bash("launch/slurm.sbatch", "--workdir=w", **slurm)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        "Slurm node07 0 2",
        "Slurm node07 1 2",
        "peer_timeout workdir",
        "peer_timeout workdir",
    ]
    assert not (tmp_path / "requeued").exists()


@pytest.mark.parametrize(("restarts", "again"), [("0", True), ("20", False)])
def test_a_slurm_job_that_lost_a_process_is_queued_again(slurm, tmp_path, restarts, again):
    done = bash("launch/slurm.sbatch", "--fails=1", **slurm, SLURM_RESTART_COUNT=restarts)
    assert done.returncode == 128 + signal.SIGTERM  # of the other, which counts for more than 7
    assert (tmp_path / "requeued").exists() == again
    if again:
        assert (tmp_path / "requeued").read_text() == "requeue 11\n"


@pytest.mark.parametrize("victims", ["all", "0", "1"])
def test_a_mistake_of_the_users_is_not_made_twice(slurm, stub, tmp_path, victims):
    command = f"{sys.executable} {stub} --status=2 --fails={victims}"
    if victims == "all":
        command = f"{sys.executable} -c exit(2)"
    done = bash("launch/slurm.sbatch", **slurm | {"COMMAND": command})
    assert done.returncode == 2 and not (tmp_path / "requeued").exists()
    assert not list(ROOT.glob("moemoe-*"))


def test_a_slurm_job_whose_time_is_up_waits_for_what_is_saved_and_is_queued_again(slurm, tmp_path):
    done = bash("launch/slurm.sbatch", f"--stops={tmp_path}", **slurm)
    assert done.returncode == 75
    assert "ended with status 75; queueing" in done.stderr
    assert (tmp_path / "requeued").read_text() == "requeue 11\n"


def test_the_jobset_fits_together():
    jobset = yaml.safe_load((ROOT / "launch/gke_jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    assert jobset["spec"]["network"]["enableDNSHostnames"]
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert job["completionMode"] == "Indexed" and job["backoffLimit"] == 0
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    resources = container["resources"]
    assert resources["requests"] == resources["limits"] == {"google.com/tpu": 4}
    side, other = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    chips = resources["limits"]["google.com/tpu"]
    assert side * other == job["parallelism"] * chips == job["completions"] * chips
    assert container["command"] == ["python", "-m", "launch.train"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    # The header's address of a GPU job's first pod: jobset-replicated job-0-0.jobset.
    text = (ROOT / "launch/gke_jobset.yaml").read_text()
    name = jobset["metadata"]["name"]
    assert f"--coordinator={name}-{replicated['name']}-0-0.{name}:8476" in text


def test_the_sky_task_runs_the_training_on_every_node():
    task = yaml.safe_load((ROOT / "launch/sky_gpu.yaml").read_text())
    assert task["num_nodes"] == 2 and task["resources"]["accelerators"] == "H100:8"
    assert task["file_mounts"]["/runs"]["mode"] == "MOUNT"
    for part in ("setup", "run"):
        assert bash("-n", "-c", task[part]).returncode == 0
    assert "python -m launch.train" in task["run"] and "/runs/" in task["run"]
    used = {name for name in task["envs"] if f"${name}" in task["run"]}
    assert used == set(task["envs"])


@pytest.mark.parametrize("name", ["gke_jobset.yaml", "sky_gpu.yaml", "slurm.sbatch"])
def test_the_configs_and_requirements_that_are_named_exist(name):
    text = (ROOT / "launch" / name).read_text()
    words = {word.strip("\"'(),") for word in text.replace("=", " ").split()}
    files = {w for w in words if w.startswith(("configs/", "requirements"))}
    assert files and all((ROOT / file).exists() for file in files)
