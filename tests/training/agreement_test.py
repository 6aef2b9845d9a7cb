"""Two processes, one of which is signalled: both stop at the same step."""

import re
import signal
import socket
import subprocess
import sys

from tests.launch.cli import ROOT, environment

SCRIPT = """
import sys, time
from moemoe_jax.training.stopping import Stop
stop = Stop().listen()
import jax
jax.config.update("jax_num_cpu_devices", 1)
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[1]))
stop.keep()
assert not stop.agreed()
print("ready", flush=True)
step = 1
while not stop.agreed():
    step += 1
    time.sleep(0.01 if sys.argv[1] == "0" else 0.02)
print("stopped", stop.reason, "at", step, flush=True)
assert stop.agreed()
sys.exit(75)
"""


def test_a_signal_to_one_process_stops_both_at_the_same_step():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(index), address],
            cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for index in range(2)
    ]  # fmt: skip
    try:
        for process in both:
            assert process.stdout.readline() == "ready\n", process.communicate()[1]
        both[1].send_signal(signal.SIGUSR1)  # is passed on as SIGTERM
        said = [process.communicate(timeout=120) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [75, 75], said
    steps = [int(re.search(r"at (\d+)", out)[1]) for out, _ in said]
    assert steps[0] == steps[1] > 1
    assert said[0][0].startswith("stopped on request at")
