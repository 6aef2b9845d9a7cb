"""Runs an entry point as several processes that work together, each with devices of its own."""

import socket
import subprocess

from tests.launch.cli import ROOT, command, environment

PEER_TIMEOUT = 20


def free_port():
    with socket.socket() as taken:
        taken.bind(("", 0))
        return taken.getsockname()[1]


def start(module, *arguments, count=2, devices=2, cache=None):
    """Starts `count` processes; one alone gets no flags, as it has nobody to find."""
    coordinator = f"--coordinator=localhost:{free_port()}"
    jobs = []
    for index in range(count):
        several = (coordinator, f"--processes={count}", f"--process={index}")
        several += (f"--peer_timeout={PEER_TIMEOUT}",)
        jobs.append(
            subprocess.Popen(
                command(module, *arguments, *(several if count > 1 else ())),
                cwd=ROOT,
                env={**environment(cache), "JAX_NUM_CPU_DEVICES": str(devices)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
    return jobs


def finish(jobs):
    """Waits for all; returns (status, stdout, stderr) of each."""
    told = [job.communicate(timeout=900) for job in jobs]
    return [(job.returncode, *texts) for job, texts in zip(jobs, told, strict=True)]


def run(module, *arguments, **where):
    """Runs to the end, where all must end well; returns the stdout of each."""
    done = finish(start(module, *arguments, **where))
    assert [status for status, *_ in done] == [0] * len(done), [err for *_, err in done]
    return [out for _, out, _ in done]
