r"""Trains a model, or goes on with a training that was stopped.

    python -m launch.train --config=configs/quickstart.py --workdir=runs/dense
    python -m launch.train --config=configs/quickstart.py --workdir=runs/dense \
        --config.optimizer.learning_rate=3e-4

Running the same command again resumes from the last checkpoint, bit for bit.
"""

from collections.abc import Sequence

from absl import flags

from launch import common

common.define_workdir("Where config, tokenizer, checkpoints, metrics and results go.")
common.define_processes()


def main(argv: Sequence[str]) -> None:
    """Trains as the flags say."""
    del argv
    common.join_processes()
    from moemoe_jax.training.loop import train

    train(flags.FLAGS.config, flags.FLAGS.workdir)


if __name__ == "__main__":
    common.run(main, config="configs/quickstart.py")
