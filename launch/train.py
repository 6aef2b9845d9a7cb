r"""Trains a model, or goes on with a training that was stopped.

    python -m launch.train --config=configs/quickstart.py --workdir=runs/dense
    python -m launch.train --config=configs/quickstart.py --workdir=runs/dense \
        --config.optimizer.learning_rate=3e-4

Running the same command again resumes from the last checkpoint, bit for bit.

SIGTERM, SIGINT (Ctrl-C) or SIGUSR1 has the training save after the step under way and exit with
status 75; a second SIGINT ends it at once, with status 130. Where the time went, over all starts,
is told at the end and kept in goodput.json.
"""

from collections.abc import Sequence

from absl import flags

from launch import common

common.define_workdir("Where config, tokenizer, checkpoints, metrics and results go.")


def main(argv: Sequence[str]) -> None:
    """Trains as the flags say."""
    del argv
    from moemoe_jax.training.stopping import Stop
    from moemoe_jax.training.timing import process_began

    stop = Stop().listen()  # before the imports that take seconds
    from moemoe_jax.training.loop import train

    train(flags.FLAGS.config, flags.FLAGS.workdir, stop=stop, began=process_began())


if __name__ == "__main__":
    common.run(main, config="configs/quickstart.py")
