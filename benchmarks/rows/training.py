"""Training steps against the peer's, in seconds an example."""

import functools

from benchmarks.batches import random_batch
from benchmarks.isolated import require_torch
from benchmarks.measure import Context, Samples, best, in_turn, timed
from benchmarks.ours import Training, experiment
from benchmarks.sizes import BATCHES, DISTINCT_QUESTIONS, settings

_ENOUGH = 64  # rows after which the rest of the peer's batch costs as much a row


def against_peer(context: Context, questions: int, distinct: int = DISTINCT_QUESTIONS) -> Samples:
    """One step of ours on P products with Q questions each, and one of the peer's on P * Q rows.

    With one question a product the peer takes the whole batch at once, as we do. With more it adds
    up micro-batches of the size that is best for it, and is spared most of a long batch. How many
    of the questions are `distinct` is the same to it: each of its rows has one encoded.
    """
    require_torch()
    import torch

    from benchmarks import peer

    config = experiment(settings(context.size, questions, distinct=distinct))
    batch = random_batch(config)
    theirs = peer.Training(config, batch)
    rows = theirs.examples
    sizes = [rows] if questions == 1 else [s for s in BATCHES[context.size].peer_rows if s <= rows]
    eager = {
        size: functools.partial(theirs.step, theirs.model, size, max(size, _ENOUGH))
        for size in sizes
    }
    name, _ = best({f"{size} rows": cost for size, cost in eager.items()})
    size = int(name.partition(": ")[2].split()[0])
    compiled = functools.partial(theirs.step, torch.compile(theirs.model), size, max(size, _ENOUGH))
    name, chosen = best({f"eager, {size} rows": eager[size], f"compiled, {size} rows": compiled})
    ours = timed(Training(config, batch), per=rows)
    return Samples("s an example", *in_turn(ours, chosen, context.repetitions), f"PyTorch: {name}")
