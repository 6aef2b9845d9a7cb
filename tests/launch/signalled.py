"""`launch.train` as one of several processes, one of which is sent SIGTERM as it enters a phase.

python -m tests.launch.signalled <process> <phase> <step> --workdir=…
"""

import signal
import sys

from launch import common, train
from tests.training.kill_drill_test import signal_in


def main(argv):
    join = common.join_processes

    def joined():
        import jax

        join()
        if jax.process_index() == VICTIM:
            signal_in(PHASE, STEP, signal.SIGTERM)

    common.join_processes = joined
    train.main(argv)


if __name__ == "__main__":
    VICTIM, PHASE, STEP = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    del sys.argv[1:4]
    common.run(main, config="configs/quickstart.py")
