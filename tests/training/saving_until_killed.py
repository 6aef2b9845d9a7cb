"""Saves, one after another, states that follow from the step, until it is killed."""

import sys

import jax
import numpy as np

from moemoe_jax.training.checkpoints import Checkpoints

SHAPES = {"a/kernel": (256, 300), "a/bias": (300,), "b/table": (1000, 64), "count": ()}


def state(step):
    """The same for the same step, and no two alike."""
    rng = np.random.default_rng(step)
    return {name: rng.normal(size=shape).astype("float32") for name, shape in SHAPES.items()}


def main(directory):
    with Checkpoints(directory, keep_last=2) as checkpoints:
        step = checkpoints.latest_step() or 0
        while True:
            step += 1
            checkpoints.save(step, {k: jax.numpy.asarray(v) for k, v in state(step).items()})
            print(step, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
