r"""Trains a model, or goes on with a training that was stopped.

    python -m launch.train --config=configs/quickstart.py --workdir=runs/dense
    python -m launch.train --config=configs/quickstart.py --workdir=runs/dense \
        --config.optimizer.learning_rate=3e-4

Running the same command again resumes from the last checkpoint, bit for bit. With --dry_run it only
prints where every parameter would lie on the mesh and what each device would hold.
"""

from collections.abc import Sequence

from absl import flags

from launch import common

common.define_workdir("Where config, tokenizer, checkpoints, metrics and results go.")
common.define_processes()
flags.DEFINE_bool("dry_run", False, "Print the table of parameters and bytes per device, and stop.")


def main(argv: Sequence[str]) -> None:
    """Trains as the flags say."""
    del argv
    if flags.FLAGS.dry_run:
        from pathlib import Path

        from moemoe_jax.training.dry_run import dry_run
        from moemoe_jax.workdir import WorkDir

        dry_run(flags.FLAGS.config, WorkDir(Path(flags.FLAGS.workdir).expanduser()))
        return
    common.join_processes()
    from moemoe_jax.training.loop import train

    train(flags.FLAGS.config, flags.FLAGS.workdir)


if __name__ == "__main__":
    common.run(main, config="configs/quickstart.py")
