"""The first of two processes dies: the other, which runs Python all the while, ends as told."""

import signal
import subprocess
import sys

from tests.launch.cli import ROOT, environment
from tests.launch.several import free_port

SCRIPT = """
import sys
from launch import common
common.define_processes()
def main(argv):
    common.join_processes()
    print("joined", file=sys.stderr, flush=True)
    while True:
        pass
common.run(main)
"""


def test_the_end_of_the_first_process_is_told_without_the_stacks_of_python():
    flags = [f"--coordinator=localhost:{free_port()}", "--processes=2"]
    first, second = (
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *flags, f"--process={index}"],
            cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    )  # fmt: skip
    try:
        for line in second.stderr:
            if line == "joined\n":
                break
        first.kill()
        said = second.communicate(timeout=120)[1]
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()
    # With the stacks of threads that run on, it ended by SIGSEGV now and then.
    assert second.returncode == -signal.SIGABRT, said
    assert "another task died" in said
    assert "Fatal Python error" not in said
