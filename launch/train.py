r"""Trains a model, or goes on with a training that was stopped.

    python -m launch.train --config=configs/quickstart.py --workdir=runs/dense
    python -m launch.train --config=configs/quickstart.py --workdir=runs/dense \
        --config.optimizer.learning_rate=3e-4

Running the same command again resumes from the last checkpoint, bit for bit. With --dry_run it only
prints the shape of every parameter and where it would lie on the mesh (equal layers on one line),
and at the end what is trained and what a device would hold in all; with --settings, every setting.

SIGTERM, SIGINT (Ctrl-C) or SIGUSR1 has the training save after the step under way and exit with
status 75; a second SIGINT ends it at once, with status 130. Where the time went, over all starts,
is told at the end and kept in goodput.json.
"""

from collections.abc import Sequence

from absl import flags

from launch import common, process

common.define_workdir("Where config, tokenizer, checkpoints, metrics and results go.")
flags.DEFINE_bool("dry_run", False, "Print what a device would hold of each parameter, and stop.")
flags.DEFINE_bool("settings", False, "Print every setting as a flag with its value, and stop.")
common.define_processes()


def main(argv: Sequence[str]) -> None:
    """Trains as the flags say."""
    del argv
    if flags.FLAGS.settings:
        from moemoe_jax.config_tree import as_flags

        print(*as_flags(flags.FLAGS.config), sep="\n")
        return
    if flags.FLAGS.dry_run:
        from pathlib import Path

        from moemoe_jax.training.dry_run import dry_run
        from moemoe_jax.workdir import WorkDir

        dry_run(flags.FLAGS.config, WorkDir(Path(flags.FLAGS.workdir).expanduser()))
        return
    from moemoe_jax.training.stopping import Stop
    from moemoe_jax.training.timing import process_began

    stop = Stop().listen()  # before the imports that take seconds
    common.join_processes()
    process.trim_after_compilations()
    from moemoe_jax.training.loop import train

    train(flags.FLAGS.config, flags.FLAGS.workdir, stop=stop, began=process_began())


if __name__ == "__main__":
    common.run(main, config="configs/quickstart.py")
