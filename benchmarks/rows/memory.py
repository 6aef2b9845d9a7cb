"""Peak memory of training, of a whole process that takes a few steps, in bytes.

On an accelerator it is the most that lay in the device's own memory.
"""

import os

from benchmarks.batches import random_batch
from benchmarks.isolated import call, peak_bytes, require_torch
from benchmarks.measure import Context, Samples
from benchmarks.sizes import BATCHES, settings
from launch import process

_STEPS = 3


def against_peer(context: Context, questions: int) -> Samples:
    """All that a process ever had at a time: libraries, compilation, parameters, activations.

    The peer takes the whole batch at once with one question a product, and else micro-batches of
    the smallest size of `benchmarks.sizes`, which needs the least memory.
    """
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # each compiles: the row is for any start
    ours, theirs = [], []
    for _ in range(context.repetitions):
        ours.append(call("memory:ours", context, questions=questions))
        theirs.append(call("memory:theirs", context, questions=questions))
    return Samples("bytes", ours, theirs)


def ours(context: Context, questions: int) -> int:
    """Takes steps of ours; in a process of its own."""
    import jax

    from benchmarks.ours import Training, experiment

    process.trim_after_compilations()  # as launch.train does
    step = Training(experiment(settings(context.size, questions)))
    for _ in range(_STEPS):
        step()
    device = jax.devices()[0].memory_stats() or {}  # none of a CPU
    return device.get("peak_bytes_in_use") or peak_bytes()


def theirs(context: Context, questions: int) -> int:
    """Takes steps of the peer; in a process of its own."""
    require_torch()
    import torch

    from benchmarks import peer
    from benchmarks.ours import experiment

    config = experiment(settings(context.size, questions))
    training = peer.Training(config, random_batch(config))
    size = training.examples if questions == 1 else BATCHES[context.size].peer_rows[0]
    for _ in range(_STEPS):
        training.step(training.model, size)
    return torch.cuda.max_memory_allocated() if peer.DEVICE == "cuda" else peak_bytes()
